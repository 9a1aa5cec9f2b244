"""Drafts trees: several alternatives for a token, one forward for each level.

The shape decides how the tree grows. One forward of the model, or one step of a trained head, reads all nodes of a
level; each sees the text and its own branch.
"""

# B rows, W nodes of a level, K children of a node, V vocabulary

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from selfspec.acceptance.features import Before
from selfspec.acceptance.scorer import Scorer
from selfspec.drafters.chain import LAYER_SKIP, confidences_of
from selfspec.drafters.tree_shapes import Node, TreeShape
from selfspec.engine.cache import ClockCache
from selfspec.engine.forward import BoundForward, Forward
from selfspec.engine.hidden_states import HEAD
from selfspec.engine.protocols import ROOT, BaseDrafter, Draft, Output, Row, Verdict
from selfspec.engine.tree import tree_layout
from selfspec.errors import InputError
from selfspec.skipping.trimmed_head import TextRows

# Parent, tokens, their confidences, and the distribution that they were drawn from.
Children = tuple[int, list[int], list[float], Tensor | None]
PRIOR_ROUNDS = 4.0  # the rate starts at 1 (plain decoding) with this weight; chosen, not tuned


@dataclass(slots=True)
class Growing:
    """The tree of one row while it grows.

    Attributes:
        row: the row.
        start: position of its last token.
        rate: tokens committed so far for the cost of one plain token.
        tokens, nodes, confidences, drawn_from: of each node; `drawn_from` is empty if nothing was drawn.
        products: of the confidences up to each node; kept for a scorer alone.
        read: nodes that the draft has read, in that order; `ROOT`, the row's last token, is the first.
        level: nodes to read next; empty: the tree is whole.
        n_forwards: levels read so far.
    """

    row: Row
    start: int
    rate: float
    tokens: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    drawn_from: list[Tensor] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    level: list[int] = field(default_factory=list)
    n_forwards: int = 0

    def path(self, node: int) -> list[int]:
        """The tokens from the root to a node."""
        found: list[int] = []
        while node != ROOT:
            found.append(self.tokens[node])
            node = self.nodes[node].parent
        return found[::-1]

    def before(self, nodes: Sequence[int]) -> list[Before]:
        """What stands before the children of each of these nodes."""
        return [Before(self.row, self.path(i), 1.0 if i == ROOT else self.products[i]) for i in nodes]

    def as_read(self) -> Draft:
        """The nodes read so far and those of this level, as a draft whose nodes are in the order of their slots."""
        nodes = [i for i in (*self.read, *self.level) if i != ROOT]
        place = {node: i for i, node in enumerate(nodes)} | {ROOT: ROOT}
        return Draft([self.tokens[i] for i in nodes], [place[self.nodes[i].parent] for i in nodes])


