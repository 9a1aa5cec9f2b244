"""The speedups that searches predicted for the drafts of an evaluation, to compare with the measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.evaluation.arms import GENERATE, PLAIN, Arm, DraftArm
from experiments.results.locate_draft import locate_draft
from experiments.results.named_drafts import predicted_value
from selfspec.drafters.spec_files import find_draft
from selfspec.errors import InputError
from selfspec.stopping import PauseWhenUnprofitable, StopRule


def predicted(arms: Sequence[Arm], drafts: Mapping[str, str], *, own: str, outputs: Path) -> dict[str, float]:
    """Arm name to predicted speedup, for arms with a draft from a search that predicted speedups.

    A prediction holds for the machine and the data of that search. An arm with a different stop rule or lookup has no
    prediction.

    Args:
        arms: the arms of an evaluation.
        drafts: name of the draft by arm, for arms with one of their own.
        own: name of the draft of the other arms.
        outputs: folder of the runs.
    """
    found = {}
    for arm in arms:
        if arm.name in (PLAIN, GENERATE):
            continue
        body = _saved(drafts.get(arm.name, own), outputs)
        value = predicted_value(body)
        if value is not None and _is_as_searched(arm, body):
            found[arm.name] = value
    return found


def _is_as_searched(arm: Arm, body: Mapping[str, Any]) -> bool:
    """Whether the arm has the skip set, the stop rule, with or without pauses, and the lookup that the search saved."""
    if "skip" in body and str(arm.skip) != body["skip"]:
        return False
    if "stop" not in body:
        return True
    try:
        rule = StopRule.from_dict(body["stop"])
    except InputError:  # a rule that cannot be built here differs from the arm's
        return False
    rules = [rule, rule.rule] if isinstance(rule, PauseWhenUnprofitable) else [rule]
    if not isinstance(arm, DraftArm):
        return False
    spec = arm.speculator.spec
    return spec.stop in rules and spec.lookup == body.get("lookup")


def _saved(draft: str, outputs: Path) -> Mapping[str, Any]:
    """The contents of the file of a draft; empty if the draft has no readable file."""
    try:
        return find_draft(locate_draft(draft, outputs)).settings
    except InputError:
        return {}
