"""Answers in the format of Spec-Bench, one file for each arm, so that its own scripts can read a run.

Source: Xia et al. 2024 (arXiv:2401.07851); the fields equal those of the files that its evaluation writes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selfspec.data.mtbench import KINDS
from selfspec.data.specbench import CONVERSATION
from selfspec.errors import InputError, unknown_name
from selfspec.records import provenance, run_files

log = logging.getLogger(__name__)

ANSWERS = "answers"

Row = Mapping[str, Any]
FIRST_QUESTION, QUESTIONS_OF_A_KIND = 81, 10  # question numbers of MT-bench: ten of each kind, in the order of `KINDS`


def answers(rows: Iterable[Row], *, arm: str, model_id: str, started: str) -> list[dict[str, Any]]:
    """One record for each answered question, by number; a sample is a choice, a turn a place in its lists.

    If a row was written twice, the later one counts. A question with a failed turn or sample is left out with a
    warning, because Spec-Bench would count the time of an answer "ERROR".

    Args:
        rows: rows of an evaluation of Spec-Bench or MT-bench.
        arm: name of the arm.
        model_id: name of model and method in Spec-Bench's tables.
        started: start time of the run, ISO 8601.

    Raises:
        InputError: if the run has no such arm, or its prompts are not Spec-Bench's.
    """
    rows = list(rows)
    latest = {(_question(r), r.get("sample", 0), r.get("turn", 0)): r for r in rows if r["arm"] == arm}
    if not latest:
        raise unknown_name("arm", arm, sorted({row["arm"] for row in rows}))
    failed = sorted({question for (question, _, _), row in latest.items() if row.get("error")})
    if failed:
        log.warning("arm %s: left out %d question(s) that failed: %s", arm, len(failed), failed)
    choices: dict[int, dict[int, list[Row]]] = {}
    for (question, sample, _), row in sorted(latest.items(), key=lambda item: item[0]):
        if question not in failed:
            choices.setdefault(question, {}).setdefault(sample, []).append(row)
    return [
        {
            "question_id": question,
            "category": _category(question, samples),
            "answer_id": provenance.digest(f"{model_id} {started} {question}"),
            "model_id": model_id,
            "choices": [_choice(sample, turns) for sample, turns in samples.items()],
            "tstamp": datetime.fromisoformat(started).timestamp(),
        }
        for question, samples in choices.items()
    ]


def write_answers(run: Path, rows: Sequence[Row]) -> None:
    """Write the answers of every arm as JSON lines into the folder `answers` of the run, one file for each arm.

    Args:
        run: the run folder.
        rows: rows of its `records.jsonl`.

    Raises:
        InputError: see `answers`.
    """
    of = json.loads((run / run_files.PROVENANCE).read_text(encoding="utf-8"))
    (run / ANSWERS).mkdir(exist_ok=True)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = answers(rows, arm=arm, model_id=f"{of['run']['model']} {arm}", started=of["started"])
        text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in found)
        run_files.write_text(run / ANSWERS / (quote(arm, safe=" '+") + ".jsonl"), text)


def _choice(sample: int, turns: list[Row]) -> dict[str, Any]:
    return {
        "index": sample,
        "turns": [row["text"].strip() for row in turns],
        "decoding_steps": [len(_accept_lengths(row)) for row in turns],
        "new_tokens": [row["n_tokens"] for row in turns],
        "wall_time": [row["total_s"] for row in turns],
        "accept_lengths": [n for row in turns for n in _accept_lengths(row)],
    }


def _accept_lengths(row: Row) -> list[int]:
    """Number of tokens from each pass of the full model: the accepted ones plus one; plain decoding gives one."""
    return [n + 1 for n in row["round_accepted"]] or [1] * row["n_tokens"]


def _question(row: Row) -> int:
    try:
        return int(row["prompt_id"])
    except ValueError:
        raise InputError(
            f"prompt {row['prompt_id']!r} is no question of Spec-Bench, whose ids are whole numbers; "
            "its answer format needs a run with data=specbench or data=mtbench"
        ) from None


def _category(question: int, samples: Mapping[int, list[Row]]) -> str:
    """Spec-Bench's category of a question: its files name the kinds of MT-bench, which its tables join."""
    category: str = next(iter(samples.values()))[0]["category"]
    return KINDS[(question - FIRST_QUESTION) // QUESTIONS_OF_A_KIND] if category == CONVERSATION else category
