"""The interface of data sets, and the selection of a few prompts.

A task knows its prompts, their references, and which of them are for calibration. It knows nothing of models,
tokenizers or chat templates.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, Literal, Protocol

from selfspec.data.rows import check_text
from selfspec.errors import InputError

Part = Literal["calibration", "evaluation"]
"""A search uses calibration prompts, an evaluation uses evaluation prompts. No prompt is in both."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, with its correct answer if one is known.

    Attributes:
        id: id, unique in its data set.
        prompt: the complete prompt, shots included.
        reference: the correct answer; None if it is unknown.
        category: kind of the question, such as "code".
        turns: texts of the user after the first answer, and after each further one.
        references: if there are several: further correct answers, or one for each turn.
        clip: (first, last) character of the text that may be shortened at its end; None if nothing may be shortened.
        content: the question alone, without shots, words around it and cuts; empty: the prompt is the question.
        extra: further fields of the row that scoring needs, such as the tests of a code problem.
    """

    id: str
    prompt: str
    reference: str | None = None
    category: str = ""
    turns: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    clip: tuple[int, int] | None = None
    content: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


def checked(example: Example, where: str) -> Example:
    """The example, if files can hold its texts; references are not checked, since no file of a run holds them.

    Raises:
        InputError: if a text holds half of a character; the message begins with `where`.
    """
    texts = {"id": example.id, "prompt": example.prompt, "category": example.category}
    for name, text in [*texts.items(), *(("question", turn) for turn in example.turns)]:
        check_text(name, text, where)
    return example


class Task(Protocol):
    """A data set in two parts. The version changes whenever its prompts or its parts change."""

    name: str
    version: str

    def examples(self, part: Part) -> list[Example]:
        """The same examples in the same order on every call; ids are unique across both parts.

        Raises:
            InputError: if the options leave this part without an example.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Origin of the prompts, for the records of a run: source, ids of the shots, number of rows left out."""
        ...


def select(examples: Sequence[Example], *, n: int | None, seed: int) -> list[Example]:
    """A deterministic subset with equally many examples of each category, as far as there are enough.

    The seed shuffles each category, and one example of each is taken in turn, in the order of first appearance. A
    selection of n is the beginning of a larger selection with the same seed.

    Args:
        examples: examples to choose from.
        n: number of examples; None: all of them in their own order.
        seed: seed of the shuffle.

    Raises:
        InputError: if n is zero or negative.
    """
    if n is None:
        return list(examples)
    if n <= 0:
        raise InputError(f"asked for n={n} prompts of {len(examples)}; give a positive number, or null for all")
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.category, []).append(example)
    rng = random.Random(seed)
    for group in groups.values():
        rng.shuffle(group)
    dealt = chain.from_iterable(zip_longest(*groups.values()))
    return [example for example in dealt if example is not None][:n]
