"""From the configuration of `selfspec search` to a `SearchJob`, which does not know the configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.builders import build
from experiments.builders.build_costs import check_given, draft_costs
from experiments.builders.build_ladder import Part, laddered, possible
from experiments.builders.build_trained import Trained, find_trained, pinned, refuse_seen, with_trained
from experiments.builders.check_search import check
from experiments.config.composing import option, under_first_names
from search.caps import capped_space
from search.costs.draft_tables import DraftCosts
from search.dimensions import Dimension, dimensions
from search.draft_of_point import Drafts, check_texts, fitted
from search.goal import TIMED, Goal
from search.job import Finals, Searcher, SearchJob
from search.replay import rule_tuner
from search.study.loop import Budget
from search.study.pruning import WilcoxonPruning
from selfspec.data.prompts import Prompt
from selfspec.data.same_prompts import digests_of
from selfspec.drafters.spec import DraftSpec
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.load import Loaded
from selfspec.records import provenance
from selfspec.skipping.plan import PLAIN
from selfspec.stopping import Optimal
from selfspec.targets import TARGET

log = logging.getLogger(__name__)

ALL = 1_000_000  # prompts; null would keep the file's order, so the seed would select nothing


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a search that need no model; their mistakes are found before a model is loaded.

    Attributes:
        goal, budget, pruning, finals, searcher: the fields of the job with these names.
        dimensions: dimensions of its space.
        ladder: values of these that are tried one after another.
        drafts: settings of the drafts, with nothing fitted.
    """

    goal: Goal
    dimensions: tuple[Dimension, ...]
    ladder: Sequence[Part]
    drafts: Drafts
    budget: Budget
    pruning: WilcoxonPruning | None
    finals: Finals
    searcher: Searcher


@dataclass(frozen=True, slots=True)
class Split:
    """The calibration prompts by purpose; `rest` holds the token ids of the prompts that drafts are fitted on."""

    search: Mapping[str, list[Prompt]]
    finals: Mapping[str, list[Prompt]]
    rest: list[list[int]]
    seen: list[str]  # digests of all of these prompts, which no evaluation of the draft may use

    @property
    def judging(self) -> list[Prompt]:
        """The prompts that drafts are judged on."""
        return [p for part in (self.search, self.finals) for found in part.values() for p in found]


@dataclass(frozen=True, slots=True)
class Ready:
    """A search whose settings are checked, with its model and prompts; nothing is computed yet.

    Attributes:
        cfg: its configuration.
        asked: its parts that need no model.
        loaded: the model with its tokenizer.
        split: the calibration prompts by purpose.
        trained: the trained draft that is tried; None: none is.
    """

    cfg: DictConfig
    asked: Asked
    loaded: Loaded
    split: Split
    trained: Trained | None = None

    def facts(self) -> dict[str, Any]:
        """The facts for provenance that are known before anything is computed."""
        cfg, drafts, split = self.cfg, self.asked.drafts, self.split
        return build.facts(
            cfg,
            self.loaded,
            searcher=cfg.searcher.name,
            objective=self.asked.goal.name,
            stop=build.stop_name(drafts.stop),
            draft=drafts.kind,
            head=cfg.head.n,
            precision=cfg.precision,
            lookup=cfg.lookup,
            n_prompts=sum(map(len, split.search.values())),
            prompt_ids=[p.example.id for found in split.search.values() for p in found],
            fresh_ids=[p.example.id for found in split.finals.values() for p in found],
            seen=sorted({*split.seen, *(self.trained.seen if self.trained else ())}),
            seed=cfg.searcher.seed,
            **({"space": [d.name for d in self.asked.dimensions]} if self.asked.dimensions else {}),
            **({"drafter": drafts.drafter[TARGET]} if drafts.drafter else {}),
            **({"tree": drafts.tree.to_dict()} if drafts.tree else {}),
        )

    def job(self, *, kept: Path | None = None, phase: Phases = unwatched) -> SearchJob:
        """The job; what its drafts are made of, and their costs, are computed here or found in the cache.

        Args:
            kept: cost tables of the run to resume, if it has any.
            phase: is told how it goes on.

        Raises:
            InputError: if the settings contradict the model or the costs.
        """
        cfg, a, loaded, split = self.cfg, self.asked, self.loaded, self.split
        c, cache = cfg.calibration, build.cache(cfg, loaded)
        drafts = fitted(
            a.drafts,
            loaded.decoder,
            split.rest,
            dimensions=a.dimensions,
            n_tokens=c.n_tokens,
            max_new_tokens=c.max_new_tokens,
            cache=cache,
            phase=phase,
        )
        costs, context = None, 0
        if a.goal.uses_costs or (kept and kept.exists()):
            costs = draft_costs(cfg, loaded, drafts, a.dimensions, kept=kept, phase=phase)
            context = costs.table.contexts[0]
            drafts = replace(drafts, price=_pricing(costs, context))
            _check_contexts(cfg, loaded, costs, split)
        return SearchJob(
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
            ladder=a.ladder,
            start_from=[Path(p).expanduser() for p in ([cfg.start] if isinstance(cfg.start, str) else cfg.start or ())],
            force=cfg.force,
            identity=_identity(cfg, a.drafts, loaded),
            storage=cfg.storage,
            worker=cfg.worker,
            cache=cache,
            **({"name": cfg.name} if cfg.storage else {}),
        )


