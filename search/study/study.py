"""The study of a search: an Optuna study in memory, mirrored to a storage.

Every `suggest` on a shared storage is a write. The study that proposes is therefore in memory, and each finished trial
is copied to the storage as a whole. All memory of a sampler is in its trials, and for each trial the sampler is made
anew from (seed, worker, number of trials): a study from a storage continues like an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from search.constraints import Constraints
from search.dimensions import Choice, Dimension
from search.objective import Score
from search.point import Point, Value
from search.samplers.base import Bits, BitSampler
from search.space import Space
from search.study.workers import Claims, Sharing, open_storage, open_study, shown
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

Origin = Literal["start", "searcher"]
Encoding = Literal["bits", "floats"]
MakeSampler = Callable[[int], BaseSampler]

logger = logging.getLogger(__name__)

STUDY_NAME = "search"
LOCK_S = 3  # wait for the lock of a killed search: Optuna's minimum; a write takes milliseconds


@dataclass(slots=True)
class Proposal:
    """A point to score."""

    point: Point
    origin: Origin
    trial: Trial | None

    @property
    def skip(self) -> SkipSet:
        """Skip set of the point."""
        return self.point.skip


class SearchStudy:
    """Asks a sampler for points, and records finished trials.

    Args:
        space: the search space.
        make_sampler: function from a seed to an Optuna sampler.
        seed: seed of the whole search.
        identity: facts that must be equal for a study to belong to this search (model, objective, ...).
        journal: file for the trials of a search with one worker; None: no file.
        encoding: what the sampler sees: `bits`: booleans, and each dimension as it is; `floats`: numbers in [0, 1],
            where those above ½ mean true and the values of a dimension have equal parts.
        storage: common storage of several workers, instead of a journal: see `open_storage`.
        sharing: number and timing of this worker.
        name: name of the study in its storage.

    Raises:
        InputError: if the study there belongs to another search, or the storage cannot be opened.
    """

    def __init__(
        self,
        space: Space,
        make_sampler: MakeSampler,
        *,
        seed: int,
        identity: Mapping[str, Any] | None = None,
        journal: Path | None = None,
        encoding: Encoding = "bits",
        storage: str | Path | None = None,
        sharing: Sharing | None = None,
        name: str = STUDY_NAME,
    ) -> None:
        if journal and storage:
            raise InputError(f"journal={journal} and storage={shown(storage)}; a study has one of them: leave out one")
        self.space = space
        self._make_sampler = make_sampler
        self._worker = (sharing or Sharing()).worker
        self._seed = seed
        self._memory = InMemoryStorage()
        self._study = optuna.create_study(direction="maximize", sampler=make_sampler(seed), storage=self._memory)
        kind: BaseDistribution = (
            CategoricalDistribution([False, True]) if encoding == "bits" else FloatDistribution(0, 1)
        )
        self._encoding = encoding
        self._distributions = dict.fromkeys(space.names, kind) | {d.name: self._kind(d) for d in space.dimensions}
        self._mirror: optuna.Study | None = None
        self._claims: Claims | None = None
        self._place: int | None = None
        self._by_place: dict[int, FrozenTrial] = {}
        self._n_read = 0
        if where := storage or journal:
            opened = open_storage(where) if storage else open_storage(where, lock_s=LOCK_S)
            mine = {**(identity or {}), "n_layers": space.n_layers}
            mine |= {"space": str(space.dimensions)} if space.dimensions else {}
            self._mirror = open_study(opened, name, mine, shown(where))
            if storage:
                self._claims = Claims(opened, name, sharing or Sharing())
            self._read()

    @property
    def trials(self) -> list[FrozenTrial]:
        """Finished trials in the order of their records, failed ones included."""
        return [t for t in self._study.get_trials(deepcopy=False) if "skip" in t.user_attrs]

    def point(self, trial: FrozenTrial) -> Point:
        """The point of a finished trial."""
        return Point.from_row(trial.user_attrs, self.space.n_layers)

    def sync(self) -> None:
        """Read the finished trials of other workers."""
        if self._claims:
            self._read()

    def claim(self, n_trials: int) -> int | None:
        """Claim one of `n_trials` places for this worker.

        Returns:
            The first place that is neither finished nor claimed by a living worker; None if all are finished. While
            other workers run the last places this waits, since those workers may die.
        """
        if self._claims:
            self._place = self._claims.take(n_trials, self._finished)
        else:
            place = len(self.trials)
            self._place = place if place < n_trials else None
        return self._place

    def claim_finals(self) -> None:
        """Claim the finals until `release`, so that no other worker of this number begins meanwhile."""
        if self._claims:
            self._claims.take_finals()

    def release(self, reason: str = "its worker gave it up") -> None:
        """Release the claimed place for other workers; no effect if its trial is finished."""
        self._place = None
        if self._claims:
            self._claims.release(reason)

    def ask(self, settings: Mapping[str, Value] | None = None) -> Proposal:
        """The sampler's next point; where the space has constraints, the nearest one that meets them.

        Args:
            settings: of the other dimensions, where the searcher knows skip sets alone; by default their defaults.
        """
        seed = (self._seed * 1_000_003 + self._worker * 15_485_863 + len(self.trials)) % 2**31
        self._study.sampler = self._make_sampler(seed)
        knows_bits_alone = isinstance(self._study.sampler, BitSampler)
        if isinstance(self._study.sampler, BitSampler):
            if self.space.constraints != Constraints():
                self._study.sampler.project = self._project
            if settings:
                values = self.space.defaults | dict(settings)
                self._study.sampler.others = {name: self._encoded(name, value) for name, value in values.items()}
        trial = self._study.ask(fixed_distributions=self._distributions)
        proposed = {d.name: self._decoded(d, trial.params[d.name]) for d in self.space.dimensions}
        skip = self.space.skip(trial.params)
        point = self.space.allowed(self.space.point(skip, settings if knows_bits_alone else proposed))
        # The trial stays the same one: CMA-ES has its memory there. What is as it was proposed keeps its number.
        was = dict(zip(self.space.names, skip.bits(), strict=True)) | proposed
        for name, value in self._values(point).items():
            if value != was[name]:
                kind = self._distributions[name]
                inner = kind.to_internal_repr(self._encoded(name, value))
                self._memory.set_trial_param(trial._trial_id, name, inner, kind)
        return Proposal(point, "searcher", trial)

    def start(self, point: Point | SkipSet) -> Proposal:
        """A proposal that the searcher did not make; other dimensions of a skip set have their defaults."""
        return Proposal(self.space.point(point) if isinstance(point, SkipSet) else point, "start", None)

    def tell(self, proposal: Proposal, score: Score | None, **facts: Any) -> FrozenTrial:
        """Record a trial: the `score` of `proposal.point`, or a failure (None). `facts` become attributes of the trial.

        Returns:
            The recorded trial of the claimed place. It is another worker's if this one gave no sign of life for so long
            that its place was released and finished.
        """
        place = self._place
        if self._claims:
            assert place is not None, "claim a place before you record a trial in a shared study"
            self.sync()
            if place in self._by_place:
                return self._came_second(place)
            facts = {**facts, "place": place, "worker": self._worker}
        recorded = self._remember(proposal, score, facts)
        self._by_place[len(self._by_place) if place is None else place] = recorded
        if self._mirror:
            self._mirror.add_trial(recorded)
        if self._claims:
            self._claims.close()
        self._place = None
        return recorded

    @property
    def is_shared(self) -> bool:
        """Whether several workers meet in the storage of this study."""
        return self._claims is not None

    def restore(self, row: Mapping[str, Any]) -> FrozenTrial:
        """Record a trial again from its row."""
        scored = {f.name: row[f.name] for f in fields(Score) if row.get(f.name) is not None}
        scored |= {"values": tuple(row.get("values") or ()), "pruned": row["state"] == "pruned"}
        score = None if row["state"] == "failed" else Score(**scored)
        facts = {name: row.get(name) for name in ("elapsed_s", "seed", "reason")}
        return self.tell(Proposal(Point.from_row(row, self.space.n_layers), row["origin"], None), score, **facts)

    def _remember(self, proposal: Proposal, score: Score | None, facts: Mapping[str, Any]) -> FrozenTrial:
        """Add the finished trial to the study in memory, and return it."""
        attrs = {
            "skip": str(proposal.skip),
            "attn": sorted(proposal.skip.attn),
            "mlp": sorted(proposal.skip.mlp),
            **({"settings": dict(proposal.point.settings)} if self.space.dimensions else {}),
            "origin": proposal.origin,
            **({**score.to_dict(), "values": list(score.values)} if score else {}),
            **facts,
        }
        state = TrialState.FAIL if score is None else TrialState.PRUNED if score.pruned else TrialState.COMPLETE
        value = score.value if score else None
        # Optuna takes the value of a pruned trial from its last report.
        step = len(score.values) if score and score.pruned else None
        if proposal.trial is None:
            params = {name: self._encoded(name, value) for name, value in self._values(proposal.point).items()}
            trial = create_trial(
                params=params,
                distributions=self._distributions,
                value=value,
                state=state,
                user_attrs=attrs,
                intermediate_values=None if step is None or value is None else {step: value},
            )
            self._study.add_trial(trial)
            return self._study.get_trials(deepcopy=False)[-1]
        for key, attr in attrs.items():
            proposal.trial.set_user_attr(key, attr)
        if step is not None and value is not None:
            proposal.trial.report(value, step)
        self._study.tell(proposal.trial, value if state == TrialState.COMPLETE else None, state=state)
        return self._memory.get_trial(proposal.trial._trial_id)

    def _came_second(self, place: int) -> FrozenTrial:
        first = self._by_place[place]
        logger.warning(
            "trial %d was finished by worker %s meanwhile; what this worker found is left out",
            place,
            first.user_attrs.get("worker"),
        )
        self.release()
        return first

    def _read(self) -> None:
        assert self._mirror
        theirs = self._mirror.get_trials(deepcopy=False)
        for trial in theirs[self._n_read :]:
            place = int(trial.user_attrs.get("place", trial.number))
            if place not in self._by_place:  # otherwise it is this worker's own, or came second
                self._study.add_trial(trial)
                self._by_place[place] = trial
        self._n_read = len(theirs)

    def _finished(self) -> Mapping[int, FrozenTrial]:
        self.sync()
        return self._by_place

    def _project(self, bits: Bits) -> Bits:
        return self.space.project(SkipSet.from_bits(bits)).bits()

    def _values(self, point: Point) -> dict[str, Value]:
        """Values by parameter: the bits, and every dimension; inactive ones have their defaults."""
        bits = dict(zip(self.space.names, point.skip.bits(), strict=True))
        return {**bits, **self.space.defaults, **point.settings}

    def _kind(self, d: Dimension) -> BaseDistribution:
        """Optuna's distribution of a dimension."""
        if self._encoding == "floats":
            return FloatDistribution(0, 1)
        if isinstance(d.domain, Choice):
            return CategoricalDistribution(d.domain.values)
        if d.domain.is_whole:
            return IntDistribution(int(d.domain.low), int(d.domain.high), log=d.domain.log)
        return FloatDistribution(d.domain.low, d.domain.high, log=d.domain.log)

    def _decoded(self, d: Dimension, value: Any) -> Value:
        """The value of a dimension from the sampler's value."""
        found: Value = d.domain.at(value) if self._encoding == "floats" else value
        return found

    def _encoded(self, name: str, value: Value) -> Value:
        """The sampler's value of a parameter: the value itself, or the middle of its part of [0, 1]."""
        if self._encoding == "bits":
            return value
        dimension = next((d for d in self.space.dimensions if d.name == name), None)
        if dimension is None:
            return 0.75 if value else 0.25
        return dimension.domain.place(value)
