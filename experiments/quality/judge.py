"""The quality of the answers of a run, judged after all decoding so that no timing suffers; one row for each number.

`data.metric` names the measure. Failed prompts have no row here: the rows of the run give the reason of the failure.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.quality import last_number
from experiments.quality.code import Problem, pass_at_k
from experiments.quality.rouge import rouge
from experiments.quality.sandbox import Sandbox, find_sandbox
from experiments.results.tables import markdown_table, number
from selfspec.answer_text import without_thoughts
from selfspec.data.task import Example
from selfspec.errors import InputError, unknown_name
from selfspec.measure.metrics import mean_interval
from selfspec.records import run_files

log = logging.getLogger(__name__)

FILE = "quality.jsonl"
PASSED, PASS_KS = "passed", (1, 10)  # the published k

Row = dict[str, Any]
Measure = Callable[[Sequence[tuple[Example, str]]], list[Row]]
"""Judges (example, answer) pairs: for each pair a row of numbers by name, and a `reason` if code failed."""


@dataclass(frozen=True, slots=True)
class Quality:
    """One number of one arm: the mean over prompts, with its 95 % interval over prompts."""

    arm: str
    metric: str
    value: float
    low: float
    high: float
    n_prompts: int
    n_samples: int


def measure(
    name: str | None, examples: Iterable[Example], *, chat: bool = False, may_run_code: bool = False
) -> Measure | None:
    """The measure for the answers to `examples`; None without a name, or if it needs code to run that may not.

    Args:
        name: `rouge`, `gsm8k`, `pass`, or None.
        examples: the questions with what judging needs.
        chat: whether the answers are of a chat, with code in blocks.
        may_run_code: whether the model's code may run in a sandbox.

    Raises:
        InputError: before the run, if an example lacks a reference or tests, or code cannot run here.
    """
    if name is None:
        return None
    if name == "pass":
        if not may_run_code:
            log.warning("pass@k is left out: code that a model wrote runs only with allow_code_execution=true")
            return None
        problems = {example.id: _problem(example) for example in examples}
        sandbox = find_sandbox()
        return lambda answers: _passed(sandbox, [problems[e.id].program(text, chat=chat) for e, text in answers])
    if name not in MEASURES:
        raise unknown_name("data.metric", str(name), [*MEASURES, "pass"])
    for example in examples:
        if example.reference is None:
            raise _missing(name, example, "reference")
        if name == "gsm8k":
            last_number.wanted(example.reference)
    return MEASURES[name]


def _rouge(answers: Sequence[tuple[Example, str]]) -> list[Row]:
    # only the first answer of a conversation is judged; the references hold one text for each turn
    return [dict(rouge(text, [e.reference or "", *(() if e.turns else e.references)])) for e, text in answers]


def _exact_match(answers: Sequence[tuple[Example, str]]) -> list[Row]:
    return [{"exact_match": float(last_number.is_right(text, e.reference or ""))} for e, text in answers]


MEASURES: Mapping[str, Measure] = {"rouge": _rouge, "gsm8k": _exact_match}


def _passed(sandbox: Sandbox, programs: Sequence[str]) -> list[Row]:
    log.info("%d programs of the model's run with %s", len(programs), sandbox.isolation)
    return [{PASSED: float(o.passed), "reason": o.reason} for o in sandbox.run_all(programs)]


def _problem(example: Example) -> Problem:
    problem = Problem.of(example.extra)
    if problem is None:
        raise _missing("pass", example, "tests")
    return problem


def _missing(name: str, example: Example, what: str) -> InputError:
    return InputError(
        f"data.metric={name} was asked for, but prompt {example.id!r} has no {what}; "
        "name the field that holds it, or set data.metric=null"
    )


def assess(measure: Measure, examples: Iterable[Example], rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row for each number of each answer: prompt_id, arm, sample, metric, value and, for failed code, reason.

    Args:
        measure: judge of the answers.
        examples: prompts of the run.
        rows: rows of the run; the latest row of a prompt, arm and sample counts, and only the first turn.
    """
    by_id = {example.id: example for example in examples}
    answered = {
        (row["prompt_id"], row["arm"], row.get("sample", 0)): _answer(row)
        for row in rows
        if row.get("turn", 0) == 0 and row["prompt_id"] in by_id
    }
    # lossless arms mostly give equal answers, so each distinct answer is judged once
    distinct = list(dict.fromkeys((id, text) for (id, _, _), text in answered.items() if text is not None))
    judged = dict(zip(distinct, measure([(by_id[id], text) for id, text in distinct]), strict=True))
    return [
        {"prompt_id": id, "arm": arm, "sample": sample, "metric": metric, "value": value, **_reason(said)}
        for (id, arm, sample), text in answered.items()
        if text is not None and (said := judged.get((id, text)))
        for metric, value in said.items()
        if metric != "reason"
    ]


def _answer(row: Mapping[str, Any]) -> str | None:
    """The judged text of a row: its text without thoughts, because numbers and code in thoughts are no answer."""
    text = row.get("text")
    return None if text is None else without_thoughts(text, begins_in_thought=bool(row.get("begins_in_thought")))


def _reason(said: Mapping[str, Any]) -> Row:
    return {"reason": said["reason"]} if said.get("reason") else {}


def write_quality(
    folder: Path, measure: Measure | None, examples: Iterable[Example], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Judge a run and write all rows into its folder at once; without a measure, write nothing."""
    if measure is None:
        return
    lines = (
        json.dumps({"schema": run_files.SCHEMA, **row}, ensure_ascii=False, allow_nan=False)
        for row in assess(measure, examples, rows)
    )
    run_files.write_text(folder / FILE, "".join(f"{line}\n" for line in lines))


def quality_rows(folder: Path) -> list[Row]:
    """The quality rows of a run; empty if its answers were not judged."""
    return run_files.read_rows(folder / FILE) if (folder / FILE).is_file() else []


def summary(rows: Iterable[Mapping[str, Any]]) -> list[Quality]:
    """The numbers of each arm; pass@k for each k of `PASS_KS` for which every prompt has enough samples."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        values.setdefault((row["arm"], row["metric"]), {}).setdefault(row["prompt_id"], []).append(row["value"])
    found = []
    for (arm, metric), by_prompt in values.items():
        samples = list(by_prompt.values())
        if metric != PASSED:
            found.append(_quality(arm, metric, [sum(s) / len(s) for s in samples], samples))
            continue
        for k in PASS_KS:
            if k <= min(map(len, samples)):
                each = [pass_at_k(len(s), round(sum(s)), k) for s in samples]
                found.append(_quality(arm, f"pass@{k}", each, samples))
    return found


def _quality(arm: str, metric: str, each: Sequence[float], samples: Sequence[Sequence[float]]) -> Quality:
    # all measures are fractions, except a user's own
    within = (0.0, 1.0) if all(0 <= value <= 1 for value in each) else (-math.inf, math.inf)
    low, high = mean_interval(each, within=within)
    return Quality(arm, metric, sum(each) / len(each), low, high, len(each), sum(map(len, samples)))


def quality_table(found: Sequence[Quality]) -> str:
    """A Markdown table of the results of `summary`."""
    return markdown_table(
        ("arm", "metric", "value [95 %]", "prompts", "samples"),
        [
            (
                q.arm,
                q.metric,
                f"{number(q.value, 3)} [{number(q.low, 3)}, {number(q.high, 3)}]",
                str(q.n_prompts),
                str(q.n_samples),
            )
            for q in found
        ],
    )
