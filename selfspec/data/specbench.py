"""Spec-Bench: 480 questions of six tasks, on which speculative methods are compared.

Its categories are the six tasks; MT-bench's eight kinds are one of them, so that each task weighs the same.

Source: Xia et al. 2024 (arXiv:2401.07851).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from selfspec.data.mtbench import AS_IT_STANDS, KINDS, question
from selfspec.data.shots import put
from selfspec.data.source import Origin, Source, Split
from selfspec.data.task import Example
from selfspec.errors import unknown_name

CONVERSATION = "mt_bench"  # its name in Spec-Bench's own tables


def specbench(source: Source, only: str | None = None) -> Split:
    """The questions; those of MT-bench have two turns. `extra` holds Spec-Bench's own category.

    Args:
        source: rows of Spec-Bench's question.jsonl, which is not on the hub.
        only: the one task whose questions are kept; None: all. The parts do not depend on it, so that a draft that
            was fitted on the calibration part of all tasks has seen no question of the evaluation part of one.

    Raises:
        InputError: if there is no file, a row has another form, or no question is of that task.
    """
    found = put(source.load(Origin("specbench", "1", None, None, None, _read, is_spec_bench=True)), AS_IT_STANDS)
    if only is None:
        return found
    parts = [[e for e in part if e.category == only] for part in (found.calibration, found.evaluation)]
    if not any(parts):
        known = sorted({e.category for part in (found.calibration, found.evaluation) for e in part})
        raise unknown_name("task of Spec-Bench", only, known)
    return replace(found, calibration=parts[0], evaluation=parts[1], about={**found.about, "only": only})


def _read(row: Mapping[str, Any], place: str, where: str) -> Example:
    found = question(row, place, where)
    task = CONVERSATION if found.category in KINDS else found.category
    return replace(found, category=task, extra={"category": found.category})
