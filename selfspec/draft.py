"""Drafters: propose tokens for the rows of a batch, one chain a row."""

# B rows, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from selfspec.cache import ClockCache
from selfspec.model import Forward
from selfspec.sampling import Chooser, draw, largest
from selfspec.stop import StopState


@dataclass(slots=True)
class DraftRow:
    """What a drafter may know of one row: all its tokens so far, how many more it may propose, and its stop rule."""

    ids: list[int]
    limit: int
    stop: StopState
    chooser: Chooser


@dataclass(slots=True)
class Proposal:
    """Drafted tokens, how sure the draft was of them, and what each was drawn from ([V]; None: without chance).

    `looked_up` says that they were copied from the text at no cost: a stop rule, which learns what drafting is worth,
    is not told what becomes of them.
    """

    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    probabilities: list[Tensor] | None = None
    looked_up: bool = False


class Drafter(Protocol):
    """Proposes tokens; may write keys and values at positions that are not committed yet, and nowhere else."""

    def propose(self, rows: Sequence[DraftRow], *, cache: ClockCache) -> list[Proposal]:
        """One proposal a row, of at most `limit` tokens."""
        ...


class NoDraft:
    """Proposes nothing: what is left is plain decoding."""

    def propose(self, rows: Sequence[DraftRow], *, cache: ClockCache) -> list[Proposal]:
        """See `Drafter`."""
        return [Proposal() for _ in rows]


@dataclass(frozen=True, slots=True)
class ModelDraft:
    """Drafts with a forward that shares the target's cache.

    Attributes:
        forward: the draft.
        sample: draw from the draft's distribution, if the target samples; otherwise always take its maximum.
        needs_confidence: whether the stop rule looks at the confidence; nan is passed where it does not.
    """

    forward: Forward
    sample: bool = True
    needs_confidence: bool = True

    def propose(self, rows: Sequence[DraftRow], *, cache: ClockCache) -> list[Proposal]:
        """See `Drafter`. A row that has stopped is carried along until the last one stops; its work is dead."""
        starts = [len(row.ids) - 1 for row in rows]
        proposals = [Proposal(probabilities=[] if self.sample and row.chooser.do_sample else None) for row in rows]
        active = [row.limit > 0 and row.stop.begins() for row in rows]
        last = [row.ids[-1] for row in rows]
        device = cache.device
        # What a row drafts is of its text or of the head's own tokens, so these rows last for all of its draft.
        text_rows = self.forward.text_rows([row.ids for row in rows]) if any(active) else None
        step = 0
        while any(active):
            ids_B1 = torch.tensor(last, device=device).unsqueeze(1)
            # A stopped row waits at its place: its clock must not run past what the cache can hold.
            at = [
                start + len(p.tokens) if on else start for start, p, on in zip(starts, proposals, active, strict=True)
            ]
            logits_BV = self.forward(ids_B1, starts=at, cache=cache, n_logits=1, text_rows=text_rows)[:, -1]
            chosen = self._choose(rows, proposals, active, logits_BV)
            step += 1
            for b, (row, proposal) in enumerate(zip(rows, proposals, strict=True)):
                if active[b]:
                    token, confidence = chosen[b]
                    proposal.tokens.append(token)
                    if self.needs_confidence:
                        proposal.confidences.append(confidence)
                    last[b] = token
                    active[b] = step < row.limit and row.stop.more(step, confidence)
        return proposals

    def _choose(
        self, rows: Sequence[DraftRow], proposals: Sequence[Proposal], active: Sequence[bool], logits_BV: Tensor
    ) -> list[tuple[int, float]]:
        """A token and its raw probability (before any warp) for each row; one read from the device when greedy."""
        if all(row.chooser.is_plain_greedy for row in rows):
            tokens_B = largest(logits_BV)
        else:
            tokens_B = torch.tensor(
                [
                    self._pick(row, proposal, logits_V) if on else 0
                    for row, proposal, on, logits_V in zip(rows, proposals, active, logits_BV, strict=True)
                ],
                device=logits_BV.device,
            )
        if not self.needs_confidence:
            return [(token, math.nan) for token in tokens_B.tolist()]
        wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
        confidence_B = wide_BV.softmax(-1).gather(-1, tokens_B.unsqueeze(-1)).squeeze(-1)
        both = torch.stack([tokens_B.double(), confidence_B.double()]).tolist()
        return [(int(token), confidence) for token, confidence in zip(*both, strict=True)]

    def _pick(self, row: DraftRow, proposal: Proposal, logits_V: Tensor) -> int:
        ids = row.ids + proposal.tokens
        if proposal.probabilities is None:
            return row.chooser.greedy(ids, logits_V)
        draft_V = row.chooser.probabilities(ids, logits_V)
        proposal.probabilities.append(draft_V)
        return draw(draft_V, row.chooser.draft_rng)
