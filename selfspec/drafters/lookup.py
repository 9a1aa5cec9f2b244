"""Prompt lookup: propose the tokens that followed an earlier occurrence of the text's last tokens.

Answers copy from their text: edited code, quotations, names. If the last few tokens occurred before, their continuation
is a draft that needs no forward; otherwise another drafter proposes. A row can also be looked up in a memory of other
texts that the model wrote, which holds its habits.

Proposals depend only on the row's text and the memory. The drafter keeps no state between rounds, so nothing leaks from
prompt to prompt.
"""

# N token ids

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, takewhile
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from selfspec.drafters.chain import NoDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import AroundDrafter, Draft, Drafter, Row
from selfspec.errors import InputError

LOOKUP = "lookup"  # the source of looked-up drafts
BETWEEN = -1  # separates the texts of a memory; no token has this id


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A proposal.

    Attributes:
        tokens: the proposed ids.
        n_match: tokens of the match; 0: the last two occurrences of the last token agreed.
        in_memory: whether the match is in the memory.
    """

    tokens: list[int]
    n_match: int = 0
    in_memory: bool = False


class Cut(Protocol):
    """Decides where a proposal ends."""

    def n_tokens(self, found: LookedUp) -> int:
        """Number of its first tokens to keep, at least 1."""
        ...


class Memory:
    """Texts to search in addition to a row's own.

    Args:
        ids_N: token ids, with `BETWEEN` between the texts, as `joined` gives them.
    """

    def __init__(self, ids_N: Tensor) -> None:
        self.ids_N = ids_N
        self._behind: dict[int, dict[tuple[int, ...], int]] = {}  # 0.2 kB a token for each length in use

    @cached_property
    def ids(self) -> list[int]:
        """The ids as a list."""
        ids: list[int] = self.ids_N.tolist()
        return ids

    def match(self, ids: Sequence[int], end: int, *, shortest: int, longest: int) -> tuple[int, int]:
        """(position after the longest match with the end of `ids[:end]`, tokens of the match); (0, 0) without a match.

        Matches have `shortest` to `longest` tokens; of several the last one counts.
        """
        at = length = 0
        for n in range(shortest, min(longest, end) + 1):
            behind = self._ends(n).get(tuple(ids[end - n : end]))
            if behind is None:  # an end that does not occur is not part of a longer one
                break
            at, length = behind, n
        return at, length

    def after(self, at: int, n_tokens: int) -> list[int]:
        """Up to `n_tokens` ids from position `at` on, within one text."""
        found = self.ids[at : at + n_tokens]
        return found[: found.index(BETWEEN)] if BETWEEN in found else found

    def _ends(self, n: int) -> dict[tuple[int, ...], int]:
        """For each sequence of `n` tokens, the last position after it where the text goes on."""
        if n not in self._behind:
            ids = self.ids
            grams = zip(*(ids[i:] for i in range(n)), range(n, len(ids)), strict=False)
            self._behind[n] = {tuple(g[:n]): g[n] for g in grams if BETWEEN not in g[:n] and ids[g[n]] != BETWEEN}
        return self._behind[n]


def joined(texts: Iterable[Sequence[int]]) -> Tensor:
    """The texts in the form that `Memory` takes, [N]."""
    return torch.tensor([token for text in texts for token in (BETWEEN, *text)], dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class LookupDraft(AroundDrafter):
    """Looks up the next tokens; `inner` drafts for rows without a match.

    The longest end of a row's text that occurred before counts. Of equally long matches, the row's own text counts
    before the memory. The stop
    rule does not observe these rounds: looked-up tokens cost only their verification, and they have no confidence. The
    verifier judges them as point masses when the target samples, since no chance chose them.

    A memory of unrelated texts has matches too, and their continuations are almost always wrong. The memory therefore
    proposes only while its hit rate is high enough: among the last `reach_tokens` tokens of the text, take the newest
    `window` places where the memory has a match, and count those where its next token is the text's own. That count
    plus one must be at least `min_hit_rate` times the number of places.

    Attributes:
        inner: drafts for rows without a match; by default nothing is drafted for them.
        max_tokens: the longest proposal.
        per_match: tokens proposed for each token of a match in the row's own text.
        per_memory_match: tokens proposed for each token of a match in the memory, which is less reliable.
        max_ngram: longest end of the text to search for. Six find 0 to 2 % more than three, on three kinds of text.
        min_ngram: shortest end to search for. A single token almost always occurred before, and `inner` would rarely
            draft.
        agreed: largest number of tokens proposed without a match, if the last two occurrences of the last token had
            the same continuation; 0: none.
        memory: further texts to search; None: none.
        window: the most matches of the memory that its hit rate is computed from.
        reach_tokens: how far back these matches may lie.
        min_hit_rate: the fraction of these matches that must be right, between 0 and 1.
        cut: shortens proposals; None: they stay as they are.
        has_free_drafts: always.

    Raises:
        InputError: if the lengths leave nothing to search for or to propose.

    Source: Saxena 2023, prompt lookup decoding; Yang et al. 2023 (arXiv:2304.04487); for the memory He et al. 2023,
    REST (arXiv:2311.08252), whose texts are a corpus; for the length Oliaro et al. 2024, SuffixDecoding
    (arXiv:2411.04975). The factors are the best of eleven rules replayed on three kinds of text, and so are the
    settings of the hit rate (LOG).
    """

    inner: Drafter = field(default_factory=NoDraft)
    max_tokens: int = 10
    max_ngram: int = 6
    min_ngram: int = 2
    agreed: int = 3
    per_match: int = 2
    per_memory_match: int = 1
    memory: Memory | None = None
    window: int = 16
    reach_tokens: int = 64
    min_hit_rate: float = 0.2
    cut: Cut | None = None
    has_free_drafts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 1 <= self.min_ngram <= self.max_ngram:
            raise InputError(
                f"lookup with max_tokens={self.max_tokens}, min_ngram={self.min_ngram}, max_ngram={self.max_ngram}: "
                "max_tokens and min_ngram are at least 1, and max_ngram is not below min_ngram"
            )
        if self.per_match < 1 or self.per_memory_match < 1 or self.agreed < 0:
            raise InputError(
                f"lookup with per_match={self.per_match}, per_memory_match={self.per_memory_match}, "
                f"agreed={self.agreed}: the first two are at least 1, and agreed is not negative"
            )

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A looked-up draft for each row with a match; `inner` drafts for the others and sees limit 0 for these."""
        found = [self.following(row.ids, row.limit) for row in rows]
        if all(found):
            return [Draft(tokens, source=LOOKUP) for tokens in found]
        left = [replace(row, limit=0) if tokens else row.within_paid() for row, tokens in zip(rows, found, strict=True)]
        drafted = self.inner.propose(left, cache=cache)
        return [Draft(tokens, source=LOOKUP) if tokens else draft for tokens, draft in zip(found, drafted, strict=True)]

    def following(self, ids: Sequence[int], limit: int) -> list[int]:
        """The tokens proposed after the text `ids`: at most `limit`, none without a match.

        A longer match proposes more tokens, since each one costs its verification and few are right after a short
        match. If the continuation of a match reaches the end of the text, it goes on with the proposed tokens: a text
        that repeats every few tokens is assumed to go on repeating.
        """
        found = self.found(ids, limit)
        if self.cut is None or not found.tokens:
            return found.tokens
        return found.tokens[: self.cut.n_tokens(found)]

    def found(self, ids: Sequence[int], limit: int) -> LookedUp:
        """The proposal before it is cut; see `following`."""
        n_tokens = min(self.max_tokens, limit)
        if n_tokens < 1:
            return LookedUp([])
        text = SearchableText(list(ids))
        remembered, n_like = self._match(self.memory, ids, len(ids)) if self.memory else (0, 0)
        for n in range(min(self.max_ngram, len(ids) - 1), self.min_ngram - 1, -1):
            end = SearchableText(text.ids[-n:])
            at = text.last(end)
            if at >= 0:
                distance = len(ids) - n - at
                n_here = min(n_tokens, n * self.per_match)
                return LookedUp([ids[len(ids) - distance + i % distance] for i in range(n_here)], n)
            if self.memory and n == n_like and self._knows(self.memory, ids):
                return LookedUp(self.memory.after(remembered, min(n_tokens, n * self.per_memory_match)), n, True)
        return LookedUp(self._agreed(ids, n_tokens))

    def _match(self, memory: Memory, ids: Sequence[int], end: int) -> tuple[int, int]:
        return memory.match(ids, end, shortest=self.min_ngram, longest=min(self.max_ngram, end - 1))

    def _knows(self, memory: Memory, ids: Sequence[int]) -> bool:
        """Whether the hit rate of the memory on this text is high enough."""
        n_matches = n_right = 0
        for end in range(len(ids) - 1, max(0, len(ids) - 1 - self.reach_tokens), -1):
            at, n = self._match(memory, ids, end)
            if n:
                n_matches += 1
                n_right += memory.ids[at] == ids[end]
            if n_matches == self.window:
                break
        return n_right + 1 >= self.min_hit_rate * n_matches

    def _agreed(self, ids: Sequence[int], n_tokens: int) -> list[int]:
        """The common continuation of the last two occurrences of the last token."""
        before = range(len(ids) - 2, -1, -1)
        behind = list(islice((i + 1 for i in before if ids[i] == ids[-1]), 2))
        if len(behind) < 2:
            return []
        pairs = islice(zip(ids[behind[0] :], ids[behind[1] :], strict=False), min(n_tokens, self.agreed))
        return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


class SearchableText:
    """Token ids that are searched as bytes: 0.1 ms for 4096 tokens."""

    def __init__(self, ids: list[int]) -> None:
        items = array("i", ids)
        self.ids, self.bytes, self.size = ids, items.tobytes(), items.itemsize

    def last(self, other: SearchableText) -> int:
        """Index of the last occurrence of `other` before the end of the text; -1 if there is none."""
        at = self.bytes.rfind(other.bytes, 0, len(self.bytes) - self.size)
        while at > 0 and at % self.size:  # a match that begins within an item
            at = self.bytes.rfind(other.bytes, 0, at + len(other.bytes) - 1)
        return at // self.size if at >= 0 else -1
