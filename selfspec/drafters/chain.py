"""Drafts of the model itself: a chain of tokens from a cheaper forward, or no draft at all."""

# B rows, V vocabulary

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from selfspec.acceptance.features import Before
from selfspec.acceptance.scorer import Scorer
from selfspec.engine.cache import ClockCache
from selfspec.engine.forward import BoundForward, Forward
from selfspec.engine.hidden_states import HEAD
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Output, Row, Verdict
from selfspec.engine.sampling import draw, largest
from selfspec.stopping.protocol import Evidence

__all__ = ["LAYER_SKIP", "ChainDraft", "Drafter", "ModelDraft", "NoDraft", "confidences_of"]

LAYER_SKIP = "layer_skip"


class NoDraft(BaseDrafter):
    """Proposes nothing, which makes `speculate` plain decoding."""

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """An empty draft for each row."""
        return [Draft() for _ in rows]


@dataclass(slots=True)
class Chains:
    """The chains of a batch while they grow.

    Attributes:
        rows: the rows.
        drafts: what was drafted for each row so far.
        limits: the longest chain of each row.
        active: rows that draft another token.
        last: the last token of each row, drafted or not.
        products: product of the confidences of each row's draft; kept for a scorer alone.
        step: tokens drafted for the rows that are active.
    """

    rows: Sequence[Row]
    drafts: list[Draft]
    limits: list[int]
    active: list[bool]
    last: list[int]
    products: list[float]
    step: int = 0

    def before(self, b: int) -> Before:
        """What stands before the next token of a row."""
        return Before(self.rows[b], tuple(self.drafts[b].tokens), self.products[b])


class ChainDraft(BaseDrafter, ABC):
    """Drafts chains token by token, with each row's stop rule; a subclass computes the logits.

    A stopped row stays in the batch until the last one stops, with unused results.

    Attributes:
        sample: draw from the draft's distribution if the target samples; otherwise take its maximum.
        needs_confidence: whether the stop rule reads the confidence; otherwise it gets nan.
        evidence: what the rule reads as the confidence.
        scorer: predicts acceptance, which the rule then reads as the confidence; None: nothing is predicted.
        max_depth: the most tokens of a chain; None: any number.
    """

    sample: bool
    needs_confidence: bool
    evidence: Evidence = "probability"
    scorer: Scorer | None = None
    max_depth: int | None = None

    @property
    def reads_hidden(self) -> bool:
        """Whether `grow` needs the input of the output head."""
        return self.scorer is not None and self.scorer.needs_hidden

    def can_draft(self, row: Row) -> bool:
        """Whether it knows enough of a row to draft for it."""
        return True

    def drafting(self, rows: Sequence[Row]) -> list[int]:
        """Indices of the rows that draft at all; the others take no part in a forward."""
        return [b for b, row in enumerate(rows) if row.limit > 0 and self.can_draft(row) and row.stop.begins()]

    def spread(self, drafts: Sequence[Draft], on: Sequence[int], n_rows: int) -> list[Draft]:
        """The drafts of the rows `on` at their places, and empty ones elsewhere."""
        found = [Draft(confidences=[], source=self.name) for _ in range(n_rows)]
        for b, draft in zip(on, drafts, strict=True):
            found[b] = draft
        return found

    def begin_chains(self, rows: Sequence[Row]) -> Chains:
        """Empty chains; the rows that draft at all are active."""
        drafts = [
            Draft(confidences=[], probabilities=[] if self.sample and row.chooser.do_sample else None, source=self.name)
            for row in rows
        ]
        limits = [row.limit if self.max_depth is None else min(row.limit, self.max_depth) for row in rows]
        active = [
            limit > 0 and self.can_draft(row) and row.stop.begins() for row, limit in zip(rows, limits, strict=True)
        ]
        return Chains(rows, drafts, limits, active, [row.ids[-1] for row in rows], [1.0] * len(rows))

    def grow(self, chains: Chains, logits_BV: Tensor, hidden_BD: Tensor | None = None) -> None:
        """Choose the next token of each active row, and ask its stop rule whether it goes on.

        Args:
            chains: the chains.
            logits_BV: the draft's logits.
            hidden_BD: input of its output head, if `reads_hidden`.
        """
        chosen = self._choose(chains, logits_BV, hidden_BD)
        chains.step += 1
        for b, (row, draft) in enumerate(zip(chains.rows, chains.drafts, strict=True)):
            if chains.active[b]:
                token, confidence = chosen[b]
                draft.tokens.append(token)
                draft.n_forwards += 1
                if self.needs_confidence:
                    draft.confidences = [*draft.confidences, confidence]
                chains.last[b] = token
                chains.active[b] = chains.step < chains.limits[b] and row.stop.more(chains.step, confidence)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Pass verdicts on this drafter's own drafts to the stop rule of the row."""
        if draft.source == self.name:
            row.stop.observe(len(draft.tokens), verdict.n_accepted)

    def _choose(self, chains: Chains, logits_BV: Tensor, hidden_BD: Tensor | None) -> list[tuple[int, float]]:
        """For each row a token and its confidence, before any processor; greedy rows read the device once."""
        rows, drafts, active = chains.rows, chains.drafts, chains.active
        if all(row.chooser.is_plain_greedy for row in rows):
            tokens_B = largest(logits_BV)
        else:
            tokens_B = torch.tensor(
                [
                    self._pick(row, draft, logits_V) if on else 0
                    for row, draft, on, logits_V in zip(rows, drafts, active, logits_BV, strict=True)
                ],
                device=logits_BV.device,
            )
        if not self.needs_confidence:
            return [(token, math.nan) for token in tokens_B.tolist()]
        if self.scorer is not None:
            return self._scored(self.scorer, chains, logits_BV, tokens_B, hidden_BD)
        confidence_B = evidence_of(logits_BV, tokens_B, self.evidence)
        both = torch.stack([tokens_B.double(), confidence_B.double()]).tolist()
        return [(int(token), confidence) for token, confidence in zip(*both, strict=True)]

    def _scored(
        self, scorer: Scorer, chains: Chains, logits_BV: Tensor, tokens_B: Tensor, hidden_BD: Tensor | None
    ) -> list[tuple[int, float]]:
        """For each row a token and its predicted acceptance; rows that have stopped are not scored."""
        on = [b for b, active in enumerate(chains.active) if active]
        hidden_ND = None if hidden_BD is None else hidden_BD[on]
        before = [chains.before(b) for b in on]
        scores_N1, raw_N1 = scorer.score(before, logits_BV[on], tokens_B[on].unsqueeze(-1), hidden_ND)
        read = torch.stack([scores_N1[:, 0].double(), raw_N1[:, 0].double()]).tolist()
        found = [(token, math.nan) for token in tokens_B.tolist()]
        for b, score, raw in zip(on, *read, strict=True):
            found[b] = found[b][0], score
            chains.products[b] *= raw
        return found

    def _pick(self, row: Row, draft: Draft, logits_V: Tensor) -> int:
        ids = row.ids + draft.tokens
        if draft.probabilities is None:
            # nan or infinity need no check here: the verifier rejects a bad draft
            return int(largest(row.chooser.warp(ids, logits_V)))
        draft_V = row.chooser.probabilities(ids, logits_V)
        draft.probabilities.append(draft_V)
        return draw(draft_V, row.chooser.draft_rng)


