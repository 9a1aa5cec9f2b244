"""Evaluation prompts without those that the search of a draft has seen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.results.locate_draft import locate_draft
from experiments.results.run_facts import read_provenance
from selfspec.data.same_prompts import example_digests
from selfspec.data.task import Example
from selfspec.drafters.spec_files import find_draft
from selfspec.errors import InputError
from selfspec.heads.published import BESIDE

log = logging.getLogger(__name__)


def unseen(examples: Sequence[Example], drafts: Iterable[str], outputs: Path) -> list[Example]:
    """The examples that no search of these drafts used for its trials, its finals or its fits.

    Runs of earlier versions do not tell what they used.

    Args:
        examples: evaluation prompts.
        drafts: names of drafts, as users give them.
        outputs: folder of the runs.

    Raises:
        InputError: if no example is left.
    """
    seen = {digest for draft in set(drafts) for digest in _seen(draft, outputs)}
    kept = [example for example in examples if seen.isdisjoint(example_digests(example))]
    n = len(examples) - len(kept)
    if n and not kept:
        raise InputError(
            f"the draft was made of all {n} evaluation prompts; evaluate on other data, or search with "
            "fewer calibration prompts"
        )
    if n:
        log.warning("%d of %d evaluation prompts are left out: the draft was made of them", n, len(examples))
    return kept


def _seen(draft: str, outputs: Path) -> list[str]:
    """The digests of the prompts that the search of a draft used; empty if the draft is of no search."""
    try:
        found = find_draft(locate_draft(draft, outputs))
        if found.file is None:
            return []
        if found.kind == "head":  # which an export may have written
            return list(json.loads(found.file.with_name(BESIDE).read_text(encoding="utf-8"))["seen"])
        return list(read_provenance(found.file.parent)["run"].get("seen") or ())
    except (OSError, ValueError, KeyError, TypeError):  # what is wrong with a draft is told where it is loaded
        return []
