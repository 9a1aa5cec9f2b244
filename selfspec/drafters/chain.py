"""Drafts of the model itself: a chain of tokens from a cheaper forward, or no draft at all."""

# B rows, V vocabulary

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from selfspec.engine.cache import ClockCache
from selfspec.engine.forward import Forward
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Output, Row, Verdict
from selfspec.engine.sampling import draw, largest

__all__ = ["LAYER_SKIP", "ChainDraft", "Drafter", "ModelDraft", "NoDraft", "confidences_of"]

LAYER_SKIP = "layer_skip"


class NoDraft(BaseDrafter):
    """Proposes nothing, which makes `speculate` plain decoding."""

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """An empty draft for each row."""
        return [Draft() for _ in rows]


NextLogits = Callable[[Sequence[int], Sequence[bool], int], Tensor]
"""From each row's last token, which rows still draft, and the number of tokens drafted, to logits [B, V]."""


class ChainDraft(BaseDrafter, ABC):
    """Drafts chains token by token, with each row's stop rule; a subclass says where logits come from.

    Attributes:
        sample: draw from the draft's distribution if the target samples; otherwise take its maximum.
        needs_confidence: whether the stop rule reads the confidence; otherwise it gets nan.
        max_depth: the most tokens of a chain; None: any number.
    """

    sample: bool
    needs_confidence: bool
    max_depth: int | None = None

    @abstractmethod
    def next_logits(self, rows: Sequence[Row], cache: ClockCache) -> NextLogits:
        """Begin a draft; the function is called once for each token of the longest chain."""

    def can_draft(self, row: Row) -> bool:
        """Whether it knows enough of a row to draft for it."""
        return True

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """A chain for each row; a stopped row stays in the batch until the last one stops, with unused results."""
        drafts = [
            Draft(confidences=[], probabilities=[] if self.sample and row.chooser.do_sample else None, source=self.name)
            for row in rows
        ]
        limits = [row.limit if self.max_depth is None else min(row.limit, self.max_depth) for row in rows]
        active = [
            limit > 0 and self.can_draft(row) and row.stop.begins() for row, limit in zip(rows, limits, strict=True)
        ]
        if not any(active):
            return drafts
        last = [row.ids[-1] for row in rows]
        following = self.next_logits(rows, cache)
        step = 0
        while any(active):
            chosen = self._choose(rows, drafts, active, following(last, active, step))
            step += 1
            for b, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
                if active[b]:
                    token, confidence = chosen[b]
                    draft.tokens.append(token)
                    draft.n_forwards += 1
                    if self.needs_confidence:
                        draft.confidences = [*draft.confidences, confidence]
                    last[b] = token
                    active[b] = step < limits[b] and row.stop.more(step, confidence)
        return drafts

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Pass verdicts on this drafter's own drafts to the stop rule of the row."""
        if draft.source == self.name:
            row.stop.observe(len(draft.tokens), verdict.n_accepted)

    def _choose(
        self, rows: Sequence[Row], drafts: Sequence[Draft], active: Sequence[bool], logits_BV: Tensor
    ) -> list[tuple[int, float]]:
        """For each row a token and its raw probability (before any processor); greedy rows read the device once."""
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
        confidence_B = confidences_of(logits_BV, tokens_B.unsqueeze(-1)).squeeze(-1)
        both = torch.stack([tokens_B.double(), confidence_B.double()]).tolist()
        return [(int(token), confidence) for token, confidence in zip(*both, strict=True)]

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
        sample, needs_confidence: see `ChainDraft`.
        name: name of the drafter, and `source` of its drafts.
    """

    forward: Forward
    sample: bool = True
    needs_confidence: bool = True
    name: str = LAYER_SKIP
    is_replayable: ClassVar[bool] = True

    def next_logits(self, rows: Sequence[Row], cache: ClockCache) -> NextLogits:
        """Logits of the draft's forward."""
        starts = [len(row.ids) - 1 for row in rows]
        # Every drafted token is of the row's text or of the head's own, so these rows serve the whole draft.
        text_rows = self.forward.text_rows([row.ids for row in rows])

        def following(last: Sequence[int], active: Sequence[bool], step: int) -> Tensor:
            ids_B1 = torch.tensor(last, device=cache.device).unsqueeze(1)
            # A stopped row keeps its position, so that its clock stays within the cache.
            at = [start + step if on else start for start, on in zip(starts, active, strict=True)]
            return self.forward(ids_B1, starts=at, cache=cache, n_logits=1, text_rows=text_rows)[:, -1]

        return following


def confidences_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Raw probabilities of `tokens` [..., k] under logits [..., V], before any processor."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.softmax(-1).gather(-1, tokens)
