"""Prompts to decode: what a data set offers, and how to take a few prompts of it.

A task knows its prompts, their references and which of them are for calibration. It knows nothing of models,
tokenizers or chat templates.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, Literal, Protocol

from selfspec.errors import InputError

Part = Literal["calibration", "evaluation"]
"""Calibration prompts choose a skip set; evaluation prompts judge it. No prompt is in both."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, with the answer it should get if one is known.

    Attributes:
        id: unique in its data set.
        prompt: what is asked, examples of other questions included.
        reference: the answer it should get; None if none is known.
        category: what kind of question it is, such as "code".
        turns: what the user says after the first answer, and after each further one.
        references: where there are several: others that are as good as `reference`, or one for each turn.
        clip: where in the prompt the text lies that may be shortened at its end, in characters from and to; None if
            every word matters.
        extra: what scoring needs besides, such as the tests of a code problem: fields of the row it was made from.
    """

    id: str
    prompt: str
    reference: str | None = None
    category: str = ""
    turns: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    clip: tuple[int, int] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Task(Protocol):
    """A data set split in two. The version changes whenever its prompts or its split do."""

    name: str
    version: str

    def examples(self, part: Part) -> list[Example]:
        """The same examples in the same order on every call; ids are unique across both parts.

        Raises:
            InputError: if the options given leave this part without an example.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What a run records of where the prompts come from: the source, the ids of shown examples, rows left out."""
        ...


def select(examples: Sequence[Example], *, n: int | None, seed: int) -> list[Example]:
    """A deterministic subset that takes equally from every category as far as each one lasts.

    Categories are shuffled inside by the seed and dealt out in turn, in order of first appearance. The first n
    of a larger selection with the same seed are the selection of n.

    Args:
        examples: where to choose from.
        n: how many; None leaves all of them in their own order; more than there are means all.
        seed: of the shuffle.

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
