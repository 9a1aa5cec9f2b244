"""The values that a search job is made of, and what comes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from search.costs.table import CostTable
from search.importance import SpeedupBound
from search.ladder import Rung
from search.point import Point
from search.replay.references import Reference
from search.study.finals import Raced
from search.study.loop import Found
from search.study.study import Encoding, MakeSampler
from selfspec.drafters.spec import DraftSpec
from selfspec.errors import InputError
from selfspec.measure.phases import Step, unwatched
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Searcher:
    """Who proposes skip sets.

    Attributes:
        name: in messages and records.
        sampler: makes an Optuna sampler from `seed=`, and from `sets=` where `computed` is given.
        seed: of the whole search.
        encoding: what the sampler sees, see `SearchStudy`.
        computed: makes the sets that the sampler proposes, from the model, what it says after the calibration prompts,
            and `costs=` if it has such a parameter; None: the sampler needs none.
    """

    name: str
    sampler: Callable[..., Any]
    seed: int = 0
    encoding: Encoding = "bits"
    computed: Callable[..., Sequence[SkipSet]] | None = None

    def compute(
        self, decoder: Decoder, texts: Sequence[Reference], table: CostTable | None = None
    ) -> list[SkipSet] | None:
        """The sets that `computed` makes; None where there is nothing to compute.

        Raises:
            InputError: if it needs costs and there is no table.
        """
        if self.computed is None:
            return None
        if "costs" not in inspect.signature(self.computed).parameters:
            return list(self.computed(decoder, texts))
        if table is None:
            raise InputError(
                f"searcher={self.name} computes its sets from measured costs, which this objective does not measure; "
                "use objective=expected_speedup"
            )
        return list(self.computed(decoder, texts, costs=table))

    def maker(self, sets: Sequence[SkipSet] | None = None) -> MakeSampler:
        """What makes the sampler from a seed; `sets` are those that it proposes, if they were computed."""
        make = self.sampler if sets is None else partial(self.sampler, sets=sets)
        return lambda seed: make(seed=seed)  # some of Optuna's take it by name alone


@dataclass(frozen=True, slots=True)
class Finals:
    """How a search ends.

    Attributes:
        top: the best points that are scored anew on fresh prompts; 0: no finals, the best trial wins.
        race: of them that are decoded with, in turn with plain decoding, by the clock.
        n_raced: fresh prompts of each data set that the race decodes, the first ones; None: all that are scored.
        pause: their stop rule drafts nothing while drafts cost more than they give, by the measured costs.

    Raises:
        InputError: for a negative number, or a race of nobody.
    """

    top: int = 6
    race: int = 3
    pause: bool = True
    n_raced: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("top", 0), ("race", 1)):
            if getattr(self, name) < least:
                raise InputError(f"finals.{name}={getattr(self, name)}; give {least} or more")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What came of a search.

    Attributes:
        found: the best trial, and how the search went.
        verdict: whether plain skipping may pay at all; None where the starts do not allow one.
        raced: the finals, the winner first; empty without finals.
        rows: of all trials.
        unit: of their values.
        spec: the draft that won: that of the race, or of the best trial.
        rungs: of the ladder, if there was one.
    """

    found: Found
    verdict: SpeedupBound | None
    raced: list[Raced]
    rows: list[Row]
    unit: str
    spec: DraftSpec
    rungs: Sequence[Rung] = ()

    @property
    def winner(self) -> Raced | None:
        """Who won the race, if there was one."""
        return self.raced[0] if self.raced else None

    @property
    def point(self) -> Point:
        """The winner's point, or the best trial's."""
        return self.winner.finalist.point if self.winner else self.found.point


class SearchListener:
    """Is told how a search goes on; a subclass writes what it wants to hear."""

    def begin(self, rows: Sequence[Row], unit: str) -> None:
        """The trials of earlier sittings and other workers, before the first trial."""

    def trial(self, row: Row) -> None:
        """A finished trial."""

    def searched(self, found: Found, verdict: SpeedupBound | None, rungs: Sequence[Rung]) -> None:
        """The search is over, and the finals have not begun."""

    def phase(self, name: str, total: int) -> AbstractContextManager[Step]:
        """A phase that is neither trials nor race, as references and costs; see `Phases`."""
        return unwatched(name, total)

    def race(self, n_done: int, n_prompts: int) -> None:
        """Prompts that are raced on, from 0 on."""
