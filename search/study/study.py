"""The memory of a search: an Optuna study of points, kept in memory and mirrored to a storage.

Every `suggest` on a shared storage is a write, so the study that is asked lives in memory and each finished trial is
copied to the storage in one piece. What a sampler remembers lies in its trials, so a study read back from its storage
goes on as if it had never stopped: for each trial the sampler is made anew from (seed, worker, number of trials).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
LOCK_S = 3  # how long a killed search's lock is waited for: Optuna's least; one write takes milliseconds


@dataclass(slots=True)
class Proposal:
    """A point to be scored."""

    point: Point
    origin: Origin
    trial: Trial | None

    @property
    def skip(self) -> SkipSet:
        """Its skip set."""
        return self.point.skip


class SearchStudy:
    """Asks a sampler for points and tells it what was run.

    Args:
        space: what is searched.
        make_sampler: from a seed to an Optuna sampler.
        seed: of the whole search.
        identity: what must be equal for a study to belong to this search (model, objective, ...).
        journal: where the finished trials of a search by one worker are mirrored; None: nowhere.
        encoding: what the sampler sees: booleans, and each dimension as it is (`bits`); or numbers in [0, 1] of which
            those above ½ are true, and a dimension's values have equal parts (`floats`, for samplers of numbers).
        storage: where several workers meet, instead of a journal: see `open_storage`.
        sharing: which of them this is.
        name: of the study in its storage.

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
        """Finished trials, in the order in which they were told; failed ones included."""
        return [t for t in self._study.get_trials(deepcopy=False) if "skip" in t.user_attrs]

    def point(self, trial: FrozenTrial) -> Point:
        """What a finished trial ran."""
        return Point.from_row(trial.user_attrs, self.space.n_layers)

    def sync(self) -> None:
        """Read what other workers finished."""
        if self._claims:
            self._read()

    def claim(self, n_trials: int) -> int | None:
        """Take a place among `n_trials`, which is then nobody else's.

        Returns:
            Its number, the first that is neither finished nor run by a living worker; or None, once all are finished:
            while other workers run the last ones this waits, since they may die.
        """
        if self._claims:
            self._place = self._claims.take(n_trials, self._finished)
        else:
            place = len(self.trials)
            self._place = place if place < n_trials else None
        return self._place

    def release(self, reason: str = "its worker gave it up") -> None:
        """Give the claimed place back to whoever comes next; without effect if its trial was told."""
        self._place = None
        if self._claims:
            self._claims.release(reason)

    def ask(self) -> Proposal:
        """The sampler's next point; where the space has constraints, the nearest one that meets them.

        A searcher that knows skip sets alone leaves the other dimensions at their defaults.
        """
        seed = (self._seed * 1_000_003 + self._worker * 15_485_863 + len(self.trials)) % 2**31
        self._study.sampler = self._make_sampler(seed)
        if isinstance(self._study.sampler, BitSampler) and self.space.constraints != Constraints():
            self._study.sampler.project = self._project
        knows_bits_alone = isinstance(self._study.sampler, BitSampler)
        trial = self._study.ask(fixed_distributions=self._distributions)
        proposed = {d.name: self._decoded(d, trial.params[d.name]) for d in self.space.dimensions}
        skip = self.space.skip(trial.params)
        point = self.space.allowed(self.space.point(skip, None if knows_bits_alone else proposed))
        # The trial stays the same one: CMA-ES has its memory there. What is as it was proposed keeps its number.
        was = dict(zip(self.space.names, skip.bits(), strict=True)) | proposed
        for name, value in self._values(point).items():
            if value != was[name]:
                kind = self._distributions[name]
                inner = kind.to_internal_repr(self._encoded(name, value))
                self._memory.set_trial_param(trial._trial_id, name, inner, kind)
        return Proposal(point, "searcher", trial)

    def start(self, point: Point | SkipSet) -> Proposal:
        """What somebody else chose; of a skip set, with the defaults of the other dimensions."""
        return Proposal(self.space.point(point) if isinstance(point, SkipSet) else point, "start", None)

    def tell(self, proposal: Proposal, score: Score | None, **facts: Any) -> FrozenTrial:
        """Record what was run: `score` of `proposal.point`, or a failure (None). `facts` go into the trial's record.

        Returns:
            The trial on record at the claimed place: another worker's, if this one was so silent that its place was
            given away and finished.
        """
        place = self._place
        if self._claims:
            assert place is not None, "claim a place before a trial is told to a shared study"
            self.sync()
            if place in self._by_place:
                return self._came_second(place)
            facts = {**facts, "place": place, "worker": self._worker}
        told = self._remember(proposal, score, facts)
        self._by_place[len(self._by_place) if place is None else place] = told
        if self._mirror:
            self._mirror.add_trial(told)
        if self._claims:
            self._claims.close()
        self._place = None
        return told

    def _remember(self, proposal: Proposal, score: Score | None, facts: Mapping[str, Any]) -> FrozenTrial:
        """The finished trial, now among those that the sampler learns from."""
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
            if place not in self._by_place:  # else it is this worker's own, or came second
                self._study.add_trial(trial)
                self._by_place[place] = trial
        self._n_read = len(theirs)

    def _finished(self) -> Mapping[int, FrozenTrial]:
        self.sync()
        return self._by_place

    def _project(self, bits: Bits) -> Bits:
        return self.space.project(SkipSet.from_bits(bits)).bits()

    def _values(self, point: Point) -> dict[str, Value]:
        """By parameter: the bits, and every dimension, those not searched at their defaults."""
        bits = dict(zip(self.space.names, point.skip.bits(), strict=True))
        return {**bits, **self.space.defaults, **point.settings}

    def _kind(self, d: Dimension) -> BaseDistribution:
        """How the sampler sees a dimension."""
        if self._encoding == "floats":
            return FloatDistribution(0, 1)
        if isinstance(d.domain, Choice):
            return CategoricalDistribution(d.domain.values)
        if d.domain.is_whole:
            return IntDistribution(int(d.domain.low), int(d.domain.high), log=d.domain.log)
        return FloatDistribution(d.domain.low, d.domain.high, log=d.domain.log)

    def _decoded(self, d: Dimension, value: Any) -> Value:
        """What the sampler's value of a dimension means."""
        found: Value = d.domain.at(value) if self._encoding == "floats" else value
        return found

    def _encoded(self, name: str, value: Value) -> Value:
        """What the sampler is told of a value: itself, or the middle of its part of [0, 1]."""
        if self._encoding == "bits":
            return value
        dimension = next((d for d in self.space.dimensions if d.name == name), None)
        if dimension is None:
            return 0.75 if value else 0.25
        return dimension.domain.place(value)
