"""The simple rules: a fixed length, a threshold, and a length that follows the acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from selfspec.errors import InputError
from selfspec.stopping.base import RuleState, StopRule, check_fraction, check_max_draft
from selfspec.stopping.protocol import StopPolicy, StopState

# The settings that tuning tries; chosen, not tuned.
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def lengths_up_to(max_draft: int) -> list[int]:
    """The draft lengths that tuning tries for a rule that drafts at most `max_draft` tokens."""
    return [n for n in LENGTHS if n <= max_draft]


@dataclass(frozen=True, slots=True)
class Fixed(StopRule):
    """Always drafts `max_draft` tokens."""

    max_draft: int
    needs_confidence: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_draft(self.max_draft)

    def begin(self, after: StopState | None = None) -> StopState:
        """A state without memory."""
        return _UpTo(self.max_draft)

    def variants(self) -> Sequence[StopPolicy]:
        """Shorter lengths."""
        return [Fixed(n) for n in lengths_up_to(self.max_draft)]


@dataclass(frozen=True, slots=True)
class Threshold(StopRule):
    """Stops after a token whose probability is below `threshold`.

    Attributes:
        threshold: between 0 and 1; a larger one stops sooner.
        predictor: folder of a `selfspec train predictor=...`; its probability of acceptance takes the place of the
            draft's probability, as in DISCO (Mamou et al. 2024, arXiv:2405.04304). None: no predictor.
    """

    max_draft: int
    threshold: float
    predictor: str | None = None

    def __post_init__(self) -> None:
        check_max_draft(self.max_draft)
        check_fraction("threshold", self.threshold)

    def begin(self, after: StopState | None = None) -> StopState:
        """A state without memory."""
        return _UpTo(self.max_draft, self.threshold)

    def variants(self) -> Sequence[StopPolicy]:
        """Shorter drafts and other thresholds."""
        return [replace(self, max_draft=n, threshold=t) for n in lengths_up_to(self.max_draft) for t in THRESHOLDS]


@dataclass(slots=True)
class _UpTo(RuleState):
    max_draft: int
    least: float | None = None

    @property
    def threshold(self) -> float | None:
        return self.least

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.max_draft and not (self.least is not None and confidence < self.least)


@dataclass(frozen=True, slots=True)
class Heuristic(StopRule):
    """Drafts `up` more tokens after full acceptance and `down` fewer otherwise, at least 1.

    Attributes:
        start: length of the first round.
        carry_over: start each prompt with the last prompt's length.

    Source: the schedule `heuristic` of transformers' assisted generation (+2, -1).
    """

    max_draft: int
    start: int
    up: int
    down: int
    carry_over: bool
    needs_confidence: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_max_draft(self.max_draft)
        if not 1 <= self.start <= self.max_draft or self.up < 0 or self.down < 0:
            raise InputError(
                f"stop.start={self.start}, up={self.up}, down={self.down}: start lies in 1..max_draft "
                f"({self.max_draft}), up and down are not negative"
            )

    def begin(self, after: StopState | None = None) -> StopState:
        """A state with the first length, or with that of `after` if it carries over."""
        carried = after.length if self.carry_over and isinstance(after, _HeuristicState) else self.start
        return _HeuristicState(self, carried)

    def variants(self) -> Sequence[StopPolicy]:
        """Shorter drafts."""
        return [replace(self, max_draft=n, start=min(n, self.start)) for n in lengths_up_to(self.max_draft)]


@dataclass(slots=True)
class _HeuristicState(RuleState):
    rule: Heuristic
    length: int

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.length

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        # A draft that was cut short near the end and fully accepted gives no evidence about longer ones.
        if n_accepted < n_drafted:
            self.length = max(1, self.length - self.rule.down)
        elif n_drafted >= self.length:
            self.length = min(self.rule.max_draft, self.length + self.rule.up)
