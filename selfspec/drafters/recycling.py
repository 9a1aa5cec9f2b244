"""Token recycling: the target's likeliest next tokens, kept for each token, are drafted when the token comes again.

It takes no forward, no training and no earlier occurrence of more than one token.
"""

# N nodes, V vocabulary

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import ROOT, BaseDrafter, Draft, Output, Row, Verdict
from selfspec.errors import InputError

RECYCLING = "recycling"  # the source of its drafts
PRIOR = (0.30, 0.12, 0.07, 0.05, 0.04, 0.03, 0.02, 0.02)  # acceptance by rank before any was seen; chosen, not tuned
WEIGHT = 32.0  # of the prior, in seen places; chosen, not tuned


@dataclass(slots=True)
class _Table:
    """Likeliest next tokens by token, and how often the next token had each rank."""

    after: dict[int, list[int]] = field(default_factory=dict)
    n_seen: int = 0
    hits: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Text:
    """A row's table, and the number of its tokens before the next verification."""

    table: _Table
    n_ids: int


class RecyclingDraft(BaseDrafter):
    """Drafts a tree of the tokens that the target last thought likely after each token.

    The tree holds the `max_nodes` likeliest paths by the acceptance of each rank so far. What the target computes at
    every verified node refreshes the table, also at rejected ones.

    Args:
        width: next tokens that are kept for a token, at most 8.
        max_nodes, max_depth: of a tree.
        min_probability: of a node's path; nodes below it cost more to verify than they promise.
        keep: use one table for all rows, also later ones.

    Raises:
        InputError: if a setting is impossible.

    Source: Luo et al. 2024, Token Recycling (arXiv:2408.08696): 8 tokens each, a fixed tree of 80 nodes and 6 levels.
    Two departures: the tree follows the measured acceptance of ranks, since verifying 80 nodes does not pay on a CPU;
    of a prompt only the output after its last token is known here, so its own pairs of tokens enter the table.
    """

    has_free_drafts: ClassVar[bool] = True

    def __init__(
        self,
        *,
        width: int = 8,
        max_nodes: int = 12,
        max_depth: int = 6,
        min_probability: float = 0.06,
        keep: bool = True,
    ) -> None:
        if not 1 <= width <= len(PRIOR) or max_nodes < 1 or max_depth < 1 or not 0 <= min_probability <= 1:
            raise InputError(
                f"drafter=recycling with width={width}, max_nodes={max_nodes}, max_depth={max_depth}, "
                f"min_probability={min_probability}: width is 1 to {len(PRIOR)}, then at least 1, then in [0, 1]"
            )
        self.width, self.max_nodes, self.max_depth, self.keep = width, max_nodes, max_depth, keep
        self.min_probability = min_probability
        self._shared = _Table(hits=[0] * width)
        self._rows: dict[int, _Text] = {}

    @property
    def name(self) -> str:
        """Its source."""
        return RECYCLING

    def begin(self, row: Row, prompt: Output) -> None:
        """Enter the prompt's pairs of tokens where the table has none, and what comes after its last token."""
        table = self._shared if self.keep else _Table(hits=[0] * self.width)
        self._rows[row.key] = _Text(table, len(row.ids))
        for token, then in zip(row.ids, row.ids[1:], strict=False):
            table.after.setdefault(token, [then])
        table.after[row.ids[-2]] = self._likeliest(prompt.logits_BTV[0, -1:])[0]

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A tree for each row."""
        return [self._tree(self._rows[row.key].table, row.ids[-1], row.limit) for row in rows]

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Refresh the rows of all verified tokens, whoever drafted them, and count the ranks of the accepted ones."""
        own = self._rows[row.key]
        table, root = own.table, row.ids[own.n_ids - 1]
        own.n_ids = len(row.ids)
        text = [draft.tokens[node] for node in verdict.path]
        for token, then in zip([root, *text], [*text, verdict.token], strict=True):
            known = table.after.get(token, [])
            table.n_seen += 1
            if then in known:
                table.hits[known.index(then)] += 1
        for token, likeliest in zip([root, *draft.tokens], self._likeliest(target.logits_BTV[0]), strict=True):
            table.after[token] = likeliest

    def end(self, row: Row) -> None:
        """Forget the row; a shared table stays."""
        self._rows.pop(row.key, None)

    def _likeliest(self, logits_NV: Tensor) -> list[list[int]]:
        found: list[list[int]] = logits_NV.topk(min(self.width, logits_NV.shape[-1])).indices.tolist()
        return found

    def _tree(self, table: _Table, root: int, limit: int) -> Draft:
        """The likeliest paths; a parent comes before its children, and siblings in the order of their ranks."""
        rates = [(n + WEIGHT * p) / (table.n_seen + WEIGHT) for n, p in zip(table.hits, PRIOR, strict=False)]
        draft, parents, paths = Draft(source=RECYCLING), [], [(root, 1.0, 0)]  # of a path: token, probability, depth
        queue: list[tuple[float, int, int]] = []  # -probability, node + 1 of the parent, rank

        def offer(parent: int, rank: int) -> None:
            token, before, depth = paths[parent]
            if depth < min(limit, self.max_depth) and rank < len(table.after.get(token, ())):
                heapq.heappush(queue, (-before * rates[rank], parent, rank))

        offer(0, 0)
        while queue and len(draft.tokens) < self.max_nodes:
            negative, parent, rank = heapq.heappop(queue)
            if -negative < self.min_probability:
                break
            token, _, depth = paths[parent]
            draft.tokens.append(table.after[token][rank])
            parents.append(parent - 1 if parent else ROOT)
            paths.append((draft.tokens[-1], -negative, depth + 1))
            offer(parent, rank + 1)
            offer(len(paths) - 1, 0)
        draft.parents = parents
        draft.confidences = [probability for _, probability, _ in paths[1:]]
        return draft
