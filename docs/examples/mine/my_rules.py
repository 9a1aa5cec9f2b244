"""A stop rule: draft while the draft is sure enough."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfspec.stopping import RuleState, StopRule


@dataclass(frozen=True)
class Patient(StopRule):
    """Drafts up to `max_draft` tokens, each with a probability above `least`."""

    max_draft: int
    least: float

    def begin(self, after: Waiting | None = None) -> Waiting:
        """The state of a new prompt; nothing is carried over from the last one."""
        return Waiting(self)

    def variants(self) -> list[Patient]:
        """The rules that `objective.tune_stop=true` tries."""
        return [replace(self, max_draft=n) for n in range(1, self.max_draft)]


@dataclass
class Waiting(RuleState):
    """The rule within one prompt."""

    rule: Patient

    def more(self, n_drafted: int, confidence: float) -> bool:
        """Whether to draft another token after `n_drafted`, the last one with this probability."""
        return n_drafted < self.rule.max_draft and confidence > self.rule.least
