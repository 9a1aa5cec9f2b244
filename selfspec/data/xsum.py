"""XSum: news articles to summarise in one sentence.

Source: Narayan et al. 2018 (arXiv:1808.08745).
"""

from collections.abc import Mapping
from typing import Any

from selfspec.data.cnndm import HINT, PAPER
from selfspec.data.rows import text
from selfspec.data.shots import Form, put
from selfspec.data.source import Origin, Source, Split
from selfspec.data.task import Example

CHAT = Form("Summarise this article in one sentence.\n\nArticle: ", "\n\nSummary:", " ", "\n\n", is_text=True)


def xsum(source: Source, *, shots: int = 0, chat: bool = False) -> Split:
    """The articles, each after `shots` others with their summaries.

    Args:
        source: rows with `document` and `summary`.
        shots: number of articles shown with their summaries.
        chat: ask a chat model; otherwise the form of Draft & Verify, as text to continue.

    Raises:
        InputError: if the source is not available, or a row has another form.
    """
    origin = Origin("xsum", "1", "EdinburghNLP/xsum", None, "train", _read)
    return put(source.load(origin), CHAT if chat else PAPER, shots=shots)


def _read(row: Mapping[str, Any], place: str, where: str) -> Example:
    document = text(row, "document", where, hint=HINT)
    return Example(place, document, text(row, "summary", where, hint=HINT), "summary")
