"""Draft another token while its expected gain exceeds its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from selfspec.errors import InputError
from selfspec.stopping.base import RuleState, StopRule, check_max_draft
from selfspec.stopping.protocol import StopPolicy, StopState

FREE = 1e-9  # plain tokens; a draft cost is above 0
PRIOR_ACCEPTANCE = 0.8  # assumed before any draft was verified; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Optimal(StopRule):
    """One-step look-ahead: drafts another token if its expected gain exceeds its cost.

    P is the probability that all tokens drafted so far and the next one are accepted. Another token is drafted iff
    P >= R · (draft_cost + verify_cost), where R is the rate so far, in tokens for the cost of one plain token, at least
    1. P is the product of the calibrated confidences of the drafted tokens and of the mean acceptance for the next one.

    Attributes:
        draft_cost: measured cost of one drafted token, in plain tokens.
        verify_cost: measured cost of verifying one more token, in plain tokens.
        calibration: (confidence, acceptance) knots in rising order, with linear interpolation; ((0, 0), (1, 1)) uses
            the confidence as the probability.
        prior_rounds: weight, in rounds, of the rate 1 (plain decoding) at the start; chosen, not tuned.
        carry_over: keep the estimates from prompt to prompt.
        predictor: folder of a `selfspec train predictor=...`, whose probabilities are calibrated instead of the
            confidences; None: no predictor.

    Source: the look-ahead rule of optimal stopping for a renewal-reward process, e.g. Ross, Introduction to Stochastic
    Dynamic Programming (1983), chapter III.
    """

    max_draft: int
    draft_cost: float
    verify_cost: float
    calibration: tuple[tuple[float, float], ...]
    prior_rounds: float
    carry_over: bool
    predictor: str | None = None

    def __post_init__(self) -> None:
        check_max_draft(self.max_draft)
        object.__setattr__(self, "calibration", tuple((float(x), float(y)) for x, y in self.calibration))
        knots = self.calibration
        rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
        if len(knots) < 2 or not rises or not all(0 <= v <= 1 for knot in knots for v in knot):
            raise InputError(
                f"stop.calibration={knots}: it needs two or more (confidence, acceptance) pairs in [0, 1], rising"
            )
        if self.draft_cost <= 0 or self.verify_cost < 0 or self.prior_rounds <= 0:
            raise InputError(
                f"stop.draft_cost={self.draft_cost}, verify_cost={self.verify_cost}, prior_rounds={self.prior_rounds}: "
                "costs are measured in plain tokens; the first and the last must be above 0, the second not below"
            )

    def acceptance(self, confidence: float) -> float:
        """The calibrated probability that a token drafted with `confidence` is accepted."""
        knots = self.calibration
        if confidence <= knots[0][0]:
            return knots[0][1]
        for (x0, y0), (x1, y1) in pairwise(knots):
            if confidence <= x1:
                return y0 + (y1 - y0) * (confidence - x0) / (x1 - x0)
        return knots[-1][1]

    def begin(self, after: StopState | None = None) -> StopState:
        """A state with the prior, or with the estimates of `after` if they carry over."""
        if self.carry_over and isinstance(after, _OptimalState):
            return _OptimalState(self, after.tokens, after.cost, after.accepted, after.drafted)
        # The prior: rounds that commit one token at the cost of one, and drafts that are mostly accepted.
        n = self.prior_rounds
        return _OptimalState(self, n, n, PRIOR_ACCEPTANCE * n, n)

    def free(self) -> StopPolicy:
        """The rule at a draft cost of almost nothing, with plain decoding's rate."""
        return replace(self, draft_cost=FREE)


@dataclass(slots=True)
class _OptimalState(RuleState):
    rule: Optimal
    tokens: float
    cost: float
    accepted: float
    drafted: float
    alive: float = 1.0

    def more(self, n_drafted: int, confidence: float) -> bool:
        before = 1.0 if n_drafted == 1 else self.alive
        self.alive = before * self.rule.acceptance(confidence)
        expected = self.alive * self.accepted / self.drafted
        rate = max(1.0, self.tokens / self.cost)  # plain decoding is always possible
        return n_drafted < self.rule.max_draft and expected >= rate * (self.rule.draft_cost + self.rule.verify_cost)

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        self.tokens += n_accepted + 1
        self.cost += 1 + n_drafted * (self.rule.draft_cost + self.rule.verify_cost)
        # Tokens after the first rejection were not judged.
        self.accepted += n_accepted
        self.drafted += min(n_drafted, n_accepted + 1)