class LevelDraft(BaseDrafter, ABC):
    """Drafts trees level by level; a subclass reads a level.

    Attributes:
        shape: decides how a tree grows.
        sample: draw siblings from the draft's distribution without replacement, if the target samples and the shape is
            fixed; otherwise they are the likeliest tokens, each a point mass. Both are exact.
        scorer: predicts acceptance, which takes the place of the confidence; the stop rule then ends a tree whose
            shape weighs no costs. None: nothing is predicted.
        max_depth: the longest path that it can draft; None: any.
    """

    shape: TreeShape
    sample: bool
    scorer: Scorer | None = None
    max_depth: int | None = None
    _gains: dict[int, tuple[float, float]]

    def check(self) -> None:
        """Raise InputError if the shape has no costs yet, or siblings cannot be drawn for it."""
        if self.sample and not self.shape.is_fixed:
            raise InputError(
                "drawn siblings need a tree whose size does not depend on what is drawn (tree=static); take "
                "sample_draft=false, which is as exact"
            )
        if not getattr(self.shape, "is_priced", True):
            raise InputError(
                "tree=best_first has no costs yet; a search and an evaluation measure them, or give tree.draft_cost "
                "and tree.verify_cost, in plain tokens"
            )

        if self.scorer is not None and self.scorer.is_late:
            raise InputError(
                "a tree needs the acceptance of a token before it reads it, and a predictor of form=published gives "
                "it after; train one with predictor=specdec, logistic or table"
            )

    @property
    def reads_hidden(self) -> bool:
        """Whether the scorer needs the input of the output head."""
        return self.scorer is not None and self.scorer.needs_hidden

    @abstractmethod
    def read_level(
        self, growing: Sequence[Growing], cache: ClockCache, text_rows: TextRows | None
    ) -> tuple[Tensor, Tensor | None]:
        """The draft's logits after each node of the newest level, [B, W, V]; what pads short levels is not used.

        With them the input of its output head, [B, W, D], if `reads_hidden`.

        Args:
            growing: the trees, whose levels have one depth; those without a level are whole.
            cache: of the target.
            text_rows: see `text_rows`.
        """

    @abstractmethod
    def text_rows(self, texts: Sequence[Sequence[int]]) -> TextRows | None:
        """Further rows of the output head that the texts need, if it is trimmed."""

    def can_draft(self, row: Row) -> bool:
        """Whether it knows enough of a row to draft for it."""
        return True

    def begin(self, row: Row, prompt: Output) -> None:
        """Begin the row with the rate of plain decoding."""
        self._gains[row.key] = PRIOR_ROUNDS, PRIOR_ROUNDS

    def end(self, row: Row) -> None:
        """Forget the row's rate."""
        self._gains.pop(row.key, None)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Update the row's stop rule and its rate of tokens per cost, which prices the nodes of the next tree."""
        if draft.source != self.name:
            return
        row.stop.observe(draft.n_forwards, verdict.n_accepted)
        tokens, cost = self._gains.get(row.key, (PRIOR_ROUNDS, PRIOR_ROUNDS))
        spent = self.shape.cost(n_forwards=draft.n_forwards, n_nodes=len(draft.tokens))
        self._gains[row.key] = tokens + verdict.n_accepted + 1, cost + 1 + spent

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A tree for each row; one forward for each level, of all rows that draft."""
        growing, on = [], []
        for b, row in enumerate(rows):
            tokens, cost = self._gains.get(row.key, (1.0, 1.0))
            tree = Growing(row, len(row.ids) - 1, max(1.0, tokens / cost))
            if row.limit > 0 and self.can_draft(row) and row.stop.begins():
                tree.level = [ROOT]
                on.append(b)
            growing.append(tree)
        if on:
            trees, part = self.drafting(growing, on, cache)
            text_rows = self.text_rows([tree.row.ids for tree in trees])
            while any(tree.level for tree in trees):
                logits_BWV, hidden_BWD = self.read_level(trees, part, text_rows)
                for b, tree in enumerate(trees):
                    if tree.level:
                        self._grow(tree, logits_BWV[b], None if hidden_BWD is None else hidden_BWD[b])
        return [self._draft(tree) for tree in growing]

    def drafting(
        self, growing: Sequence[Growing], on: Sequence[int], cache: ClockCache
    ) -> tuple[list[Growing], ClockCache]:
        """The trees that grow, of the rows `on`, and the cache of their rows; a head writes into none."""
        return [growing[b] for b in on], cache

    def _grow(self, tree: Growing, logits_WV: Tensor, hidden_WD: Tensor | None) -> None:
        """Add the children of the newest level, and choose which of them form the next level."""
        parents, tree.read = tree.level, [*tree.read, *tree.level]
        tree.n_forwards += 1
        newest: list[int] = []
        children = self._children(tree, parents, logits_WV)
        if self.scorer is not None:
            children = self._scored(self.scorer, tree, children, logits_WV, hidden_WD)
        for parent, tokens, confidences, draft_V in children:
            above = tree.nodes[parent] if parent != ROOT else Node(ROOT, 0, (), 1.0)
            for rank, (token, confidence) in enumerate(zip(tokens, confidences, strict=True)):
                chance = above.path_probability * self.shape.acceptance(confidence)
                newest.append(len(tree.nodes))
                tree.nodes.append(Node(parent, above.depth + 1, (*above.ranks, rank), chance))
                tree.tokens.append(token)
                tree.confidences.append(confidence)
                if draft_V is not None:
                    tree.drawn_from.append(draft_V)
        tree.level = []
        limits = tree.row.limit, self.shape.max_depth, self.max_depth
        if tree.nodes[newest[0]].depth < min(limit for limit in limits if limit is not None):
            tree.level = self.shape.expands(tree.nodes, newest, rate=tree.rate)
        if tree.level and self.scorer is not None and not self.shape.cost(n_forwards=1, n_nodes=1):
            # A level is to the rule what a token of a chain is: it is accepted if one of its nodes is.
            above_p = sum(tree.nodes[i].path_probability if i != ROOT else 1.0 for i in parents)
            reached = min(1.0, sum(tree.nodes[i].path_probability for i in newest) / above_p) if above_p else 0.0
            if not tree.row.stop.more(tree.n_forwards, reached):
                tree.level = []

    def _scored(
        self, scorer: Scorer, tree: Growing, children: Sequence[Children], logits_WV: Tensor, hidden_WD: Tensor | None
    ) -> list[Children]:
        """The children with predicted acceptances in place of confidences."""
        found: list[Children] = []
        for w, (parent, tokens, _, draft_V) in enumerate(children):
            tokens_1K = torch.tensor([tokens], device=logits_WV.device)
            hidden_1D = None if hidden_WD is None else hidden_WD[w : w + 1]
            before = tree.before([parent])
            scores_1K, raw_1K = scorer.score(before, logits_WV[w : w + 1], tokens_1K, hidden_1D)
            tree.products += [before[0].product * raw for raw in raw_1K[0].tolist()]
            found.append((parent, tokens, scores_1K[0].tolist(), draft_V))
        return found

    def _children(self, tree: Growing, parents: Sequence[int], logits_WV: Tensor) -> list[Children]:
        """For each parent: tokens, their raw probabilities, and the distribution if they were drawn."""
        logits_WV = logits_WV[: len(parents)]
        chooser = tree.row.chooser
        if self.is_drawn(tree.row):
            found: list[Children] = []
            for parent, logits_V in zip(parents, logits_WV, strict=True):
                tokens_K, draft_V = self._drawn(tree, parent, logits_V)
                found.append((parent, tokens_K.tolist(), confidences_of(logits_V, tokens_K).tolist(), draft_V))
            return found
        warped_WV = logits_WV
        if not chooser.is_plain_greedy:
            warped = [chooser.warp(tree.row.ids + tree.path(p), v) for p, v in zip(parents, logits_WV, strict=True)]
            warped_WV = torch.stack(warped)
        tokens_WK = warped_WV.topk(min(self.shape.n_children, warped_WV.shape[-1]), dim=-1).indices
        confidences_WK = confidences_of(logits_WV, tokens_WK)
        nothing = [None] * len(parents)
        return list(zip(parents, tokens_WK.tolist(), confidences_WK.tolist(), nothing, strict=True))

    def is_drawn(self, row: Row) -> bool:
        """Whether a row's siblings are drawn."""
        return self.sample and row.chooser.do_sample

    def _drawn(self, tree: Growing, parent: int, logits_V: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [K] drawn without replacement, in order, and the distribution of the first.

        Source: Gumbel top-k, Kool et al. 2019 (arXiv:1903.06059): the K largest entries of log q + Gumbel noise.
        """
        draft_V = tree.row.chooser.probabilities(tree.row.ids + tree.path(parent), logits_V)
        noise_V = torch.rand(draft_V.shape, generator=tree.row.chooser.draft_rng, dtype=torch.float64)
        keys_V = draft_V.double().log() - (-noise_V.to(draft_V.device).log()).log()
        return keys_V.topk(min(self.shape.n_children, int((draft_V > 0).sum()))).indices, draft_V

    def _draft(self, tree: Growing) -> Draft:
        """The draft of the kept nodes; the likeliest path comes first, so accepting it moves nothing in the cache."""
        limit = tree.row.limit
        kept = {i for i in self.shape.keeps(tree.nodes, rate=tree.rate) if tree.nodes[i].depth <= limit}
        order: list[int] = []

        def walk(parent: int) -> None:
            for i in sorted(kept):
                if tree.nodes[i].parent == parent:
                    order.append(i)
                    walk(i)

        walk(ROOT)
        place = {node: i for i, node in enumerate(order)} | {ROOT: ROOT}
        return Draft(
            [tree.tokens[i] for i in order],
            [place[tree.nodes[i].parent] for i in order],
            [tree.confidences[i] for i in order],
            [tree.drawn_from[i] for i in order] if tree.drawn_from else None,
            source=self.name,
            n_forwards=tree.n_forwards,
        )


@dataclass(frozen=True, slots=True)
class TreeDraft(LevelDraft):
    """Drafts trees with a forward that shares the target's cache.

    Attributes:
        forward: the draft.
        shape, sample, scorer: see `LevelDraft`.
        name: name of the drafter, and `source` of its drafts.
    """

    forward: Forward
    shape: TreeShape
    sample: bool = False
    name: str = LAYER_SKIP
    scorer: Scorer | None = None
    is_replayable: ClassVar[bool] = True
    _gains: dict[int, tuple[float, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.check()

    def text_rows(self, texts: Sequence[Sequence[int]]) -> TextRows | None:
        """See `LevelDraft.text_rows`."""
        return self.forward.text_rows(texts)

    def drafting(
        self, growing: Sequence[Growing], on: Sequence[int], cache: ClockCache
    ) -> tuple[list[Growing], ClockCache]:
        """See `LevelDraft.drafting`; a recorded forward keeps its cache at fixed addresses, and so reads all rows."""
        if len(on) == len(growing) or not isinstance(self.forward, BoundForward):
            return list(growing), cache
        return [growing[b] for b in on], cache.chosen(on)

    def read_level(
        self, growing: Sequence[Growing], cache: ClockCache, text_rows: TextRows | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `LevelDraft.read_level`; one forward of all rows."""
        width = max(len(tree.level) for tree in growing)
        # Slot 0 of a row is its last token; a node's slot is its index among the read nodes, plus 1.
        begins = [len(tree.read) for tree in growing]
        starts = [tree.start for tree in growing]
        clocks = [start + begin for start, begin in zip(starts, begins, strict=True)]
        drafts = [tree.as_read() for tree in growing]
        n_new = max(begins) + width
        positions_BT, seen_BTS, key_positions_BS = tree_layout(starts, drafts, n_new=n_new, n_keys=max(clocks) + width)
        at_BW = torch.tensor(begins).unsqueeze(1) + torch.arange(width)
        ids = [
            [tree.row.ids[-1] if i == ROOT else tree.tokens[i] for i in tree.level] + [0] * (width - len(tree.level))
            for tree in growing
        ]
        cache.set(clocks, width)
        device = cache.device
        output = self.forward.tree_output(
            torch.tensor(ids, device=device),
            positions_BT=positions_BT.gather(1, at_BW).to(device),
            seen_BTS=seen_BTS.gather(1, at_BW.unsqueeze(-1).expand(-1, -1, seen_BTS.shape[-1])).to(device),
            key_positions_BS=key_positions_BS.to(device),
            cache=cache,
            text_rows=text_rows,
            hidden=(HEAD,) if self.reads_hidden else (),
        )
        return output.logits_BTV, output.hidden.get(HEAD)
