"""A controller: batches of few requests draft, larger ones decode plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfspec.control import Controller, OneLength, Standing, StepCosts


@dataclass(frozen=True)
class WhileFew(Controller):
    """Lets each request draft `max_draft` tokens while at most `most_rows` are decoded."""

    max_draft: int
    most_rows: int
    reads_costs: ClassVar[bool] = False  # so no costs have to be measured for it

    def begin(self, costs: StepCosts) -> _Few:
        """A state that knows no request."""
        return _Few(self)


@dataclass
class _Few(OneLength):
    policy: WhileFew

    def length(self, rows: Sequence[Standing]) -> int:
        """How far each request may draft in this step; 0: plain decoding."""
        return self.policy.max_draft if len(rows) <= self.policy.most_rows else 0
