"""CNN/DailyMail 3.0.0: news articles to summarise, in the form of Draft & Verify or of a chat.

Source: See et al. 2017 (arXiv:1704.04368); the paper's form and choice of rows: Zhang et al. 2024 (arXiv:2309.08168).
"""

from collections.abc import Mapping
from typing import Any

from selfspec.data.rows import text
from selfspec.data.shots import Form, put
from selfspec.data.source import Origin, Source, Split
from selfspec.data.task import Example

PAPER = Form("Article: ", "\nSummary:", " ", "\n", is_text=True)
CHAT = Form("Summarise this article in a few sentences.\n\nArticle: ", "\n\nSummary:", " ", "\n\n", is_text=True)
HINT = "to read other prompts, use data=jsonl"
SPECBENCH_TASK, SPECBENCH_ASK = "summarization", "Summarize: "


def cnndm(source: Source, *, shots: int = 1, chat: bool = False) -> Split:
    """The articles, each after `shots` others with their summaries.

    Args:
        source: rows with `article` and `highlights`, or rows of Spec-Bench's file that are of this data set.
        shots: number of articles shown with their summaries.
        chat: ask a chat model; otherwise the paper's form, as text to continue.

    Raises:
        InputError: if the source is not available, or a row has another form.
    """
    origin = Origin("cnndm", "1", "abisee/cnn_dailymail", "3.0.0", "train", _read)
    return put(source.load(origin), CHAT if chat else PAPER, shots=shots)


def _read(row: Mapping[str, Any], place: str, where: str) -> Example | None:
    if "turns" in row and "question_id" in row:
        return _of_specbench(row, where)
    article = text(row, "article", where, hint=HINT)
    return Example(place, article, text(row, "highlights", where, hint=HINT), "summary")


def _of_specbench(row: Mapping[str, Any], where: str) -> Example | None:
    if row.get("category") != SPECBENCH_TASK:
        return None
    asked = {"article": row["turns"][0].removeprefix(SPECBENCH_ASK), "highlights": (row.get("reference") or [None])[0]}
    return _read(asked, str(row["question_id"]), where)
