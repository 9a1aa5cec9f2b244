"""Parallel agreement (SWIFT's matchness): how often a draft that reads the full model's answer agrees with it.

This needs one forward for each prompt and ignores costs. It is not the acceptance of a real draft: here the draft sees
its own keys and values of the whole answer, whereas a real draft sees the full model's up to the last verified token.
"""

# B prompts, T tokens of the longest answer, S keys

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search.objective import Score, ShouldContinue, SpecOfPoint
from search.point import Point
from search.replay.references import ReferenceBatch
from selfspec.engine.forward import Forward
from selfspec.engine.sampling import largest
from selfspec.errors import InputError
from selfspec.measure.metrics import ratio
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class ParallelAgreement:
    """The fraction of the full model's tokens that the draft would choose, read in parallel.

    It ignores the cost of the draft, the stop rule, and that a draft ends at its first wrong token.

    Attributes:
        decoder: the model.
        batches: references of the calibration prompts.
        stopwatch: measures the seconds of scoring.
        draft: gives the draft spec of a point, of which only the plan has an effect.

    Source: Xia et al. 2025, SWIFT (arXiv:2410.06916), section 4.
    """

    decoder: Decoder
    batches: Sequence[ReferenceBatch]
    stopwatch: Stopwatch
    draft: SpecOfPoint
    name: str = "matchness"
    unit: str = "agreed"

    def __post_init__(self) -> None:
        if not self.batches:
            raise InputError("every calibration prompt ended at its first token, so there is nothing to read")

    def __call__(self, point: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """The pooled fraction of agreement, with one forward for each batch."""
        began = self.stopwatch.now()
        forward = self.decoder.bind(self.draft(Point.from_draft(point)).plan)
        agreed: list[int] = []
        n_read: list[int] = []
        pruned = False
        for n_done, batch in enumerate(self.batches, start=1):
            agreed += count_agreed(forward, batch)
            n_read += [r.n_starts for r in batch.references]
            values = tuple(ratio(a, n) for a, n in zip(agreed, n_read, strict=True))
            if should_continue and n_done < len(self.batches) and not should_continue(values):
                pruned = True
                break
        return Score(
            value=ratio(sum(agreed), sum(n_read)),
            n_tokens=sum(n_read),
            n_rounds=len(agreed),
            drafted=sum(n_read),
            accepted=sum(agreed),
            seconds=self.stopwatch.now() - began,
            values=values,
            pruned=pruned,
        )


@torch.inference_mode()
def count_agreed(forward: Forward, batch: ReferenceBatch) -> list[int]:
    """For each reference, the number of places where the draft chooses the full model's token."""
    device, n_keys = batch.cache.device, batch.n_keys
    width = max(r.n_starts for r in batch.references)
    ids_BT = torch.tensor([r.tokens[:-1] + [0] * (width - r.n_starts) for r in batch.references], device=device)
    firsts_B1 = torch.tensor([[len(r.prompt)] for r in batch.references], device=device)
    offsets_T = torch.arange(width, device=device)
    positions_BT = firsts_B1 + offsets_T
    texts_S = torch.arange(n_keys, device=device)
    prompt_BTS = (texts_S < firsts_B1).unsqueeze(1).expand(-1, width, -1)
    own_BTT = (offsets_T <= offsets_T.unsqueeze(1)).expand(len(batch.references), -1, -1)
    batch.cache.set([n_keys] * len(batch.references), width)
    logits_BTV = forward.tree(
        ids_BT,
        positions_BT=positions_BT,
        seen_BTS=torch.cat([prompt_BTS, own_BTT], dim=2),
        key_positions_BS=torch.cat([texts_S.expand(len(batch.references), -1), positions_BT], dim=1),
        cache=batch.cache,
        text_rows=forward.text_rows([[*r.prompt, *r.tokens] for r in batch.references], positions_BT + 1),
    )
    chosen = largest(logits_BTV).tolist()
    return [
        sum(c == t for c, t in zip(row, r.tokens[1:], strict=False))
        for row, r in zip(chosen, batch.references, strict=True)
    ]
