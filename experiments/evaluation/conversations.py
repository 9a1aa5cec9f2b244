"""What an arm answers, turn by turn: a later question follows the arm's own answers, not another arm's.

A prompt that cannot be decoded leaves the reason in the place of its answer, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from selfspec.data.task import Example
from selfspec.engine.trace import DecodeResult
from selfspec.errors import DrafterError, InputError, PromptError

UNDECODED = (RuntimeError, DrafterError, PromptError)  # torch's out-of-memory is a RuntimeError

Encode = Callable[[str, Sequence[str]], list[int]]
"""From a prompt's id and its texts so far, the user's and the model's in turn, to token ids."""

ToText = Callable[[Sequence[int], Sequence[int]], str]
"""From the token ids of a prompt and of what follows it to the text of the latter."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and the how-manieth answer to it is wanted."""

    example: Example
    sample: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from the others of a run."""
        return self.example.id, self.sample

    @property
    def questions(self) -> tuple[str, ...]:
        """What the user says, turn by turn."""
        return self.example.prompt, *getattr(self.example, "turns", ())


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn of an arm: the token ids it was given, and its output or the reason why there is none."""

    ids: list[int]
    result: DecodeResult | str


@dataclass(frozen=True, slots=True)
class Turn:
    """What is decoded together: token ids by place in the group, and the row whose random streams come first."""

    ready: dict[int, list[int]]
    first_row: int

    @property
    def prompts(self) -> list[list[int]]:
        """The token ids."""
        return list(self.ready.values())


class Conversations:
    """The conversations of an arm with a group of prompts that are decoded together, turn by turn.

    Args:
        group: what is asked.
        first_row: number of the first of the group in the run; each draws from the random streams of its number.
        n_rows: of the run, so that a second turn draws from streams of its own.
        encode: raises InputError if a conversation does not fit the model.
        to_text: from the token ids of prompt and answer to the answer's text.

    Attributes:
        answers: to each of the group so far, one per turn.
    """

    def __init__(self, group: Sequence[Asked], *, first_row: int, n_rows: int, encode: Encode, to_text: ToText) -> None:
        self.answers: list[list[Answer]] = [[] for _ in group]
        self._group, self._first_row, self._n_rows = group, first_row, n_rows
        self._encode, self._to_text = encode, to_text
        self._texts: list[list[str]] = [[] for _ in group]

    def turns(self) -> Iterator[Turn]:
        """Each turn in which a prompt can be decoded; `take` gives its results before the next one is made."""
        for number in range(max(len(asked.questions) for asked in self._group)):
            ready: dict[int, list[int]] = {}
            for j, asked in enumerate(self._group):
                if number >= len(asked.questions):
                    continue
                former = self.answers[j][-1].result if number else None
                if isinstance(former, str):
                    self.answers[j].append(Answer([], former))  # there is no answer that this turn could follow
                    continue
                self._texts[j].append(asked.questions[number])
                try:
                    ready[j] = self._encode(asked.example.id, self._texts[j])
                except InputError as error:
                    self.answers[j].append(Answer([], str(error)))
            if ready:
                yield Turn(ready, number * self._n_rows + self._first_row)

    def take(self, turn: Turn, results: Sequence[DecodeResult | str]) -> None:
        """Take the results of a turn, one for each of its prompts."""
        for (j, ids), result in zip(turn.ready.items(), results, strict=True):
            self.answers[j].append(Answer(ids, result))
            if not isinstance(result, str):
                self._texts[j].append(self._to_text(ids, result.tokens))


def why_none(error: Exception, prompts: Sequence[list[int]]) -> list[str]:
    """For each prompt of a batch that could not be decoded the reason: a row with it, not a lost run."""
    return [str(error).splitlines()[0]] * len(prompts)
