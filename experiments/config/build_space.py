"""From configuration to the search space: the dimensions besides the skip set, and what constrains both."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config import build
from search.constraints import Constraints
from search.costs.draft_tables import DraftCosts
from search.dimensions import Choice, Dimension, dimensions
from search.draft_of_point import Drafts
from search.point import Point, Value, settings_text
from search.space import Settings, Space
from selfspec.errors import InputError
from selfspec.models.load import Loaded
from selfspec.skipping.skip_set import SkipSet

SIZED = ("draft", "head", "precision")  # dimensions that change what a draft costs and how large it is


def searched(cfg: DictConfig) -> tuple[Dimension, ...]:
    """The dimensions of `cfg.space`; the run's own stop rule has the defaults of its ranges."""
    settings = OmegaConf.to_container(cfg.space) if cfg.get("space") else {}
    if not settings:
        return ()
    own = {f"stop.{key}": value for key, value in build.stop(cfg).to_dict().items()}
    return dimensions(settings, own=own)  # type: ignore[arg-type]


def choices(cfg: DictConfig, name: str, own: Any) -> list[Any]:
    """Every value that a setting may have in a search: the run's `own`, and those of its dimension."""
    found = [own]
    for d in searched(cfg):
        if d.name == name and isinstance(d.domain, Choice):
            found += [v for v in d.domain.values if v not in found]
    return found


def check_space(cfg: DictConfig) -> None:
    """Refuse, before a model is loaded, dimensions that would have no effect.

    Raises:
        InputError: if there is one.
    """
    names = [d.name for d in searched(cfg)]
    rules = [name for name in names if name.startswith("stop.")]
    if rules and cfg.objective.get("tune_stop"):
        raise InputError(f"objective.tune_stop chooses the stop rule anew for each point; leave it or {rules[0]} out")
    idle = [name for name in names if name in ("lookup", "memory") or name in rules]
    if idle and cfg.objective.name == "matchness":
        raise InputError(f"objective=matchness does not see space.{idle[0]}; leave it out, or use another objective")
    if "memory" in names and not any(choices(cfg, "lookup", cfg.lookup)):
        raise InputError("space.memory is for prompt lookup to look in; set lookup=front, or search lookup, too")


def space(cfg: DictConfig, loaded: Loaded, costs: DraftCosts | None, made: Drafts, *, context: int) -> Space:
    """What is searched.

    Args:
        cfg: of the run.
        loaded: the model.
        costs: of drafts; None where the objective takes the time itself.
        made: what a point is drafted with.
        context: tokens, at which drafts are priced.

    Raises:
        InputError: if the constraints leave nothing to search.
    """
    dims, n_layers = searched(cfg), loaded.decoder.n_layers
    default = Space(n_layers, dimensions=dims).point(SkipSet(n_layers))
    constraints = _constraints(cfg, loaded, costs, made, default.settings, context)
    sized = [d for d in dims if d.name in SIZED]
    if not sized or (constraints.max_cost is None and constraints.max_memory is None):
        return Space(n_layers, constraints, dims)
    known: dict[tuple[Any, ...], Constraints] = {}

    def at(settings: Settings) -> Constraints:
        """Caps are on the draft, which is another with another head."""
        mine = {d.name: settings[d.name] for d in sized if d.name in settings}
        key = tuple(mine.items())
        if key not in known:
            known[key] = _constraints(cfg, loaded, costs, made, mine, context)
        return known[key]

    for values in itertools.product(*(d.domain.extremes for d in sized)):
        settings = dict(zip([d.name for d in sized], values, strict=True))
        try:
            at(settings).check(n_layers)
        except InputError as error:
            raise InputError(f"space, with {settings_text(settings)}: {error}") from None
    return Space(n_layers, constraints, dims, at)


def _constraints(
    cfg: DictConfig,
    loaded: Loaded,
    costs: DraftCosts | None,
    made: Drafts,
    at: Mapping[str, Value],
    context: int,
) -> Constraints:
    """What a skip set must be where the other dimensions have the values `at`; caps are on the drafts."""
    settings: dict[str, Any] = {str(k): v for k, v in cfg.constraints.items()}
    decoder = loaded.decoder
    if settings["max_cost"] is not None:
        if costs is None:
            raise InputError(
                f"constraints.max_cost={settings['max_cost']} needs a cost table, which objective={cfg.objective.name} "
                "does not measure; use objective=expected_speedup"
            )

        def cost(skip: SkipSet) -> float:
            plan = made.outline(Point(skip, at))
            return costs.for_plan(plan).draft_cost(plan, context)

        settings["cost"] = cache(cost)
    if settings["max_memory"] is not None:
        whole = decoder.weight_bytes(SkipSet(decoder.n_layers))
        settings["memory"] = cache(lambda skip: decoder.weight_bytes(made.outline(Point(skip, at))) / whole)
    return Constraints(**settings)
