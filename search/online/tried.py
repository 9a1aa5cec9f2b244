"""What a stream tried and learnt, as plain values: the trials, and the state that starts the next stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from selfspec.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class Tried:
    """One draft that was scored while text was decoded.

    Attributes:
        skip: the skip set, as text.
        value: its value in the unit of the searcher's score; larger is better.
        n_read, n_agreed: tokens that were predicted, and those that were right.
        draft_cost: cost of one drafted token, in plain tokens; None: the searcher knows no costs.
        seconds: seconds of finding and scoring it.
        n_tokens: tokens of the stream that were decoded before.
        elapsed_s: seconds that the searcher had spent by then, these included.
        is_taken: whether it drafts from then on.
        raw: the numbers that the searcher proposed, if it remembers those in place of the set.
    """

    skip: str
    value: float
    n_read: int
    n_agreed: int
    draft_cost: float | None
    seconds: float
    n_tokens: int
    elapsed_s: float
    is_taken: bool
    raw: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields, as plain values."""
        return {**asdict(self), "raw": list(self.raw)}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Tried:
        """The inverse of `to_dict`."""
        return cls(**{**body, "raw": tuple(body.get("raw") or ())})


@dataclass(slots=True)
class Progress:
    """How far a stream has come, over all of its sessions.

    Attributes:
        n_rounds, n_tokens: rounds, and tokens that they committed.
        spent_s: seconds of the searcher.
        trials: everything that was scored, in order.
    """

    n_rounds: int = 0
    n_tokens: int = 0
    spent_s: float = 0.0
    trials: list[Tried] = field(default_factory=list)

    def add(
        self,
        skip: SkipSet,
        value: float,
        *,
        n_read: int,
        n_agreed: int,
        seconds: float,
        is_taken: bool,
        draft_cost: float | None = None,
        raw: tuple[float, ...] = (),
    ) -> None:
        """Append a trial at the present place of the stream."""
        trial = Tried(
            str(skip),
            value,
            n_read,
            n_agreed,
            draft_cost,
            seconds,
            self.n_tokens,
            self.spent_s + seconds,
            is_taken,
            raw,
        )
        self.trials.append(trial)

    def to_dict(self) -> dict[str, Any]:
        """The counts, without the trials."""
        return {"n_rounds": self.n_rounds, "n_tokens": self.n_tokens, "spent_s": self.spent_s}

    def restore(self, body: Mapping[str, Any]) -> None:
        """Take over the counts of `to_dict`."""
        self.n_rounds, self.n_tokens, self.spent_s = body["n_rounds"], body["n_tokens"], body["spent_s"]
