"""What a stop rule is to those who draft by it.

A rule sees how many tokens were drafted and how sure the drafter was of the last one. It knows nothing of models,
caches or tensors, so that any rule can be tested with a list of floats. Settings are frozen; what changes while a
prompt is decoded lives in the state that `begin` returns: nothing leaks into the next prompt unless the rule says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class StopState(Protocol):
    """What a rule remembers while one prompt is decoded."""

    @property
    def threshold(self) -> float | None:
        """Of the confidence, as it stands now; None for a rule without one."""
        ...

    def begins(self) -> bool:
        """Whether to draft in this round at all; the first token is drafted without asking `more`.

        A question that changes nothing. A round without a draft is observed as `observe(0, 0)`.
        """
        ...

    def more(self, n_drafted: int, confidence: float) -> bool:
        """Whether to draft another token after the `n_drafted`-th, whose raw top probability was `confidence`."""
        ...

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        """What verification found."""
        ...


class StopPolicy(Protocol):
    """A rule with its settings. `StopRule` has all of it but `max_draft` and `begin`."""

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

    def variants(self) -> Sequence[StopPolicy]:
        """The same rule with other settings, for tuning to try; none is longer than this one."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The rule in plain values, for records; `StopRule.from_dict` is the inverse."""
        ...
