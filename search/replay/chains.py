"""Grow draft chains from many possible starts of a round in the same forward.

A chain is the draft from one start on, if the text up to there is committed. Its tokens see the full model's keys and
values before the start and the chain's own after it, exactly like the real draft. The chains of a prompt share its row,
separated by a tree mask, so one forward extends any number of chains by one token.
"""

# B prompts, T chains in a row, S keys, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from search.replay.references import ReferenceBatch
from selfspec.drafters.chain import evidence_of
from selfspec.engine.forward import Forward
from selfspec.engine.sampling import largest
from selfspec.stopping import Evidence

Start = tuple[int, int]  # (row of the batch, committed tokens of its reference)

TEXT, PADDING = -1, -2  # owners of keys that are in no chain


@dataclass(slots=True)
class Chain:
    """Drafted tokens and their confidences; `limit` is the largest number of tokens that a round may draft there."""

    limit: int
    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)


class Chains:
    """The chains of one draft on one batch of references, grown on demand.

    Args:
        forward: the draft.
        batch: texts, and the full model's keys and values of them, which are not changed.
        max_draft: length of the longest chain.
        with_confidence: whether to compute confidences; otherwise they are nan.
        evidence: what the stop rule reads as the confidence.
    """

    def __init__(
        self,
        forward: Forward,
        batch: ReferenceBatch,
        *,
        max_draft: int,
        with_confidence: bool = True,
        evidence: Evidence = "probability",
    ) -> None:
        self.batch, self._evidence = batch, evidence
        self._forward, self._max_draft, self._with_confidence = forward, max_draft, with_confidence
        self._chains: dict[Start, Chain] = {}
        self._texts = [[*r.prompt, *r.tokens] for r in batch.references]
        device, n_rows, n_keys = batch.cache.device, len(batch.references), batch.n_keys
        # Owner and position of each key: first those of the texts, then those of the chains, a column for each query.
        # The owner of a chain's key is the position at which the chain begins.
        self._owners_BS = torch.full((n_rows, n_keys), TEXT, device=device)
        self._positions_BS = torch.arange(n_keys, device=device).expand(n_rows, n_keys)

    @property
    def starts(self) -> list[Start]:
        """All possible starts of a round."""
        return [(b, n) for b, reference in enumerate(self.batch.references) for n in range(1, len(reference.tokens))]

    def __getitem__(self, start: Start) -> Chain:
        """The chain from `start` on, with the tokens so far."""
        if start not in self._chains:
            row, n_committed = start
            limit = min(self._max_draft, self.batch.references[row].n_max - n_committed - 1)
            self._chains[start] = Chain(limit)
        return self._chains[start]

    @torch.inference_mode()
    def grow(self, starts: Sequence[Start]) -> None:
        """Extend the chains of `starts`, which are distinct, by one token, in one forward."""
        rows: list[list[Start]] = [[] for _ in self.batch.references]
        for start in starts:
            rows[start[0]].append(start)
        ids_BT, where = self._newest(rows)
        logits_BTV = self._forward.tree(ids_BT, **where)
        tokens_BT = largest(logits_BTV)
        confidences = evidence_of(logits_BTV, tokens_BT, self._evidence).tolist() if self._with_confidence else None
        tokens = tokens_BT.tolist()
        for b, row in enumerate(rows):
            for t, start in enumerate(row):
                chain = self[start]
                chain.tokens.append(tokens[b][t])
                chain.confidences.append(confidences[b][t] if confidences else math.nan)

    def _newest(self, rows: list[list[Start]]) -> tuple[Tensor, dict[str, Any]]:
        """The newest token of every chain of `rows`, [B, T], and where it stands; rows of fewer chains are padded."""
        width = max(len(row) for row in rows)
        references = self.batch.references

        def first(start: Start) -> int:
            """Position of the last committed token, where the chain begins."""
            return len(references[start[0]].prompt) + start[1] - 1

        def newest(start: Start) -> int:
            tokens = self[start].tokens
            return tokens[-1] if tokens else references[start[0]].tokens[start[1] - 1]

        def padded(values: list[list[int]], filler: int) -> Tensor:
            return torch.tensor([v + [filler] * (width - len(v)) for v in values], device=self._owners_BS.device)

        ids_BT = padded([[newest(s) for s in row] for row in rows], 0)
        # Padding is at position 0 and sees the first key of the text, since it must see one; nothing sees padding.
        owners_BT = padded([[first(s) for s in row] for row in rows], PADDING)
        positions_BT = padded([[first(s) + len(self[s].tokens) for s in row] for row in rows], 0)
        self._owners_BS = torch.cat([self._owners_BS, owners_BT], dim=1)
        self._positions_BS = torch.cat([self._positions_BS, positions_BT], dim=1)
        before_BTS = self._positions_BS[:, None, :] < owners_BT[:, :, None].clamp(min=1)
        text_BTS = (self._owners_BS == TEXT)[:, None, :] & before_BTS
        own_BTS = (self._owners_BS[:, None, :] == owners_BT[:, :, None]) & (owners_BT != PADDING)[:, :, None]
        cache = self.batch.cache
        cache.set([self._owners_BS.shape[1] - width] * len(rows), width)
        return ids_BT, {
            "positions_BT": positions_BT,
            "seen_BTS": text_BTS | own_BTS,
            "key_positions_BS": self._positions_BS,
            "cache": cache,
            # A chain knows the text before it and the token that it begins with.
            "text_rows": self._forward.text_rows(self._texts, owners_BT.clamp(min=0) + 1),
        }
