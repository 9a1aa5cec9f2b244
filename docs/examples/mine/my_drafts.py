"""A drafter: a chain of the likeliest tokens of the skip set's draft, and beside each the runner-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from selfspec import BaseDrafter, Draft, Row


class Pairs(BaseDrafter):
    """Drafts `depth` levels of two tokens; the likelier one goes on."""

    is_replayable = True  # a draft costs its `n_forwards` forwards, so that a search can replay it

    def __init__(self, forward: Any, depth: int) -> None:
        self.forward, self.depth = forward, depth

    def propose(self, rows: Sequence[Row], *, cache: Any) -> list[Draft]:
        """One tree for each row; parent -1 is the last token of the row."""
        drafts = [Draft(parents=[], source=self.name) for _ in rows]
        last, at = [row.ids[-1] for row in rows], [-1] * len(rows)
        for step in range(self.depth):
            if not any(step < row.limit for row in rows):
                break
            ids = torch.tensor(last, device=cache.device).unsqueeze(1)
            starts = [len(row.ids) - 1 + step for row in rows]
            best = self.forward(ids, starts=starts, cache=cache, n_logits=1)[:, -1].topk(2).indices.tolist()
            for b, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
                if step < row.limit:
                    draft.tokens += best[b]
                    draft.parents += [at[b], at[b]]
                    last[b], at[b] = best[b][0], len(draft.tokens) - 2
                    draft.n_forwards += 1
        return drafts
