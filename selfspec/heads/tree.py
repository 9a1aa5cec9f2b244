"""Trees from a trained head: a level of nodes is one step of the head, in which each node sees its own branch."""

# B rows, W nodes of a level, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec.drafters.tree_drafter import Growing, LevelDraft
from selfspec.drafters.tree_shapes import TreeShape
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import ROOT
from selfspec.heads.modules import DraftModule
from selfspec.heads.output import OutputHead
from selfspec.heads.rows import ReadsTarget
from selfspec.skipping.trimmed_head import TextRows


class HeadTree(ReadsTarget, LevelDraft):
    """Drafts trees with a trained head.

    Blind heads give all nodes of a level the same children, which is Medusa's tree.

    Args:
        module: the head.
        output: output head and embedding of the target, as the draft uses them.
        shape: decides how a tree grows.
        sample: see `LevelDraft`.
        name: name of the drafter, and `source` of its drafts.
    """

    def __init__(
        self, module: DraftModule, output: OutputHead, shape: TreeShape, *, sample: bool = False, name: str = "head"
    ) -> None:
        super().__init__(module, output, name)
        self.shape, self.sample, self._gains = shape, sample, {}
        self.check()

    def text_rows(self, texts: Sequence[Sequence[int]]) -> TextRows | None:
        """See `OutputHead.text_rows`."""
        return self.output.text_rows(texts)

    def read_level(
        self, growing: Sequence[Growing], cache: ClockCache, text_rows: TextRows | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `LevelDraft.read_level`; nothing is written into the cache."""
        on = [tree for tree in growing if tree.level]
        rows = [tree.row for tree in on]
        if on[0].level == [ROOT]:
            hidden_ND = self.rows.read(rows)
        else:
            tokens = [[tree.tokens[i] for i in tree.level] for tree in on]
            # the first node that was read is the root
            places = [{node: i - 1 for i, node in enumerate(tree.read)} | {ROOT: ROOT} for tree in on]
            pairs = zip(on, places, strict=True)
            parents = [[place[tree.nodes[i].parent] for i in tree.level] for tree, place in pairs]
            hidden_ND = self.rows.step(rows, parents, tokens, on[0].nodes[on[0].level[0]].depth)
        widths = [len(tree.level) for tree in growing]
        hidden_BWD = hidden_ND.new_zeros(len(growing), max(widths), hidden_ND.shape[-1])
        for b, part in enumerate(torch.split(hidden_ND, widths)):
            hidden_BWD[b, : widths[b]] = part
        return self.output.logits(hidden_BWD, text_rows), hidden_BWD
