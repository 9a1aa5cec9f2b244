"""Draft & Verify's rule: a threshold of the confidence that follows a target acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfspec.stopping.base import RuleState, StopRule, check_fraction, check_max_draft
from selfspec.stopping.protocol import StopPolicy, StopState
from selfspec.stopping.rules import THRESHOLDS, lengths_up_to


@dataclass(frozen=True, slots=True)
class Adaptive(StopRule):
    """Stops below a threshold of the confidence, which moves until acceptance meets a target.

    After each verification, with AR_e = accepted / drafted:
    AR ← β1·AR + (1-β1)·AR_e; γ̃ = γ+ε if AR < α, γ if drafted == max_draft, else γ-ε; γ ← β2·γ + (1-β2)·γ̃.

    Attributes:
        threshold: γ at the start.
        target_acceptance: α.
        step: ε.
        smooth_acceptance, smooth_threshold: β1, β2.
        carry_over: start each prompt with the last prompt's γ, as the paper's evaluation does. AR always starts at 0.

    Source: Zhang et al. 2024 (arXiv:2309.08168), section 3.3; the case drafted == max_draft is only in their code.
    """

    max_draft: int
    threshold: float
    target_acceptance: float
    step: float
    smooth_acceptance: float
    smooth_threshold: float
    carry_over: bool

    def __post_init__(self) -> None:
        check_max_draft(self.max_draft)
        for name in ("threshold", "target_acceptance", "step", "smooth_acceptance", "smooth_threshold"):
            check_fraction(name, getattr(self, name))

    def begin(self, after: StopState | None = None) -> StopState:
        """A state with the threshold of the settings, or of `after` if it carries over."""
        carried = after.threshold if self.carry_over and after is not None else None
        return _AdaptiveState(self, self.threshold if carried is None else carried)

    def variants(self) -> Sequence[StopPolicy]:
        """Shorter drafts, and other thresholds at the start."""
        return [replace(self, max_draft=n, threshold=t) for n in lengths_up_to(self.max_draft) for t in THRESHOLDS]


@dataclass(slots=True)
class _AdaptiveState(RuleState):
    rule: Adaptive
    moved: float
    acceptance: float = 0.0

    @property
    def threshold(self) -> float:
        return self.moved

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.rule.max_draft and confidence >= self.moved

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        if n_drafted == 0:
            return
        rule = self.rule
        b1, b2 = rule.smooth_acceptance, rule.smooth_threshold
        self.acceptance = b1 * self.acceptance + (1 - b1) * n_accepted / n_drafted
        if self.acceptance < rule.target_acceptance:
            wanted = self.moved + rule.step
        elif n_drafted == rule.max_draft:
            wanted = self.moved
        else:
            wanted = self.moved - rule.step
        self.moved = b2 * self.moved + (1 - b2) * wanted
