"""The simplest controller: always the same length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from selfspec.control.base import Controller, OneLength, Standing
from selfspec.control.step_costs import StepCosts
from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class Fixed(Controller):
    """Lets every row draft `max_draft` tokens in every step; 0: none, which is plain decoding."""

    max_draft: int
    reads_costs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_draft < 0:
            raise InputError(f"controller.max_draft={self.max_draft}; it is a whole number from 0 on")

    def begin(self, costs: StepCosts) -> _FixedState:
        """A state without memory."""
        return _FixedState(self)


@dataclass(slots=True)
class _FixedState(OneLength):
    policy: Fixed

    def length(self, rows: Sequence[Standing]) -> int:
        return self.policy.max_draft
