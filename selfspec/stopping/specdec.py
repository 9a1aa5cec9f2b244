"""SpecDec++'s rule: stop when the draft probably holds a token that will be rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfspec.stopping.base import RuleState, StopRule, check_fraction, check_max_draft
from selfspec.stopping.protocol import StopPolicy, StopState
from selfspec.stopping.rules import lengths_up_to

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # that tuning tries; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Specdec(StopRule):
    """Stops if the probability that a drafted token will be rejected, 1 - Π p, exceeds `threshold`.

    Attributes:
        threshold: h.
        predictor: folder of a `selfspec train predictor=...`, whose probabilities p are read; None: p is the draft's
            own probability of each token.

    Source: Huang et al. 2024, SpecDec++ (arXiv:2405.19715), section 3; h is 0.3 in their evaluation and 0.7 in their
    example, and a draft has 2 to 20 tokens. Their head scores a token after the draft has read it (form=published), so
    it never stops before the second token, and the newest token is never scored.
    """

    max_draft: int
    threshold: float
    predictor: str | None = None

    def __post_init__(self) -> None:
        check_max_draft(self.max_draft)
        check_fraction("threshold", self.threshold)

    def begin(self, after: StopState | None = None) -> StopState:
        """A state without memory."""
        return _SpecdecState(self)

    def variants(self) -> Sequence[StopPolicy]:
        """Shorter drafts and other thresholds."""
        return [replace(self, max_draft=n, threshold=h) for n in lengths_up_to(self.max_draft) for h in THRESHOLDS]


@dataclass(slots=True)
class _SpecdecState(RuleState):
    rule: Specdec
    alive: float = 1.0  # the probability that all tokens of this draft are accepted

    @property
    def threshold(self) -> float:
        return self.rule.threshold

    def more(self, n_drafted: int, confidence: float) -> bool:
        before = 1.0 if n_drafted == 1 else self.alive
        self.alive = before * confidence
        return n_drafted < self.rule.max_draft and 1 - self.alive <= self.rule.threshold
