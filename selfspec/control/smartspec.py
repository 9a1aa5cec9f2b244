"""Goodput as its authors' code has it: one length for the batch, from one acceptance for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfspec.control.base import (
    Controller,
    Judged,
    OneLength,
    Standing,
    check_lengths,
    check_shares,
    mean_context,
)
from selfspec.control.step_costs import StepCosts
from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class SmartSpec(Controller):
    """The length k with the largest goodput: (1 - a^(k+1)) / (1 - a) tokens a row over the seconds of the step.

    It is renewed every `period` steps. From 0 upwards, the first length that is no better than the best so far ends the
    choice. Their way with looked-up drafts (a share of rows with a match, a length for verifying alone) is left out.

    Attributes:
        start: a at the start.
        smooth: share of a that stays; the rest is the accepted share of a step's judged tokens.
        handicap: factor of the goodput of drafting nothing.
        period: steps between choices.

    Source: Liu et al. 2024 (arXiv:2406.14066), constants of the authors' fork of vLLM, `spec_decode/dsd.py`.
    """

    max_draft: int = 8
    start: float = 0.7
    smooth: float = 0.85
    handicap: float = 1.1
    period: int = 20

    def __post_init__(self) -> None:
        check_lengths(max_draft=self.max_draft, period=self.period)
        check_shares(start=self.start, smooth=self.smooth)
        if self.handicap <= 0:
            raise InputError(f"controller.handicap={self.handicap}; it is a factor above 0")

    def begin(self, costs: StepCosts) -> _SmartSpecState:
        """A state with the acceptance `start`."""
        return _SmartSpecState(self, costs, self.start)


@dataclass(slots=True)
class _SmartSpecState(OneLength):
    policy: SmartSpec
    costs: StepCosts
    acceptance: float
    chosen: int = 0
    n_steps: int = 0

    def length(self, rows: Sequence[Standing]) -> int:
        if self.n_steps % self.policy.period == 0:
            self.chosen = self._best(rows)
        self.n_steps += 1
        return self.chosen

    def _best(self, rows: Sequence[Standing]) -> int:
        n, a = len(rows), self.acceptance
        batch = self.costs.of_batch(n, mean_context(rows), self.policy.max_draft)
        best, best_rate = 0, self.policy.handicap * n / batch.seconds([0] * n)
        for k in range(1, self.policy.max_draft + 1):
            tokens = n * sum(a**i for i in range(k + 1))
            rate = tokens / batch.seconds([k] * n)
            if rate <= best_rate:
                break
            best, best_rate = k, rate
        return best

    def observe(self, step: Sequence[Judged]) -> None:
        # their verifier judges each position by itself; here tokens after the first rejection are not judged
        judged = sum(min(row.length, row.n_accepted + 1) for row in step)
        if judged:
            now = sum(row.n_accepted for row in step) / judged
            self.acceptance = self.policy.smooth * self.acceptance + (1 - self.policy.smooth) * now
