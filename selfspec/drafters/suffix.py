"""Drafts from suffixes: what followed the end of the text before, as a tree that is weighted by how often.

It takes no forward. Unlike prompt lookup, matches may have any length, all continuations count, and the answers that
the model gave before are searched as well.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from selfspec.drafters.lookup import BETWEEN
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.suffix_automaton import ROOT_STATE, SuffixAutomaton
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import ROOT, BaseDrafter, Draft, Output, Row
from selfspec.errors import InputError

SUFFIX = "suffix"  # the source of its drafts


@dataclass(slots=True)
class _Text:
    """The automaton of a row's text, tokens that it holds, and the match with earlier answers."""

    own: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    n_read: int = 0
    state: int = ROOT_STATE
    length: int = 0


class SuffixDraft(BaseDrafter):
    """Drafts the likeliest continuations of the longest ends of the text that occurred before.

    A node's probability is that of its parent times the fraction of the parent's occurrences that go on with it. Of all
    ends that occurred, in the text or in earlier answers, the one whose tree has the largest sum of probabilities is
    drafted.

    Args:
        spec: whose plan may hold a memory of further texts.
        max_nodes: most tokens of a draft.
        per_match: tokens of a draft for each token of the match.
        min_probability: of a drafted token, by the counts.
        n_ends: ends of the text that are tried, from the longest on.
        keep: search the answers of earlier rows as well.

    Raises:
        InputError: if a setting is impossible.

    Source: Oliaro et al. 2024, SuffixDecoding (arXiv:2411.04975), section 3: scores by counts, length in proportion to
    the match; Hu et al. 2024, SAM-Decoding (arXiv:2411.10666): suffix automata of the text and of other texts. Here
    both are searched with one score.
    """

    has_free_drafts: ClassVar[bool] = True

    def __init__(
        self,
        spec: DraftSpec | None = None,
        *,
        max_nodes: int = 12,
        per_match: float = 2.0,
        min_probability: float = 0.1,
        n_ends: int = 6,
        keep: bool = True,
    ) -> None:
        if max_nodes < 1 or n_ends < 1 or per_match <= 0 or not 0 <= min_probability <= 1:
            raise InputError(
                f"drafter=suffix with max_nodes={max_nodes}, n_ends={n_ends}, per_match={per_match}, "
                f"min_probability={min_probability}: the first two are at least 1, then above 0, then in [0, 1]"
            )
        self.max_nodes, self.per_match, self.min_probability = max_nodes, per_match, min_probability
        self.n_ends, self.keep = n_ends, keep
        self._rows: dict[int, _Text] = {}
        self._others = SuffixAutomaton()
        memory = spec.plan.memory if spec is not None else None
        for token in [] if memory is None else memory.tolist():
            if token == BETWEEN:
                self._others.break_text()
            else:
                self._others.extend([token])

    @property
    def name(self) -> str:
        """Its source."""
        return SUFFIX

    def begin(self, row: Row, prompt: Output) -> None:
        """Begin with an empty automaton; the first draft reads the prompt."""
        self._rows[row.key] = _Text()

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A tree for each row; empty where no end of the text occurred before."""
        return [self._draft(row) for row in rows]

    def end(self, row: Row) -> None:
        """Forget the row; its text is searched for later rows if `keep`."""
        if self._rows.pop(row.key, None) is not None and self.keep:
            self._others.break_text()
            self._others.extend(row.ids)

    def _draft(self, row: Row) -> Draft:
        text = self._read(row)
        best, best_score = Draft(source=SUFFIX), 0.0
        for automaton, (state, length) in (
            (text.own, text.own.earlier()),
            (self._others, (text.state, text.length)),
        ):
            for n_tried, (end, n) in enumerate(automaton.shorter(state, length)):
                if n_tried == self.n_ends:
                    break
                draft = self._tree(automaton, end, n, row.limit)
                if sum(draft.confidences) > best_score:
                    best, best_score = draft, sum(draft.confidences)
        return best

    def _read(self, row: Row) -> _Text:
        """What is known of the row's text, with the tokens that came since."""
        text = self._rows[row.key]
        new = row.ids[text.n_read :]
        text.own.extend(new)
        for token in new:
            text.state, text.length = self._others.advance(text.state, text.length, token)
        text.n_read = len(row.ids)
        return text

    def _tree(self, automaton: SuffixAutomaton, state: int, length: int, limit: int) -> Draft:
        """The likeliest continuations of a match, at most `limit` tokens deep; a parent comes before its children."""
        draft, parents, probabilities = Draft(source=SUFFIX), [], []
        n_nodes = min(self.max_nodes, int(self.per_match * length))
        queue: list[tuple[float, int, int, int, int]] = []  # -probability, order, token's state, token, parent
        order = 0

        def offer(at: int, probability: float, parent: int, depth: int) -> None:
            nonlocal order
            for token, then in automaton.following[at].items() if depth <= limit else ():
                own = probability * automaton.count[then] / automaton.count[at]
                if own >= self.min_probability:
                    order += 1
                    heapq.heappush(queue, (-own, order, then, token, parent))

        depths = [0]
        offer(state, 1.0, ROOT, 1)
        while queue and len(draft.tokens) < n_nodes:
            negative, _, then, token, parent = heapq.heappop(queue)
            draft.tokens.append(token)
            parents.append(parent)
            probabilities.append(-negative)
            depths.append(depths[parent + 1] + 1)
            offer(then, -negative, len(draft.tokens) - 1, depths[-1] + 1)
        draft.parents, draft.confidences = parents, probabilities
        return draft
