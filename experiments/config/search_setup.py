"""What a search works on: the model, its calibration prompts, what drafts cost, and what is maximised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.config import build, build_search, build_space
from search.costs.draft_tables import DraftCosts
from search.draft_of_point import Drafts
from search.multi_dataset import MultiDataset
from search.objective import Objective
from search.replay import rule_tuner
from search.space import Space
from selfspec.data.prompts import Prompt
from selfspec.drafters.spec import DraftSpec
from selfspec.models.load import Loaded
from selfspec.targets import TARGET

log = logging.getLogger(__name__)

COSTS = "costs.json"
ALL = 1_000_000  # prompts; null would leave them in their own order, which is no selection by the seed


@dataclass(frozen=True, slots=True)
class Setup:
    """All of it.

    Attributes:
        loaded: the model.
        prompts: of the search, by data set.
        fresh: calibration prompts that the search does not see, for its finals, by data set; may be empty.
        drafts: what a point of the space is drafted with.
        costs: of drafts; None where the objective takes the time itself.
        objective: on `prompts`.
        space: what is searched.
        facts: for provenance.
    """

    loaded: Loaded
    prompts: Mapping[str, list[Prompt]]
    fresh: Mapping[str, list[Prompt]]
    drafts: Drafts
    costs: DraftCosts | None
    objective: Objective
    space: Space
    facts: Mapping[str, Any]

    @property
    def context(self) -> int:
        """The median prompt's length in tokens."""
        lengths = sorted(len(p.ids) for prompts in self.prompts.values() for p in prompts)
        return lengths[len(lengths) // 2]


def set_up(cfg: DictConfig, *, resumed: Path | None = None) -> Setup:
    """Load and measure what the search of `cfg` needs; `resumed` is its folder if it goes on."""
    loaded = build.model(cfg)
    o = cfg.objective
    prompts: dict[str, list[Prompt]] = {}
    fresh: dict[str, list[Prompt]] = {}
    n_fresh = cfg.finals.n_prompts if cfg.finals.top else 0
    rest: list[list[int]] = []
    needs_texts = build_search.needs_texts(cfg)
    for data in build_search.data_sets(cfg):
        found = build.prompts(
            data,
            loaded,
            "calibration",
            n=ALL if needs_texts else o.n_prompts + n_fresh,
            seed=cfg.searcher.seed,
            max_new_tokens=max(o.max_new_tokens, cfg.calibration.max_new_tokens if needs_texts else 0),
        )
        n, n_finals = o.n_prompts, n_fresh
        if needs_texts:
            n, n_finals = _shares(data.data.name, len(found), n, n_finals)
        rest += [p.ids for p in found[n + n_finals :]]
        prompts[data.data.name], fresh[data.data.name] = found[:n], found[n : n + n_finals]
    drafts = build_search.drafts(cfg, loaded, rest)
    costs = build_search.draft_costs(cfg, loaded, drafts, resumed=resumed / COSTS if resumed else None)
    context = 0 if costs is None else costs.table.contexts[0]
    if costs is not None:
        drafts = replace(drafts, price=_pricing(costs, context))
        if cfg.costs.path or cfg.costs.get("table"):  # somebody else's, measured we do not know how
            lengths = [len(p.ids) for found in prompts.values() for p in found]
            costs.table.check(
                f"costs of {cfg.model.name}",
                n_layers=loaded.decoder.n_layers,
                contexts=(min(lengths), max(lengths) + o.max_new_tokens),
            )
    space = build_space.space(cfg, loaded, costs, drafts, context=context)
    objective = objective_on(cfg, loaded, prompts, drafts, costs)
    facts = build.facts(
        cfg,
        loaded,
        searcher=cfg.searcher.name,
        objective=objective.name,
        stop=build.stop_name(build.stop(cfg)),
        draft=cfg.draft.kind,
        head=cfg.head.n,
        precision=cfg.precision,
        lookup=cfg.lookup,
        memory=None if drafts.memory is None else len(drafts.memories[drafts.memory]),
        calibration_tokens=None if drafts.fits is None else drafts.fits.observed.n_tokens,
        n_prompts=sum(map(len, prompts.values())),
        prompt_ids=[p.example.id for found in prompts.values() for p in found],
        fresh_ids=[p.example.id for found in fresh.values() for p in found],
        seed=cfg.searcher.seed,
        **({"space": [d.name for d in space.dimensions]} if space.dimensions else {}),
        **({"drafter": drafts.drafter[TARGET]} if drafts.drafter else {}),
        **({"tree": drafts.tree.to_dict()} if drafts.tree else {}),
    )
    return Setup(loaded, prompts, fresh, drafts, costs, objective, space, facts)


def _pricing(costs: DraftCosts, context: int) -> Callable[[DraftSpec], DraftSpec]:
    """Tells a tree what its nodes cost on this machine."""

    def price(spec: DraftSpec) -> DraftSpec:
        if rule_tuner.is_priced(spec):
            return spec
        table = costs.for_plan(spec.plan)
        return rule_tuner.priced(spec, draft_cost=table.draft_cost(spec.plan, context), costs=table, context=context)

    return price


def _shares(data: str, n_found: int, n_search: int, n_finals: int) -> tuple[int, int]:
    """How many prompts the search and its finals take, so that equally many at least are left to make drafts of.

    Only where nothing would be left are they fewer than was asked for, and that is said.
    """
    share = n_found // (2 + bool(n_finals))
    if n_found > n_search + n_finals or not share:
        return n_search, n_finals
    n, m = min(n_search, share), min(n_finals, share)
    log.warning(
        "data=%s has %d calibration prompts, too few for %d of the search, %d of its finals and those that drafts are "
        "made of: they get %d, %d and %d; data with more prompts gives better drafts",
        *(data, n_found, n_search, n_finals, n, m, n_found - n - m),
    )
    return n, m


def objective_on(
    cfg: DictConfig, loaded: Loaded, prompts: Mapping[str, list[Prompt]], drafts: Drafts, costs: DraftCosts | None
) -> Objective:
    """The objective on these prompts: one for each data set, combined where there are several."""
    each = {
        name: build_search.objective(cfg, loaded, [p.ids for p in found], drafts=drafts, costs=costs)
        for name, found in prompts.items()
    }
    return MultiDataset(each, cfg.objective.combine) if len(each) > 1 else next(iter(each.values()))
