"""The drafter of refined blind heads: one product of all heads, then paths through their likeliest tokens."""

# B rows, K heads, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Output, Row, Verdict
from selfspec.engine.tree import depth
from selfspec.heads.blockwise import BlindState
from selfspec.heads.output import OutputHead
from selfspec.heads.refinement.lattice import Lattice, Paths, merged
from selfspec.heads.refinement.refine import Refine
from selfspec.heads.rows import ReadsTarget


class RefineDraft(ReadsTarget):
    """Drafts refined chains, or the tree of the best paths; tokens are point masses, which keeps samples exact.

    The best path asks the stop rule how long it may be, and the others are cut to its length.

    Args:
        module: heads and what refines them.
        output: output head and embedding of the target, as the draft uses them.
        name: name of the drafter, and `source` of its drafts.
    """

    module: Refine

    def __init__(self, module: Refine, output: OutputHead, *, name: str = Refine.kind) -> None:
        super().__init__(module, output, name)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Keep the hidden states; the stop rule learns from this drafter's own drafts."""
        if draft.source == self.name:
            row.stop.observe(depth(draft), verdict.n_accepted)
        super().observe(row, draft, verdict, target)

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A chain or a tree for each row."""
        on = [b for b, row in enumerate(rows) if row.limit > 0 and self.can_draft(row) and row.stop.begins()]
        drafts = [Draft(source=self.name) for _ in rows]
        if on:
            drafting = [rows[b] for b in on]
            self.rows.read(drafting)
            paths = self.paths([row.ids for row in drafting], [self.rows.known[row.key].state for row in drafting])
            plain = zip(on, drafting, paths.tokens_BPK.tolist(), paths.sure_BPK.tolist(), strict=True)
            for b, row, tokens, sure in plain:
                drafts[b] = self._draft(row, tokens, sure)
        return drafts

    def paths(self, texts: Sequence[Sequence[int]], states: Sequence[BlindState]) -> Paths:
        """Refined paths after texts whose hidden states the states hold."""
        feature_BD = self.module.features(states)
        text_rows = self.output.text_rows(texts)
        lattice = Lattice.of(self.output.logits(self.module.columns(feature_BD), text_rows), self.module.m)
        n_back = max(1, self.module.ngrams.order - 1)
        padded = [[-1] * (n_back - len(text)) + list(text[-n_back:]) for text in texts]
        context_BL = torch.tensor(padded, device=feature_BD.device)
        return self.module.refined(
            lattice, context_BL, feature_BD, embed=self.output.embed_ids, rows=self.output.rows_of
        )

    def _draft(self, row: Row, tokens: Sequence[Sequence[int]], sure: Sequence[Sequence[float]]) -> Draft:
        n, longest = 1, min(row.limit, len(tokens[0]))
        while n < longest and row.stop.more(n, sure[0][n - 1]):
            n += 1
        if len(tokens) == 1:
            return Draft(list(tokens[0][:n]), None, list(sure[0][:n]), source=self.name, n_forwards=1)
        nodes, parents = merged([path[:n] for path in tokens])
        return Draft(nodes, parents, source=self.name, n_forwards=1)