def ready(cfg: DictConfig, *, phase: Phases = unwatched) -> Ready:
    """The checked settings, model and prompts of a configuration of a search.

    Args:
        cfg: configuration of a search; that of the result names the trained draft that is tried, so that a resumed
            search tries the same.
        phase: is told how loading goes on.

    Raises:
        InputError: if the settings contradict each other or the model.
    """
    a = asked(cfg)
    loaded = build.model(cfg, phase=phase)
    if a.drafts.drafter and cfg.get("ladder"):
        log.info(
            "drafter=%s is the run's own: there are no parts to try, and sublayers are skipped as they are",
            a.drafts.drafter[TARGET],
        )
    dims, ladder = possible(a.dimensions, a.ladder, drafts=a.drafts, device=loaded.decoder.device)
    a = replace(a, dimensions=dims, ladder=ladder)
    trained = find_trained(cfg, loaded, a.drafts, a.goal)
    with phase("prompts", 0):
        split = _split(cfg, loaded, needs_texts=a.drafts.needs_texts(dims), trained=trained)
        if trained and (n := sum(map(trained.has_seen, split.judging))):
            refuse_seen(cfg, trained, n)
            trained, split = None, _split(cfg, loaded, needs_texts=a.drafts.needs_texts(dims))
    check_texts(a.drafts, dims, split.rest)
    if trained:
        drafts, dims, ladder = with_trained(trained, a.drafts, dims, ladder)
        a = replace(a, drafts=drafts, dimensions=dims, ladder=ladder)
    return Ready(pinned(cfg, trained), a, loaded, split, trained)


def fitted_facts(job: SearchJob) -> dict[str, Any]:
    """The facts for provenance that are known when drafts are fitted."""
    drafts = job.drafts
    return {
        "memory": None if drafts.memory is None else len(drafts.memories[drafts.memory]),
        "calibration_tokens": None if drafts.fits is None else drafts.fits.observed.outline.n_tokens,
    }


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
    with_ladder = laddered(cfg, drafts)
    if drafts.drafter and cfg.get("ladder"):  # whose skip sets are searched as they are
        drafts = replace(drafts, kind=PLAIN)
    own = {f"stop.{key}": value for key, value in drafts.stop.to_dict().items()}  # default values of ranges
    dims = dimensions(with_ladder.space, own=own) if with_ladder.space else ()
    check(dims, drafts, goal, cfg)
    check_given(cfg, drafts, dims, goal)
    if goal.tune_stop:
        rule_tuner.variants(drafts.stop)
    if cfg.worker and not cfg.storage:
        raise InputError(f"worker={cfg.worker} shares a search with others, but storage names no place to meet")
    return Asked(
        goal,
        dims,
        with_ladder.parts,
        drafts,
        Budget(s.n_trials, s.max_s, s.patience),
        WilcoxonPruning(**cfg.prune) if cfg.prune else None,
        Finals(cfg.finals.top, cfg.finals.race, cfg.pause, cfg.finals.n_prompts),
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


def _split(cfg: DictConfig, loaded: Loaded, *, needs_texts: bool, trained: Trained | None = None) -> Split:
    """The calibration prompts of every data set, split between search, finals and fitting.

    A trained draft is judged on prompts that it was not trained on, as far as there are any.
    """
    o, n_fresh = cfg.objective, cfg.finals.n_prompts if cfg.finals.top else 0
    is_replayed = n_fresh and o.name != TIMED
    n_scored = max(n_fresh, cfg.finals.get("n_scored", 0)) if is_replayed else n_fresh  # earlier runs lack it
    split = Split({}, {}, [], [])
    for data in _data_sets(cfg):
        found = build.prompts(
            data,
            loaded,
            "calibration",
            n=ALL if needs_texts or trained else o.n_prompts + n_scored,
            seed=cfg.searcher.seed,
            max_new_tokens=max(o.max_new_tokens, cfg.calibration.max_new_tokens if needs_texts else 0),
        )
        n, n_finals = o.n_prompts, n_scored
        if needs_texts:
            n, n_finals = _shares(data.data.name, len(found), n, n_fresh)
            n_finals += min(n_scored - n_fresh, (len(found) - n - n_finals) // 4)
        found = trained.unseen_first(found) if trained else found
        found = found if needs_texts else found[: n + n_finals]
        split.seen.extend(digests_of(p.example for p in found))
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


def _check_contexts(cfg: DictConfig, loaded: Loaded, costs: DraftCosts, split: Split) -> None:
    """Refuse a given table if its seconds are impossible at the context lengths of these prompts."""
    if cfg.costs.path or cfg.costs.get("table"):
        lengths = [len(p.ids) for found in split.search.values() for p in found]
        costs.table.check(
            f"costs of {cfg.model.name}",
            n_layers=loaded.decoder.n_layers,
            contexts=(min(lengths), max(lengths) + cfg.objective.max_new_tokens),
        )


def _pricing(costs: DraftCosts, context: int) -> Callable[[DraftSpec], DraftSpec]:
    """A function that adds the costs on this machine to the tree of a spec, or to the rule of its trained head."""

    def price(spec: DraftSpec) -> DraftSpec:
        rule = spec.stop
        if spec.plan.trained is not None and isinstance(rule, Optimal):  # its costs are those of this machine
            table = costs.for_plan(spec.plan)
            more = rule_tuner.verify_cost(table, rule.max_draft, context=context)
            cost = table.draft_cost(spec.plan, context)
            return replace(spec, stop=replace(rule, draft_cost=cost, verify_cost=more))
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
