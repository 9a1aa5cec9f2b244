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

CONVERSATION = "mt_bench"  # its name in Spec-Bench's own tables


def specbench(source: Source) -> Split:
    """The questions; those of MT-bench have two turns. `extra` holds Spec-Bench's own category.

    Args:
        source: rows of Spec-Bench's question.jsonl, which is not on the hub.

    Raises:
        InputError: if there is no file, or a row has another form.
    """
    return put(source.load(Origin("specbench", "1", None, None, None, _read, is_spec_bench=True)), AS_IT_STANDS)


def _read(row: Mapping[str, Any], place: str, where: str) -> Example:
    found = question(row, place, where)
    task = CONVERSATION if found.category in KINDS else found.category
    return replace(found, category=task, extra={"category": found.category})
