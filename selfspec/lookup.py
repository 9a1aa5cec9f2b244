"""Prompt lookup: what followed the last time the text went like this, proposed at no call of the model.

Answers copy: code that is edited, passages that are quoted, names. Where the last few tokens occurred before, the
tokens that followed them there are a draft for nothing; where they did not, another drafter takes its turn. What is
found depends on the text alone and nothing is remembered between rounds, so nothing can leak from prompt to prompt.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from selfspec.cache import ClockCache
from selfspec.draft import Drafter, DraftRow, NoDraft, Proposal
from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class LookupDraft:
    """Looks the next tokens up in the row's own text; rows where there is nothing to find are drafted by `inner`.

    The stop rule is not asked: looked-up tokens cost nothing but their verification, and there is no confidence. They
    are a point mass, chosen without chance, and judged as such when the target samples.

    Attributes:
        inner: drafts for the rows without a match; by default nobody does.
        max_tokens: the longest proposal.
        max_ngram: the longest end of the text to look for.
        min_ngram: the shortest; one token nearly always occurred before, and `inner` would seldom have its turn.

    Raises:
        InputError: for lengths that leave nothing to look for or to propose.

    Source: Saxena 2023, prompt lookup decoding, whose n-grams and lengths the defaults are but for `min_ngram`; Yang et
    al. 2023 (arXiv:2304.04487).
    """

    inner: Drafter = field(default_factory=NoDraft)
    max_tokens: int = 10
    max_ngram: int = 3
    min_ngram: int = 2

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 1 <= self.min_ngram <= self.max_ngram:
            raise InputError(
                f"lookup with max_tokens={self.max_tokens}, min_ngram={self.min_ngram}, max_ngram={self.max_ngram}: "
                "max_tokens and min_ngram are at least 1, and max_ngram is not below min_ngram"
            )

    def propose(self, rows: Sequence[DraftRow], *, cache: ClockCache) -> list[Proposal]:
        """See `Drafter`. To `inner`, a row with a match is one that may propose nothing."""
        found = [
            following(
                row.ids,
                n_tokens=min(self.max_tokens, row.limit),
                max_ngram=self.max_ngram,
                min_ngram=self.min_ngram,
            )
            for row in rows
        ]
        if all(found):
            return [Proposal(tokens, looked_up=True) for tokens in found]
        left = [replace(row, limit=0) if tokens else row for row, tokens in zip(rows, found, strict=True)]
        drafted = self.inner.propose(left, cache=cache)
        return [
            Proposal(tokens, looked_up=True) if tokens else proposal
            for tokens, proposal in zip(found, drafted, strict=True)
        ]


def following(ids: Sequence[int], *, n_tokens: int, max_ngram: int, min_ngram: int) -> list[int]:
    """What followed the most recent earlier occurrence of the longest end of `ids` that has one.

    Where that reaches the present it goes on into what it proposes itself: a text that repeats every few tokens is
    taken to go on repeating.

    Args:
        ids: the text.
        n_tokens: how many tokens to propose.
        max_ngram, min_ngram: the lengths of the ends to look for; the longest that is found counts.

    Returns:
        `n_tokens` ids; none if no end of these lengths occurred before.
    """
    if n_tokens < 1:
        return []
    # A search through bytes takes less than 0.1 ms for 4096 tokens, whatever they are.
    items = array("i", ids)
    text, size = items.tobytes(), items.itemsize
    for n in range(min(max_ngram, len(ids) - 1), min_ngram - 1, -1):
        distance = _distance(text, n * size, size)
        if distance:
            return [ids[len(ids) - distance + i % distance] for i in range(n_tokens)]
    return []


def _distance(text: bytes, length: int, size: int) -> int:
    """How many items of `size` bytes before the end its last `length` bytes occurred last; 0 if nowhere."""
    end = text[-length:]
    at = text.rfind(end, 0, len(text) - size)
    while at > 0 and at % size:  # found across two items
        at = text.rfind(end, 0, at + length - 1)
    return (len(text) - length - at) // size if at >= 0 else 0
