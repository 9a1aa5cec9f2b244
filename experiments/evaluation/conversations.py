"""What an arm answers, turn by turn: a later question follows the arm's own answers, not another arm's.

A prompt that cannot be decoded leaves the reason in the place of its answer, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.evaluation.arms import Arm
from selfspec.data.task import Example
from selfspec.engine.trace import DecodeResult
from selfspec.errors import DrafterError, InputError, PromptError

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


def answers(
    arm: Arm,
    group: Sequence[Asked],
    *,
    first_row: int,
    n_rows: int,
    encode: Encode,
    to_text: ToText,
) -> list[list[Answer]]:
    """The arm's answers to each of a group that is decoded together, one per turn.

    Args:
        arm: decodes.
        group: what is asked.
        first_row: number of the first of the group in the run; each draws from the random streams of its number.
        n_rows: of the run, so that a second turn draws from streams of its own.
        encode: raises InputError if a conversation does not fit the model.
        to_text: from the token ids of prompt and answer to the answer's text.
    """
    found: list[list[Answer]] = [[] for _ in group]
    texts: list[list[str]] = [[] for _ in group]
    for turn in range(max(len(asked.questions) for asked in group)):
        ready: dict[int, list[int]] = {}
        for j, asked in enumerate(group):
            if turn >= len(asked.questions):
                continue
            former = found[j][-1].result if turn else None
            if isinstance(former, str):
                found[j].append(Answer([], former))  # there is no answer that this turn could follow
                continue
            texts[j].append(asked.questions[turn])
            try:
                ready[j] = encode(asked.example.id, texts[j])
            except InputError as error:
                found[j].append(Answer([], str(error)))
        results = decoded(arm, list(ready.values()), turn * n_rows + first_row)
        for (j, ids), result in zip(ready.items(), results, strict=True):
            found[j].append(Answer(ids, result))
            if not isinstance(result, str):
                texts[j].append(to_text(ids, result.tokens))
    return found


def decoded(arm: Arm, prompts: list[list[int]], first_row: int = 0) -> Sequence[DecodeResult | str]:
    """The results of a batch, or for each prompt why there is none: a row with its reason, not a lost run."""
    try:
        return arm(prompts, first_row=first_row) if prompts else []
    except (RuntimeError, DrafterError, PromptError) as error:  # torch's out-of-memory is a RuntimeError
        return [str(error).splitlines()[0]] * len(prompts)
