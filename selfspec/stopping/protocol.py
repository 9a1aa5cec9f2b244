"""The interface of stop rules.

A rule sees how many tokens were drafted, and the drafter's confidence in the last one. It knows nothing of models,
caches or tensors, so any rule can be tested with a list of floats. Settings are frozen. Everything that changes during
a prompt lives in the state that `begin` returns, so nothing carries over to the next prompt unless the rule does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

Evidence = Literal["probability", "entropy"]


class StopState(Protocol):
    """State of a rule while one prompt is decoded."""

    @property
    def threshold(self) -> float | None:
        """Current threshold of the confidence; None for a rule without one."""
        ...

    def begins(self) -> bool:
        """Whether to draft in this round; if so, the first token is drafted without a call of `more`.

        This call does not change the state. A round without a draft is observed as `observe(0, 0)`.
        """
        ...

    def more(self, n_drafted: int, confidence: float) -> bool:
        """Whether to draft another token after `n_drafted` tokens; `confidence` is the probability of the last one."""
        ...

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        """Learn from a verification of `n_drafted` tokens, of which `n_accepted` were accepted."""
        ...


class StopPolicy(Protocol):
    """A rule with its settings. `StopRule` implements everything except `max_draft` and `begin`."""

    @property
    def max_draft(self) -> int:
        """Largest number of tokens that a round may draft."""
        ...

    @property
    def evidence(self) -> Evidence:
        """What `more` gets as the confidence: the drafted token's probability, or exp(-entropy) of its distribution.

        Both lie between 0 and 1, and are 1 where the draft is sure.
        """
        ...

    @property
    def needs_confidence(self) -> bool:
        """Whether `more` reads the confidence; if not, the drafter may pass nan and save a softmax."""
        ...

    def begin(self, after: StopState | None = None) -> StopState:
        """A state for a new prompt; `after` is the state of the last prompt, for rules that carry something over."""
        ...

    def variants(self) -> Sequence[StopPolicy]:
        """The rule with other settings, for tuning; none of them drafts more tokens than this one."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The rule as plain values, for files; `StopRule.from_dict` is the inverse."""
        ...
