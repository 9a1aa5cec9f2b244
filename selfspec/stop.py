"""When to stop drafting.

A rule sees how many tokens were drafted and how sure the drafter was of the last one. It knows nothing of models,
caches or tensors, so that any rule can be tested with a list of floats. Settings are frozen; what changes while a
prompt is decoded lives in the state that `begin` returns, so nothing leaks into the next prompt unless the rule says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from selfspec.errors import InputError


class StopState(Protocol):
    """What a rule remembers while one prompt is decoded."""

    threshold: float | None

    def more(self, n_drafted: int, confidence: float) -> bool:
        """Whether to draft another token after the `n_drafted`-th, whose raw top probability was `confidence`."""
        ...

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        """What verification found."""
        ...


class StopPolicy(Protocol):
    """A rule with its settings."""

    @property
    def max_draft(self) -> int:
        """The most tokens a round may draft."""
        ...

    @property
    def needs_confidence(self) -> bool:
        """Whether `more` looks at the confidence; if not, the drafter may pass nan and save a softmax."""
        ...

    def begin(self, after: StopState | None = None) -> StopState:
        """The state for a new prompt; `after` is the last prompt's, for rules that carry something over."""
        ...


def _check_max_draft(max_draft: int) -> None:
    if max_draft < 1:
        raise InputError(f"stop.max_draft={max_draft}; a round drafts at least 1 token")


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"stop.{name}={value}; it is a probability, between 0 and 1")


@dataclass(slots=True)
class _UpTo:
    max_draft: int
    threshold: float | None = None

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.max_draft and not (self.threshold is not None and confidence < self.threshold)

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always draft `max_draft` tokens."""

    max_draft: int
    needs_confidence: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        return _UpTo(self.max_draft)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Stop after a token whose top probability is below `threshold`."""

    max_draft: int
    threshold: float
    needs_confidence: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)
        _check_fraction("threshold", self.threshold)

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        return _UpTo(self.max_draft, self.threshold)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The paper's rule: a threshold that moves towards a target acceptance.

    After each verification, with AR_e = accepted / drafted:
    AR ← β1·AR + (1-β1)·AR_e; γ̃ = γ+ε if AR < α, γ if drafted == max_draft, else γ-ε; γ ← β2·γ + (1-β2)·γ̃.

    Attributes:
        threshold: γ at the start.
        target_acceptance: α.
        step: ε.
        smooth_acceptance, smooth_threshold: β1, β2.
        carry_over: start each prompt with the last prompt's γ, as the paper's evaluation does (AR starts at 0 always).

    Source: Zhang et al. 2024 (arXiv:2309.08168), section 3.3; the case drafted == max_draft is in their code alone.
    """

    max_draft: int
    threshold: float
    target_acceptance: float
    step: float
    smooth_acceptance: float
    smooth_threshold: float
    carry_over: bool
    needs_confidence: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)
        for name in ("threshold", "target_acceptance", "step", "smooth_acceptance", "smooth_threshold"):
            _check_fraction(name, getattr(self, name))

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        carried = after.threshold if self.carry_over and after is not None else None
        return _AdaptiveState(self, self.threshold if carried is None else carried)


@dataclass(slots=True)
class _AdaptiveState:
    rule: Adaptive
    threshold: float | None
    acceptance: float = 0.0

    def more(self, n_drafted: int, confidence: float) -> bool:
        assert self.threshold is not None
        return n_drafted < self.rule.max_draft and confidence >= self.threshold

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        if n_drafted == 0:
            return
        rule = self.rule
        assert self.threshold is not None
        b1, b2 = rule.smooth_acceptance, rule.smooth_threshold
        self.acceptance = b1 * self.acceptance + (1 - b1) * n_accepted / n_drafted
        if self.acceptance < rule.target_acceptance:
            wanted = self.threshold + rule.step
        elif n_drafted == rule.max_draft:
            wanted = self.threshold
        else:
            wanted = self.threshold - rule.step
        self.threshold = b2 * self.threshold + (1 - b2) * wanted
