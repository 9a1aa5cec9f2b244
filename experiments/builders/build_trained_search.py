"""From the configuration of `selfspec search recipe=trained` to a `TrainedJob`, and from a point to its draft."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from experiments.builders import build, build_bridged, build_costs, build_training
from experiments.builders.build_search import ALL, searcher
from experiments.config.composing import option
from search.costs.head_costs import round_costs
from search.dimensions import Dimension, dimensions
from search.fitting.bridge_fitting import BridgeFitter
from search.job_parts import Finals
from search.point import Value
from search.study.loop import Budget
from search.trained.job import TrainedJob
from search.trained.objective import Candidate, Settings
from search.trained.study import Rungs
from selfspec.data.prompts import Prompt
from selfspec.data.same_prompts import example_digests
from selfspec.errors import InputError, unknown_name
from selfspec.heads.modules import build_module, size_of
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.load import Loaded
from selfspec.records import provenance
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.rounding import check_kernel
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import StopPolicy
from selfspec.training.bridged import LAYER, Bridged
from selfspec.training.heldout import RoundCosts
from selfspec.training.store import Store, seen_by
from selfspec.training.trainer import Training

NAMES = ("drafter", "width", "features", "depths", "skip", "adapter", "vocabulary", "precision")
NONE, FULL, MIDDLE = "none", "full", "middle"  # words for no adapter, all tokens, and the middle third of the layers
# settings of the verb that this search reads
READS = (
    *("recipe", "name", "threads", "model", "data", "paths", "tracker", "searcher", "finals", "training", "space"),
    *("lookup", "memory", "costs", "stop", "resume"),
)


def check_words(overrides: Sequence[str]) -> None:
    """Refuse settings that a search over trained drafts does not read.

    Raises:
        InputError: for the first of them.
    """
    for word in overrides:
        name = word.partition("=")[0].lstrip("+~").partition(".")[0]
        if name not in READS:
            hint = f"; choose it by space.{name}" if name in NAMES else ""
            raise InputError(f"{word} has no effect on recipe=trained, which reads {', '.join(READS)}{hint}")


def space(cfg: DictConfig) -> tuple[Dimension, ...]:
    """The dimensions of the search, checked as far as that is possible without a model.

    Raises:
        InputError: if a name or a value is unknown.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.space) if cfg.space else {}  # type: ignore[assignment]
    found = dimensions(_reachable(settings))
    for d in found:
        if d.name not in NAMES:
            raise unknown_name("dimension (space)", d.name, list(NAMES))
        if d.name == "drafter":
            for value in d.domain.extremes:
                if not option("drafter", str(value)).get("train"):
                    raise InputError(
                        f"space.drafter: {value} is not trained; choose among eagle, blockwise, bridged, ..."
                    )
    return found


def _reachable(space: dict[str, Any]) -> dict[str, Any]:
    """The space without conditions on values that no other dimension has, and without what can then never be chosen."""
    found: dict[str, Any] = {}
    dropped: set[str] = set()
    for name, body in space.items():
        when = dict(body.get("when") or {}) if isinstance(body, dict) else {}
        for other, values in when.items():
            domain = found.get(other)
            chosen = domain.get("values") if isinstance(domain, dict) else domain
            if isinstance(chosen, list):
                when[other] = [v for v in (values if isinstance(values, list) else [values]) if v in chosen]
        if dropped & when.keys() or [] in when.values():
            dropped.add(name)
        else:
            found[name] = {**body, "when": when} if when else body
    return found


