"""From the configuration of `selfspec search` to a `SearchJob`, which does not know the configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.config import build, kinds
from experiments.config.annotations import parameters
from experiments.config.build_costs import check_given, draft_costs
from experiments.config.composing import option, under_first_names
from search.caps import capped_space
from search.costs.draft_tables import DraftCosts
from search.dimensions import Dimension, choices, dimensions
from search.draft_of_point import Drafts, fitted
from search.goal import AGREED, Goal
from search.job import COSTS, Finals, Searcher, SearchJob
from search.replay import rule_tuner
from search.study.loop import Budget
from search.study.pruning import WilcoxonPruning
from selfspec.data.prompts import Prompt
from selfspec.drafters.spec import DraftSpec
from selfspec.errors import InputError
from selfspec.models.load import Loaded
from selfspec.records import provenance
from selfspec.targets import TARGET, find_class

log = logging.getLogger(__name__)

ALL = 1_000_000  # prompts; null would keep the file's order, so the seed would select nothing


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a search that need no model; their mistakes are found before a model is loaded.

    Attributes:
        goal, budget, pruning, finals, searcher: the fields of the job with these names.
        dimensions: dimensions of its space.
        drafts: settings of the drafts, with nothing fitted.
    """

    goal: Goal
    dimensions: tuple[Dimension, ...]
    drafts: Drafts
    budget: Budget
    pruning: WilcoxonPruning | None
    finals: Finals
    searcher: Searcher


def search_job(cfg: DictConfig, *, resumed: Path | None = None) -> tuple[SearchJob, Loaded, dict[str, Any]]:
    """The job of a configuration, the model with its tokenizer, and the facts for provenance.

    Args:
        cfg: configuration of a search.
        resumed: folder of the run to resume.

    Raises:
        InputError: if the settings contradict each other or the model.
    """
    a = asked(cfg)
    loaded = build.model(cfg)
    split = _split(cfg, loaded, needs_texts=a.drafts.needs_texts(a.dimensions))
    c = cfg.calibration
    drafts = fitted(
        a.drafts,
        loaded.decoder,
        split.rest,
        dimensions=a.dimensions,
        n_tokens=c.n_tokens,
        max_new_tokens=c.max_new_tokens,
    )
    kept = resumed / COSTS if resumed else None
    costs, context = None, 0
    if a.goal.uses_costs or (kept and kept.exists()):
        costs = draft_costs(cfg, loaded, drafts, a.dimensions, kept=kept)
        context = costs.table.contexts[0]
        drafts = replace(drafts, price=_pricing(costs, context))
        _check_contexts(cfg, loaded, costs, split)
    job = SearchJob(
        decoder=loaded.decoder,
        prompts=_ids(split.search),
        fresh=_ids(split.finals),
        drafts=drafts,
        costs=costs,
        goal=a.goal,
        space=capped_space(
            loaded.decoder, a.dimensions, dict(cfg.constraints.items()), drafts=drafts, costs=costs, context=context
        ),
        searcher=a.searcher,
        budget=a.budget,
        pruning=a.pruning,
        finals=a.finals,
        starts=tuple(cfg.starts),
        ladder=[dict(part) for part in cfg.get("ladder") or ()],
        start_from=[Path(p).expanduser() for p in ([cfg.start] if isinstance(cfg.start, str) else cfg.start or ())],
        force=cfg.force,
        identity=_identity(cfg, a.drafts, loaded),
        storage=cfg.storage,
        worker=cfg.worker,
        **({"name": cfg.name} if cfg.storage else {}),
    )
    return job, loaded, _facts(cfg, job, loaded, split)


def asked(cfg: DictConfig) -> Asked:
    """The parts of a search that need no model.

    Raises:
        InputError: if a setting is impossible or would have no effect.
    """
    o, s = cfg.objective, cfg.searcher
    goal = Goal(
        o.name,
        o.max_new_tokens,
        tune_stop=o.get("tune_stop", False),
        combine=o.combine,
        **({"batch_starts": o.batch_starts} if "batch_starts" in o else {}),
    )
    drafts = _drafts(cfg)
    settings = OmegaConf.to_container(cfg.space) if cfg.get("space") else {}
    own = {f"stop.{key}": value for key, value in drafts.stop.to_dict().items()}  # default values of ranges
    dims = dimensions(settings, own=own) if settings else ()  # type: ignore[arg-type]
    _check_kinds(dims, cfg)
    _check_space(dims, drafts, goal)
    _check_lookup(dims, drafts)
    _check_drafter(drafts, goal)
    check_given(cfg, drafts, dims, goal)
    if goal.tune_stop:
        rule_tuner.variants(drafts.stop)
    if cfg.worker and not cfg.storage:
        raise InputError(f"worker={cfg.worker} shares a search with others, but storage names no place to meet")
    return Asked(
        goal,
        dims,
        drafts,
        Budget(s.n_trials, s.max_s, s.patience),
        WilcoxonPruning(**cfg.prune) if cfg.prune else None,
        Finals(cfg.finals.top, cfg.finals.race, cfg.pause),
        searcher(s),
    )


def searcher(cfg: DictConfig) -> Searcher:
    """The searcher that the group `searcher` describes."""
    computed = build.instance(cfg.computed) if cfg.get("computed") else None
    return Searcher(cfg.name, build.instance(cfg.sampler), cfg.seed, cfg.encoding, computed)


