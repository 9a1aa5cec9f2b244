"""An objective over several data sets: the mean or the worst of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from search.objective import Objective, Score, ShouldContinue
from search.point import Point
from selfspec.skipping.skip_set import SkipSet

Combine = Literal["mean", "worst"]


@dataclass(frozen=True, slots=True)
class MultiDataset:
    """Scores a point on each data set; the value is the mean or the worst one, and counts are pooled.

    Attributes:
        objectives: one objective for each data set, all of the same kind.
        combine: `mean` or `worst`.
    """

    objectives: Mapping[str, Objective]
    combine: Combine

    @property
    def name(self) -> str:
        """Name of the objectives."""
        return next(iter(self.objectives.values())).name

    @property
    def unit(self) -> str:
        """Unit of the objectives."""
        return next(iter(self.objectives.values())).unit

    def __call__(self, point: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """The combined score. Every data set is scored to its end, since a part of them would be another objective."""
        scores = [objective(point) for objective in self.objectives.values()]
        value = fmean(s.value for s in scores) if self.combine == "mean" else min(s.value for s in scores)
        costs = [(s.draft_cost, s.drafted) for s in scores if s.draft_cost is not None and s.drafted]
        return Score(
            value=value,
            n_tokens=sum(s.n_tokens for s in scores),
            n_rounds=sum(s.n_rounds for s in scores),
            drafted=sum(s.drafted for s in scores),
            accepted=sum(s.accepted for s in scores),
            seconds=sum(s.seconds for s in scores),
            draft_cost=sum(c * n for c, n in costs) / sum(n for _, n in costs) if costs else None,
            values=tuple(s.value for s in scores),
        )
