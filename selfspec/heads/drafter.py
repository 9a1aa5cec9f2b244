"""The drafter of a trained head: chains of tokens from the target's hidden states."""

# B rows, N rows that draft on, D hidden size, V vocabulary

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor

from selfspec.drafters.chain import ChainDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Row
from selfspec.heads.modules import DraftModule
from selfspec.heads.output import OutputHead
from selfspec.heads.rows import ReadsTarget

HEAD = "head"  # the source of its drafts


class HeadDraft(ReadsTarget, ChainDraft):
    """Drafts chains with a trained head; it keeps a small memory for each row and writes nothing into the cache.

    Args:
        module: the head.
        output: output head and embedding of the target, as the draft uses them.
        sample: draw from the draft's distribution if the target samples; otherwise take its maximum.
        needs_confidence: whether the stop rule reads the confidence; otherwise it gets nan.
        name: name of the drafter, and `source` of its drafts.
    """

    reads_cache: ClassVar[bool] = False

    def __init__(
        self,
        module: DraftModule,
        output: OutputHead,
        *,
        sample: bool = True,
        needs_confidence: bool = True,
        name: str = HEAD,
    ) -> None:
        super().__init__(module, output, name)
        self.sample, self.needs_confidence = sample, needs_confidence

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A chain for each row: depth 0 reads the hidden states of the accepted tokens, later ones the head's own."""
        begun = self.drafting(rows)
        if begun and len(begun) < len(rows):
            return self.spread(self.propose([rows[b] for b in begun], cache=cache), begun, len(rows))
        chains = self.begin_chains(rows)
        text_rows = self.output.text_rows([row.ids for row in rows]) if any(chains.active) else None
        while any(chains.active):
            on = [b for b, active in enumerate(chains.active) if active]
            hidden_ND = self._next([rows[b] for b in on], [chains.last[b] for b in on], chains.step)
            hidden_BD = hidden_ND
            if len(on) < len(rows):  # what a stopped row gets is not used
                hidden_BD = hidden_ND.new_zeros(len(rows), hidden_ND.shape[-1])
                hidden_BD[on] = hidden_ND
            self.grow(chains, self.output.logits(hidden_BD.unsqueeze(1), text_rows)[:, 0], hidden_BD)
        return chains.drafts

    def grown(self, row: Row, given: Sequence[int]) -> Iterator[Draft]:
        """The chain of one row behind `given` drafted tokens, after each further token; it is one object that grows.

        Given tokens are part of the chain and have no probabilities. The head reads them as tokens of its own.
        """
        chains = self.begin_chains([row])
        text_rows = self.output.text_rows([[*row.ids, *given]]) if chains.active[0] else None
        while chains.active[0] and chains.step < chains.limits[0]:
            hidden_1D = self._next([row], chains.last, chains.step)
            if chains.step < len(given):
                chains.last = [given[chains.step]]
                chains.drafts[0].tokens += chains.last
                chains.step += 1
            else:
                row.chooser.seek_draft(len(row.ids) + chains.step)
                self.grow(chains, self.output.logits(hidden_1D.unsqueeze(1), text_rows)[:, 0], hidden_1D)
                yield chains.drafts[0]

    def _next(self, rows: Sequence[Row], tokens: Sequence[int], depth: int) -> Tensor:
        if not depth:
            return self.rows.read(rows)
        return self.rows.step(rows, [[depth - 2]] * len(rows), [[token] for token in tokens], depth)
