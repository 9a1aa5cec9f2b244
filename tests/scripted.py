"""Searches without a model: an objective whose best skip set is known, and a clock that only ticks.

`python -m tests.scripted FOLDER N_TRIALS SECONDS_PER_TRIAL` runs such a search, for a test that kills it.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search.objective import Score, ShouldContinue
from search.point import Point
from search.samplers import optuna_samplers
from search.samplers.base import Exhausted
from search.space import Space
from search.starts import warm_starts
from search.study.loop import Found, run_search
from search.study.study import SearchStudy
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet

N_LAYERS = 4
WEIGHTS = (0.9, -0.7, 0.5, -0.4, 0.3, -0.25, 0.15, -0.1)  # of the bits of 4 layers; all 256 sums differ but a few
ROWS, JOURNAL = "trials.jsonl", "study.journal"
TIMES = ("seconds", "elapsed_s")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows without what time makes of them."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(folder / ROWS)]


def planted(skip: SkipSet) -> float:
    """An additive value: each sublayer helps or hurts by itself."""
    return sum(weight for weight, bit in zip(WEIGHTS, skip.bits(), strict=True) if bit)


def score(value: float) -> Score:
    """A score of that value, with counts that fit together."""
    return Score(value, n_tokens=10, n_rounds=4, drafted=8, accepted=6, seconds=0.5)


class Listed(BaseSampler):
    """Proposes a list of sets after the first trial, and has no more."""

    def __init__(self, seed: int, *, sets: Sequence[str]) -> None:
        self._sets = sets

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict.fromkeys(Space(N_LAYERS).names, CategoricalDistribution([False, True]))

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, bool]:
        n_told = sum(t.state.is_finished() for t in study.trials)
        if n_told > len(self._sets):
            raise Exhausted
        return dict(zip(search_space, SkipSet.parse(self._sets[n_told - 1], N_LAYERS).bits(), strict=True))

    def sample_independent(self, *args: Any) -> Any:
        raise NotImplementedError


@dataclass
class Scripted:
    """Scores by `value`, fails where `fails` says so, and remembers what it was asked.

    Where there are `prompts`, the value is the mean of theirs, and after each the search is asked whether to go on.
    """

    value: Callable[[SkipSet], float] = planted
    fails: Callable[[SkipSet], bool] = lambda skip: False
    prompts: Callable[[SkipSet], Sequence[float]] | None = None
    sleep_s: float = 0.0
    calls: list[str] = field(default_factory=list)
    n_prompts: int = 0  # that were scored
    name: str = "planted"
    unit: str = "points"

    def __call__(self, draft: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        skip = Point.from_draft(draft).skip
        self.calls.append(str(skip))
        time.sleep(self.sleep_s)
        if self.fails(skip):
            raise RuntimeError(f"cannot score {skip}\nbecause the script says so")
        if self.prompts is None:
            return score(self.value(skip))
        every, values = self.prompts(skip), []
        for value in every:
            values.append(value)
            self.n_prompts += 1
            if should_continue and not should_continue(values):
                break
        pruned = len(values) < len(every)
        return replace(score(fmean(values)), values=tuple(values), pruned=pruned)


def ticking() -> Stopwatch:
    """A stopwatch that is a second later each time it is read."""
    return Stopwatch(clock=itertools.count().__next__)


def tpe(seed: int) -> Any:
    """A sampler that soon stops being random."""
    return optuna_samplers.tpe(seed, n_startup_trials=4)


def run(folder: Path, n_trials: int, objective: Scripted, *, seed: int = 0, **changes: Any) -> Found:
    """Search in `folder`, or go on there; `changes` go to `run_search`, but for `space` and `sampler`."""
    space, sampler = changes.pop("space", Space(N_LAYERS)), changes.pop("sampler", tpe)
    study = SearchStudy(space, sampler, seed=seed, identity={"objective": objective.name}, journal=folder / JOURNAL)
    starts = warm_starts(space, ("nothing", "uniform", "attention"))
    settings: dict[str, Any] = {"starts": starts, "stopwatch": ticking()} | changes
    return run_search(space, objective, study, n_trials=n_trials, seed=seed, rows_path=folder / ROWS, **settings)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), Scripted(sleep_s=float(sys.argv[3])))
