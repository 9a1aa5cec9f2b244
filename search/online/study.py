"""The study of a stream: what was tried while decoding, as the trials of a search, for all readers of searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.dimensions import Choice, Dimension
from search.job import JOURNAL
from search.objective import Score
from search.online.tried import Tried
from search.point import Point
from search.samplers.optuna_samplers import random
from search.space import Space
from search.study.loop import row_of
from search.study.study import Proposal, SearchStudy
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet

ARM = "arm"  # the dimension of a portfolio


class OnlineStudy:
    """An Optuna study in a folder, with a row for each trial as a search writes them.

    Args:
        folder: folder of the study; trials that are there stay.
        n_layers: number of layers of the model.
        arms: names of a portfolio's arms, which its trials name in place of skip sets; empty: skip sets.
    """

    def __init__(self, folder: Path, *, n_layers: int, arms: Sequence[str] = ()) -> None:
        dimensions = (Dimension(ARM, Choice(tuple(arms)), arms[0]),) if arms else ()
        self._space = Space(n_layers, dimensions=dimensions)
        self._study = SearchStudy(self._space, _no_sampler, seed=0, journal=folder / JOURNAL)
        self._rows = folder / run_files.TRIALS
        run_files.drop_partial_line(self._rows)
        self._write(len(run_files.read_rows(self._rows)) if self._rows.is_file() else 0)

    @property
    def n_trials(self) -> int:
        """Number of trials there."""
        return len(self._study.trials)

    def add(self, trials: Sequence[Tried]) -> None:
        """Add trials, in order."""
        first = self.n_trials
        for tried in trials:
            score = Score(tried.value, tried.n_read, 1, tried.n_read, tried.n_agreed, tried.seconds, tried.draft_cost)
            proposal = Proposal(self._point(tried), "searcher", None)
            self._study.tell(proposal, score, elapsed_s=tried.elapsed_s, n_tokens_before=tried.n_tokens)
        self._write(first)

    def summary(self) -> dict[str, Any]:
        """The best trial, as a search sums up."""
        best = max(self._study.trials, key=lambda t: float(t.user_attrs["value"]), default=None)
        found = None if best is None else {name: best.user_attrs[name] for name in ("skip", "value")}
        return {"verb": "search", "n_trials": self.n_trials, "ended": "stream", "best": found}

    def _point(self, tried: Tried) -> Point:
        n = self._space.n_layers
        if self._space.dimensions:
            return self._space.point(SkipSet(n), {ARM: tried.skip})
        return self._space.point(SkipSet.parse(tried.skip, n))

    def _write(self, first: int) -> None:
        for number, trial in enumerate(self._study.trials[first:], start=first):
            run_files.append_row(self._rows, row_of(trial, number))


def _no_sampler(seed: int) -> Any:
    """Any sampler: nothing is asked of this study."""
    return random(seed)
