"""Refuse a search whose settings contradict each other, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from experiments.config import kinds
from experiments.config.annotations import parameters
from search.dimensions import Dimension, choices
from search.draft_of_point import Drafts
from search.goal import AGREED, Goal
from selfspec.errors import InputError
from selfspec.targets import TARGET, find_class


def check(dims: Sequence[Dimension], drafts: Drafts, goal: Goal, cfg: DictConfig) -> None:
    """Refuse dimensions, a lookup or a drafter that would have no effect.

    Raises:
        InputError: for the first of them.
    """
    _check_kinds(dims, cfg)
    _check_space(dims, drafts, goal)
    _check_lookup(dims, drafts)
    _check_drafter(drafts, goal)


def _check_kinds(dims: Sequence[Dimension], cfg: DictConfig) -> None:
    """Refuse a value of a dimension such as `stop.max_draft` if the class of the run's rule does not take it."""
    for d in dims:
        group, _, name = d.name.partition(".")
        target = cfg[group].get(TARGET) if name and group in cfg else None
        known = (parameters(target) if target else None) or {}
        for value in d.domain.extremes:
            kinds.read(value, known.get(name, Any), f"space.{d.name}")


def _check_space(dims: Sequence[Dimension], drafts: Drafts, goal: Goal) -> None:
    """Refuse dimensions that would have no effect."""
    names = [d.name for d in dims]
    rules = [name for name in names if name.startswith("stop.")]
    if rules and goal.tune_stop:
        raise InputError(f"objective.tune_stop chooses the stop rule anew for each point; leave it or {rules[0]} out")
    idle = [name for name in names if name in ("lookup", "memory") or name in rules]
    if idle and goal.name == AGREED:
        raise InputError(
            f"objective=matchness does not see space.{idle[0]}; leave it out (draft=skip), or use another objective"
        )
    if "memory" in names and not any(choices(dims, "lookup", drafts.lookup)):
        raise InputError("space.memory is for prompt lookup to look in; set lookup=front, or search lookup, too")


def _check_lookup(dims: Sequence[Dimension], drafts: Drafts) -> None:
    """Refuse a memory that no prompt lookup searches."""
    if drafts.memory and not any(choices(dims, "lookup", drafts.lookup)):
        raise InputError(
            f"memory={drafts.memory} is for prompt lookup to look in; set lookup=front, or leave memory out"
        )


def _check_drafter(drafts: Drafts, goal: Goal) -> None:
    """Refuse an objective that replays a drafter without replay, and a tree for a drafter with its own shape."""
    drafter, shape = drafts.drafter, drafts.tree
    if drafter and shape:
        raise InputError(f"drafter={drafter[TARGET]} drafts as it likes; leave tree out")
    is_replayable = not drafter or getattr(find_class(str(drafter[TARGET]), method="propose"), "is_replayable", False)
    if not goal.is_timed and not is_replayable:
        raise InputError(
            f"drafter={(drafter or {})[TARGET]} cannot be replayed, as objective={goal.name} does; use "
            "objective=tokens_per_second"
        )
    if goal.is_timed and not getattr(shape, "is_priced", True):
        raise InputError(
            "tree=best_first takes its costs from a table, which objective=tokens_per_second does not measure; give "
            "tree.draft_cost and tree.verify_cost"
        )
    if (drafter or shape) and (goal.name == AGREED or goal.tune_stop):
        what = "objective=matchness scores" if goal.name == AGREED else "objective.tune_stop is for"
        raise InputError(f"{what} chains of the built-in drafter; leave {'drafter' if drafter else 'tree'} out")