@dataclass(frozen=True)
class Points:
    """Makes the draft of a point; what several points share is made once.

    Attributes:
        cfg: configuration of the run.
        loaded: the model.
        stores: its texts.
        phase: is told how maps are fitted.
    """

    cfg: DictConfig
    loaded: Loaded
    stores: Sequence[Store]
    phase: Phases = unwatched

    def __call__(self, settings: Settings) -> Candidate:
        """The draft of a point.

        Raises:
            InputError: if its values exclude each other.
        """
        drafter = _option(str(settings.get("drafter", "eagle")))
        how = self._training(drafter, settings)
        vocabulary_V = self._vocabulary(settings.get("vocabulary", 8192))
        precision = str(settings.get("precision", "same"))
        if precision != "same":
            check_kernel(precision, self.loaded.decoder.device)
        n_layers = self.loaded.decoder.n_layers
        base = DraftPlan(
            SkipSet.from_bits([True] * (2 * n_layers)),
            head=None if len(vocabulary_V) == self.loaded.decoder.n_vocab else vocabulary_V,
            precision=precision,  # type: ignore[arg-type]
            memory=build_training.memory(self.cfg, self.stores),
        )
        controls = {"nothing skipped": replace(base, skip=SkipSet(n_layers))}
        torch.manual_seed(how.seed)
        if drafter.get("adapter") is None:
            kind, own = str(drafter.head.kind), self._head_settings(drafter, settings)
            module = build_module(kind, size_of(self.loaded.decoder, own), own)
            return Candidate(module, base, vocabulary_V, how, controls)
        skip = self._skip(drafter, settings)
        untrained = self._fits.plan(skip)
        adapter = str(settings.get("adapter", drafter.adapter))
        kept = {name: getattr(base, name) for name in ("head", "precision", "memory")}
        if adapter == NONE:
            return Candidate(Bridged(self.loaded.decoder, untrained), base, vocabulary_V, None, controls)
        controls["untrained linear maps"] = replace(untrained, **kept)
        width = settings.get("width") or drafter.get("width")
        plan = build_bridged.begun(
            *(skip, adapter, None if adapter == LAYER or width is None else int(width)),
            loaded=self.loaded,
            fits=self._fits,
            seed=how.seed,
        )
        return Candidate(Bridged(self.loaded.decoder, plan), base, vocabulary_V, how, controls)

    @functools.cached_property
    def _fits(self) -> BridgeFitter:
        return build_bridged.fitter(self.cfg, self.loaded, self.stores, phase=self.phase)

    def _training(self, drafter: DictConfig, settings: Settings) -> Training:
        own = {**_plain(drafter.train), **_plain(self.cfg.training.train)}
        depths = settings.get("depths")
        return Training(**own | ({} if depths is None else {"depths": int(depths)}))

    def _head_settings(self, drafter: DictConfig, settings: Settings) -> dict[str, Any]:
        own, width = _plain(drafter.head.settings), settings.get("width")
        if drafter.head.kind == "blockwise":
            own |= {"k": int(settings["depths"] or own["k"])} if "depths" in settings else {}
            own |= {"inner": int(width)} if width is not None and own.get("form") == "stern" else {}
        elif width is not None:
            own["mlp"] = int(width)
        if "layers" in own and "features" in settings:
            own["layers"] = [-1] if settings["features"] == "last" else build_training.AUTO
        if own.get("layers") == build_training.AUTO:
            own["layers"] = build_training.feature_layers(self.loaded.decoder)
        return own

    def _skip(self, drafter: DictConfig, settings: Settings) -> SkipSet:
        n_layers, asked = self.loaded.decoder.n_layers, settings.get("skip")
        if "keep_first" in drafter:
            return SkipSet.from_bits([i >= 2 * drafter.keep_first for i in range(2 * n_layers)])
        if asked in (None, MIDDLE):
            return SkipSet.from_bits([n_layers // 3 <= i // 2 < n_layers - n_layers // 3 for i in range(2 * n_layers)])
        return build_bridged.named_set(str(asked), self.cfg, self.loaded)

    def _vocabulary(self, n: Value) -> Tensor:
        size = None if n == FULL else int(n)  # type: ignore[arg-type]
        if size not in self._vocabularies:
            self._vocabularies[size] = build_training.vocabulary(size, self.loaded.decoder, self.stores)
        return self._vocabularies[size]

    @functools.cached_property
    def _vocabularies(self) -> dict[int | None, Tensor]:
        return {}


@functools.cache
def _option(drafter: str) -> DictConfig:
    return option("drafter", drafter)


def _plain(settings: Any) -> dict[str, Any]:
    found = OmegaConf.to_container(settings, resolve=True) if settings else {}
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def job(cfg: DictConfig, loaded: Loaded, *, phase: Phases = unwatched) -> tuple[TrainedJob, list[Prompt]]:
    """The search, and the prompts of its race.

    Raises:
        InputError: if a setting is impossible, or no prompts are left that the stores do not hold.
    """
    dims, t = space(cfg), cfg.training
    held = build_training.stores(t.store, cfg, loaded)
    points = Points(cfg, loaded, held, phase)
    table, *_ = build_costs.costs(cfg, loaded, phase=phase)
    decoder = loaded.decoder

    def costs(plan: DraftPlan) -> RoundCosts:
        return round_costs(build_costs.head_costs(cfg, loaded, plan, table, phase=phase), plan)

    s = cfg.searcher
    if s.patience is not None:
        raise InputError("searcher.patience has no effect on recipe=trained; leave it out")
    fresh = _fresh(cfg, loaded, held) if cfg.finals.top else []
    made = TrainedJob(
        decoder=decoder,
        stores=held,
        dimensions=dims,
        make=points,
        costs=costs,
        searcher=searcher(s),
        budget=Budget(s.n_trials, s.max_s),
        rungs=Rungs(t.steps, t.check_every, t.reduction, t.pruner),
        full=_plain(t.full),
        finals=Finals(cfg.finals.top, cfg.finals.race),
        fresh=[p.ids for p in fresh],
        stops=_stops(cfg),
        trees={str(name): build.tree_by_name(str(name)) for name in t.trees},
        lookup=cfg.lookup,
        max_new_tokens=t.max_new_tokens,
        identity={
            "stores": str([s.path.name for s in held]),
            "train": provenance.digest(str(_plain(t.train))),
            "searcher": s.name,
            "seed": s.seed,
        },
    )
    return made, fresh


def _stops(cfg: DictConfig) -> dict[str, StopPolicy]:
    """The stop rules of the race: those of `training.stops`, or the run's own."""
    names = cfg.training.stops
    return {"stop": build.stop(cfg)} if names is None else {str(name): build.stop_by_name(str(name)) for name in names}


def _fresh(cfg: DictConfig, loaded: Loaded, held: Sequence[Store]) -> list[Prompt]:
    """Calibration prompts for the race, none of which the stores hold."""
    seen = seen_by(held)
    found = build.prompts(
        cfg, loaded, "calibration", n=ALL, seed=cfg.searcher.seed, max_new_tokens=cfg.training.max_new_tokens
    )
    left = [p for p in found if seen.isdisjoint(example_digests(p.example))][: cfg.finals.n_prompts]
    if not left:
        raise InputError(
            f"the stores hold all {len(found)} calibration prompts of data={cfg.data.name}, and the race needs others; "
            "collect fewer (n=...), give data with more, or leave the race out (finals.top=0)"
        )
    return left
