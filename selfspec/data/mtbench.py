"""MT-bench: eighty questions of eight kinds for a chat model, each with a follow-up question.

Source: Zheng et al. 2023 (arXiv:2306.05685).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from selfspec.data.shots import Form, put
from selfspec.data.source import Origin, Source, Split
from selfspec.data.task import Example
from selfspec.errors import InputError

AS_IT_STANDS = Form("", "", "", "")
KINDS = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
HINT = "it must be a question of MT-bench or Spec-Bench; to read other prompts, use data=jsonl"


def mtbench(source: Source) -> Split:
    """The questions, with their second turns; those of Spec-Bench's file are the same.

    Args:
        source: rows with `turns` (or `prompt`), `category` and, for some, `reference`, one for each turn.

    Raises:
        InputError: if the source is not available, or a row has another form.
    """
    origin = Origin("mtbench", "1", "HuggingFaceH4/mt_bench_prompts", None, None, _read, is_spec_bench=True)
    # the hub calls its only split train
    return put(replace(source, split="train").load(origin), AS_IT_STANDS)


def question(row: Mapping[str, Any], place: str, where: str) -> Example:
    """A question of one or more turns; its references are those of its turns, or all correct answers.

    Raises:
        InputError: if the row holds no such question.
    """
    turns = row.get("turns", row.get("prompt"))
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise InputError(f"{where} has no list of texts in its field 'turns'; {HINT}")
    id_, category = row.get("question_id", row.get("prompt_id", place)), row.get("category")
    if not isinstance(id_, int | str) or not isinstance(category, str):
        raise InputError(f"{where} has no question_id or no category; {HINT}")
    answers = row.get("reference") or []
    if answers and isinstance(answers[0], list):  # retrieval: several short answers to the one turn
        answers = answers[0]
    reference = answers[0] if answers else None
    return Example(str(id_), turns[0], reference, category, turns=tuple(turns[1:]), references=tuple(answers))


def _read(row: Mapping[str, Any], place: str, where: str) -> Example | None:
    found = question(row, place, where)
    return found if found.category in KINDS else None