def _drafts(cfg: DictConfig) -> Drafts:
    d = cfg.draft
    return Drafts(
        build.stop(cfg),
        d.kind,
        merge=d.merge,
        rank=d.rank,
        head=cfg.head.n,
        precision=cfg.precision,
        lookup=cfg.lookup,
        memory=cfg.memory,
        drafter=build.own_drafter(cfg),
        tree=build.tree(cfg),
        other_heads=tuple(cfg.head.others) if cfg.head.n is not None else (),
    )


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
        raise InputError(f"objective=matchness does not see space.{idle[0]}; leave it out, or use another objective")
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


@dataclass(frozen=True, slots=True)
class _Split:
    """The calibration prompts by purpose; `rest` holds the token ids of the prompts that drafts are fitted on."""

    search: Mapping[str, list[Prompt]]
    finals: Mapping[str, list[Prompt]]
    rest: list[list[int]]


def _split(cfg: DictConfig, loaded: Loaded, *, needs_texts: bool) -> _Split:
    """The calibration prompts of every data set, split between search, finals and fitting."""
    o, n_fresh = cfg.objective, cfg.finals.n_prompts if cfg.finals.top else 0
    split = _Split({}, {}, [])
    for data in _data_sets(cfg):
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
        split.rest.extend(p.ids for p in found[n + n_finals :])
        split.search[data.data.name], split.finals[data.data.name] = found[:n], found[n : n + n_finals]  # type: ignore[index]
    return split


def _data_sets(cfg: DictConfig) -> list[DictConfig]:
    """One configuration for each data set of the objective: the run's own, and those of `objective.data`."""
    names = cfg.objective.data
    if not names:
        return [cfg]
    found = []
    for name in names:
        if name == cfg.data.name:
            found.append(cfg)
            continue
        other = cfg.copy()
        other.data = option("data", name)
        found.append(other)
    return found


def _shares(data: str, n_found: int, n_search: int, n_finals: int) -> tuple[int, int]:
    """Numbers of prompts for the search and for its finals; drafts are fitted on the other prompts.

    If no prompt would be left for fitting, search and finals get at most an equal share each, with a warning.
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


def _ids(prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, list[list[int]]]:
    return {name: [p.ids for p in found] for name, found in prompts.items()}


def _check_contexts(cfg: DictConfig, loaded: Loaded, costs: DraftCosts, split: _Split) -> None:
    """Refuse a given table if its seconds are impossible at the context lengths of these prompts."""
    if cfg.costs.path or cfg.costs.get("table"):
        lengths = [len(p.ids) for found in split.search.values() for p in found]
        costs.table.check(
            f"costs of {cfg.model.name}",
            n_layers=loaded.decoder.n_layers,
            contexts=(min(lengths), max(lengths) + cfg.objective.max_new_tokens),
        )


def _pricing(costs: DraftCosts, context: int) -> Callable[[DraftSpec], DraftSpec]:
    """A function that adds the costs of nodes on this machine to the tree of a spec."""

    def price(spec: DraftSpec) -> DraftSpec:
        if rule_tuner.is_priced(spec):
            return spec
        table = costs.for_plan(spec.plan)
        return rule_tuner.priced(spec, draft_cost=table.draft_cost(spec.plan, context), costs=table, context=context)

    return price


def _identity(cfg: DictConfig, drafts: Drafts, loaded: Loaded) -> dict[str, Any]:
    """Values that must be equal for a run to resume a search; the model in a folder may have changed since then."""
    same = ("model", "data", "stop", "objective", "constraints", "draft", "head", "calibration")
    found = {key: provenance.digest(str(under_first_names(cfg[key]))) for key in same}
    found |= {"searcher": cfg.searcher.name, "seed": cfg.searcher.seed}
    found |= {"lookup": cfg.lookup} if cfg.lookup else {}
    found |= {"precision": cfg.precision} if cfg.precision != "same" else {}
    found |= {"memory": str(cfg.memory)} if cfg.memory else {}
    found |= {"drafter": provenance.digest(str(drafts.drafter))} if drafts.drafter else {}
    found |= {"tree": provenance.digest(str(drafts.tree.to_dict()))} if drafts.tree else {}
    weights = loaded.facts["weights"]
    if weights["origin"] == "path":  # the configuration and the hub's cache pin the other models
        found["weights"] = str(weights["sha256"])
    return found


def _facts(cfg: DictConfig, job: SearchJob, loaded: Loaded, split: _Split) -> dict[str, Any]:
    drafts = job.drafts
    return build.facts(
        cfg,
        loaded,
        searcher=cfg.searcher.name,
        objective=job.goal.name,
        stop=build.stop_name(drafts.stop),
        draft=cfg.draft.kind,
        head=cfg.head.n,
        precision=cfg.precision,
        lookup=cfg.lookup,
        memory=None if drafts.memory is None else len(drafts.memories[drafts.memory]),
        calibration_tokens=None if drafts.fits is None else drafts.fits.observed.n_tokens,
        n_prompts=sum(map(len, split.search.values())),
        prompt_ids=[p.example.id for found in split.search.values() for p in found],
        fresh_ids=[p.example.id for found in split.finals.values() for p in found],
        seed=cfg.searcher.seed,
        **({"space": [d.name for d in job.space.dimensions]} if job.space.dimensions else {}),
        **({"drafter": drafts.drafter[TARGET]} if drafts.drafter else {}),
        **({"tree": drafts.tree.to_dict()} if drafts.tree else {}),
    )