@dataclass(frozen=True, slots=True)
class ModelDraft(ChainDraft):
    """Drafts chains with a forward that shares the target's cache.

    Attributes:
        forward: the draft.
        sample, needs_confidence, evidence, scorer: see `ChainDraft`.
        name: name of the drafter, and `source` of its drafts.
    """

    forward: Forward
    sample: bool = True
    needs_confidence: bool = True
    name: str = LAYER_SKIP
    evidence: Evidence = "probability"
    scorer: Scorer | None = None
    is_replayable: ClassVar[bool] = True

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A chain for each row."""
        on = self.drafting(rows)
        # a recorded forward keeps its cache at fixed addresses, and has no view of a part of it
        if on and len(on) < len(rows) and isinstance(self.forward, BoundForward):
            found = self.propose([rows[b] for b in on], cache=cache.chosen(on))
            return self.spread(found, on, len(rows))
        chains = self.begin_chains(rows)
        starts = [len(row.ids) - 1 for row in rows]
        # Every drafted token is of the row's text or of the head's own, so these rows serve the whole draft.
        text_rows = self.forward.text_rows([row.ids for row in rows]) if any(chains.active) else None
        while any(chains.active):
            ids_B1 = torch.tensor(chains.last, device=cache.device).unsqueeze(1)
            # A stopped row keeps its position, so that its clock stays within the cache.
            at = [start + chains.step if on else start for start, on in zip(starts, chains.active, strict=True)]
            where: dict[str, Any] = {"starts": at, "cache": cache, "n_logits": 1, "text_rows": text_rows}
            if self.reads_hidden:
                output = self.forward.output(ids_B1, **where, hidden=(HEAD,))
                self.grow(chains, output.logits_BTV[:, -1], output.hidden[HEAD][:, -1])
            else:
                self.grow(chains, self.forward(ids_B1, **where)[:, -1])
        return chains.drafts


def evidence_of(logits: Tensor, tokens: Tensor, evidence: Evidence) -> Tensor:
    """What a stop rule reads of `tokens` [...] that were chosen under logits [..., V], before any processor."""
    if evidence == "probability":
        return confidences_of(logits, tokens.unsqueeze(-1)).squeeze(-1)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    # an infinitely unlikely token adds nothing to the entropy, and 0 times -inf would be nan
    logs = wide.log_softmax(-1)
    return (logs.exp() * logs.clamp_min(-1e4)).sum(-1).exp()


def confidences_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Raw probabilities of `tokens` [..., k] under logits [..., V], before any processor."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.softmax(-1).gather(-1, tokens)
