"""The answers of an arm, turn by turn: a later question follows the arm's own answers, not those of another arm.

A prompt that cannot be decoded has a reason in the place of its answer; the other prompts go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from selfspec.data.task import Example
from selfspec.engine.trace import DecodeResult
from selfspec.errors import DrafterError, InputError, PromptError

UNDECODED = (RuntimeError, DrafterError, PromptError)  # torch's out-of-memory is a RuntimeError

Encode = Callable[[str, Sequence[str]], list[int]]
"""Encodes a conversation: from the id of the prompt and its texts, of user and model in turn, to token ids."""

ToText = Callable[[Sequence[int], Sequence[int]], str]
"""Decodes an answer: from the token ids of the prompt and of the answer to the text of the answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and the index of this sample of the prompt."""

    example: Example
    sample: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Prompt id and sample, which no two prompts of a run share."""
        return self.example.id, self.sample

    @property
    def questions(self) -> tuple[str, ...]:
        """The texts of the user, turn by turn."""
        return self.example.prompt, *getattr(self.example, "turns", ())


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn of an arm: its input token ids, and its output or the reason why there is no output."""

    ids: list[int]
    result: DecodeResult | str


@dataclass(frozen=True, slots=True)
class Turn:
    """Prompts that are decoded together: token ids by place in the group, and the number of the first random stream."""

    ready: dict[int, list[int]]
    first_row: int

    @property
    def prompts(self) -> list[list[int]]:
        """The token ids."""
        return list(self.ready.values())


class Conversations:
    """The conversations of an arm with a group of prompts that are decoded together, turn by turn.

    Args:
        group: the prompts.
        first_row: number of the first prompt of the group in the run; each prompt draws from the stream of its number.
        n_rows: number of prompts of the run, so that a second turn draws from its own streams.
        encode: encodes a conversation; raises InputError if it does not fit the model.
        to_text: decodes an answer from the token ids of prompt and answer.

    Attributes:
        answers: for each prompt of the group its answers so far, one for each turn.
    """

    def __init__(self, group: Sequence[Asked], *, first_row: int, n_rows: int, encode: Encode, to_text: ToText) -> None:
        self.answers: list[list[Answer]] = [[] for _ in group]
        self._group, self._first_row, self._n_rows = group, first_row, n_rows
        self._encode, self._to_text = encode, to_text
        self._texts: list[list[str]] = [[] for _ in group]

    def turns(self) -> Iterator[Turn]:
        """Each turn with a prompt to decode; the caller passes its results to `take` before the next turn."""
        for number in range(max(len(asked.questions) for asked in self._group)):
            ready: dict[int, list[int]] = {}
            for j, asked in enumerate(self._group):
                if number >= len(asked.questions):
                    continue
                former = self.answers[j][-1].result if number else None
                if isinstance(former, str):
                    self.answers[j].append(Answer([], former))  # this turn has no answer to follow
                    continue
                self._texts[j].append(asked.questions[number])
                try:
                    ready[j] = self._encode(asked.example.id, self._texts[j])
                except InputError as error:
                    self.answers[j].append(Answer([], str(error)))
            if ready:
                yield Turn(ready, number * self._n_rows + self._first_row)

    def take(self, turn: Turn, results: Sequence[DecodeResult | str]) -> None:
        """Add the results of a turn, one for each of its prompts."""
        for (j, ids), result in zip(turn.ready.items(), results, strict=True):
            self.answers[j].append(Answer(ids, result))
            if not isinstance(result, str):
                self._texts[j].append(self._to_text(ids, result.tokens))


def why_none(error: Exception, prompts: Sequence[list[int]]) -> list[str]:
    """The reason for each prompt of a failed batch: rows hold the reason, and the run goes on."""
    return [str(error).splitlines()[0]] * len(prompts)
