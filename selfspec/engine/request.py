"""One prompt that is being decoded: its tokens, its end conditions and its rounds so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from selfspec.engine.protocols import Row
from selfspec.engine.trace import DecodeResult, Finish, Round
from selfspec.errors import InputError

Criterion = Callable[[list[int]], bool]  # (prompt and output so far) -> end here


@dataclass(frozen=True, slots=True)
class Ending:
    """The conditions that end a sequence.

    Attributes:
        max_new_tokens: largest number of new tokens, at least 1; the model's context may allow fewer.
        eos_ids: token ids that end the sequence; None: those of the model.
        criterion: called with all ids after each committed token; true ends the sequence there.
    """

    max_new_tokens: int
    eos_ids: frozenset[int] | None = None
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens}; ask for at least 1 token")


@dataclass(slots=True)
class Request:
    """One prompt that is being decoded.

    Attributes:
        index: index among the prompts of the call.
        row: the part that drafters may read.
        n_prompt: number of tokens of the prompt.
        n_max: largest number of new tokens.
        eos_ids, criterion: see `Ending`.
        rounds, prefill_s, total_s, finish: see `DecodeResult`.
    """

    index: int
    row: Row
    n_prompt: int
    n_max: int
    eos_ids: frozenset[int]
    criterion: Criterion | None
    rounds: list[Round] = field(default_factory=list)
    prefill_s: float = 0.0
    total_s: float = 0.0
    finish: Finish | None = None

    @property
    def n_left(self) -> int:
        """Number of new tokens that may still be added."""
        return self.n_max - (len(self.row.ids) - self.n_prompt)

    def commit(self, tokens: Sequence[int]) -> int:
        """Append tokens up to the first one that ends the sequence; returns how many were appended."""
        ids = self.row.ids
        for n, token in enumerate(tokens, start=1):
            ids.append(token)
            if token in self.eos_ids:
                self.finish = "eos"
            elif self.criterion is not None and self.criterion(ids):
                self.finish = "stop"
            elif self.n_left == 0:
                self.finish = "length"
            if self.finish:
                return n
        return len(tokens)

    def result(self) -> DecodeResult:
        """The result of a finished request."""
        assert self.finish is not None
        return DecodeResult(self.row.ids[self.n_prompt :], self.rounds, self.prefill_s, self.total_s, self.finish)
