"""Rules that read the entropy of the draft's distribution instead of the probability of the drafted token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from selfspec.errors import InputError
from selfspec.stopping.adaptive import Adaptive, _AdaptiveState
from selfspec.stopping.base import RuleState, StopRule, check_max_draft
from selfspec.stopping.protocol import Evidence, StopPolicy, StopState
from selfspec.stopping.rules import lengths_up_to


@dataclass(frozen=True, slots=True)
class Svip(StopRule):
    """Stops after a token whose distribution has the entropy H with sqrt(scale · H) above `threshold`.

    Attributes:
        threshold: between 0 and 1; a smaller one stops sooner.
        scale: the share of the entropy, in nats, that counts.

    Source: Zhang et al. 2024, SVIP (arXiv:2411.18462), constants of the authors' code.
    """

    max_draft: int
    threshold: float = 0.3
    scale: float = 0.15
    evidence: ClassVar[Evidence] = "entropy"

    def __post_init__(self) -> None:
        check_max_draft(self.max_draft)
        check_scale("threshold", self.threshold)
        check_scale("scale", self.scale)

    def begin(self, after: StopState | None = None) -> StopState:
        """A state without memory."""
        return _SvipState(self)

    def variants(self) -> Sequence[StopPolicy]:
        """Shorter drafts and other thresholds."""
        thresholds = (0.1, 0.2, 0.3, 0.4, 0.6)
        return [replace(self, max_draft=n, threshold=t) for n in lengths_up_to(self.max_draft) for t in thresholds]


@dataclass(slots=True)
class _SvipState(RuleState):
    rule: Svip

    @property
    def threshold(self) -> float:
        return self.rule.threshold

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.rule.max_draft and root_entropy(confidence, self.rule.scale) <= self.rule.threshold


@dataclass(frozen=True, slots=True)
class EntropyBound(Adaptive):
    """Stops if a lower bound of the acceptance, 1 - sqrt(gamma · H), is below a threshold that moves as `Adaptive`'s.

    Attributes:
        gamma: the share of the entropy H, in nats, that counts.

    Source: Agrawal et al. 2024, AdaEDL (arXiv:2410.18351).
    """

    gamma: float = 0.2
    evidence: ClassVar[Evidence] = "entropy"

    def __post_init__(self) -> None:
        Adaptive.__post_init__(self)
        check_scale("gamma", self.gamma)

    def begin(self, after: StopState | None = None) -> StopState:
        """A state with the threshold of the settings, or of `after` if it carries over."""
        threshold = Adaptive.begin(self, after).threshold
        assert threshold is not None
        return _BoundState(self, threshold)


@dataclass(slots=True)
class _BoundState(_AdaptiveState):
    def more(self, n_drafted: int, confidence: float) -> bool:
        assert isinstance(self.rule, EntropyBound)
        return _AdaptiveState.more(self, n_drafted, 1 - root_entropy(confidence, self.rule.gamma))


def root_entropy(certainty: float, scale: float) -> float:
    """sqrt(scale · H) of a certainty exp(-H)."""
    return math.sqrt(-scale * math.log(certainty)) if 0 < certainty < 1 else 0.0 if certainty >= 1 else math.inf


def check_scale(name: str, value: float) -> None:
    """Refuse what is not above 0."""
    if not 0 < value < math.inf:
        raise InputError(f"stop.{name}={value}; it is a number above 0")
