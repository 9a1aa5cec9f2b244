"""Held-out acceptance of a draft head, depth by depth, and the speedup that it promises."""

# B texts, T slots, D hidden size, V tokens of the draft's vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from selfspec.heads.layer import shifted
from selfspec.heads.modules import Trainable
from selfspec.training.batches import Batch


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How a head drafts held-out texts, greedily.

    Attributes:
        n: number of drafts that were judged.
        conditional: by depth, the fraction of drafted tokens that are accepted if those before them were.
    """

    n: int
    conditional: tuple[float, ...]

    def tokens_per_round(self, n_drafted: int) -> float:
        """Mean tokens of a round that drafts `n_drafted`, the correction or bonus included."""
        return float(1 + sum(accumulate(self.conditional[:n_drafted], mul)))


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """Seconds of a round in plain tokens.

    Attributes:
        draft: of a drafted token after the first.
        verify: of verifying 1, 2, 3, ... tokens, the token before the draft included.
        overhead: of a round, besides these: the first drafted token costs more than the others.
    """

    draft: float
    verify: tuple[float, ...]
    overhead: float = 0.0

    @property
    def one_more(self) -> float:
        """Cost of verifying one more token, the mean over drafts of up to four tokens."""
        n = min(4, len(self.verify) - 1)
        return (self.verify[n] - self.verify[0]) / n

    def best(self, held: HeldOut) -> tuple[float, int]:
        """The largest expected speedup over plain decoding, and the draft length that gives it."""
        lengths = range(1, min(len(held.conditional), len(self.verify) - 1) + 1)
        speeds = {k: held.tokens_per_round(k) / (self.verify[k] + k * self.draft + self.overhead) for k in lengths}
        longest = max(speeds, key=lambda k: speeds[k])
        return speeds[longest], longest


@torch.no_grad()
def held_out(
    module: Trainable,
    batches: Iterable[Batch],
    embed: Callable[[Tensor], Tensor],
    vocabulary_V: Tensor,
    rows_VD: Tensor,
    *,
    n_depths: int,
) -> HeldOut:
    """Judge the drafts that begin at every slot of the texts.

    Args:
        module: the head, or the trained parts of a draft.
        batches: held-out texts.
        embed: from token ids [B, T] to embeddings [B, T, D].
        vocabulary_V: ids of the tokens that the draft scores.
        rows_VD: their rows of the target's output head.
        n_depths: number of depths.
    """
    n_reached, n_right, vocabulary_V = [0] * n_depths, [0] * n_depths, vocabulary_V.to(rows_VD.device)
    for batch in (one.to(rows_VD.device) for one in batches):
        features = [f.to(rows_VD.dtype) for f in batch.features]
        predicted = module.predict(batch.whole_text, features, embed, n_depths)
        alive = None
        for depth, one in enumerate(predicted):
            drafted_by_BTD = one.to_head if one.refined is None else one.refined
            chosen_BT = vocabulary_V[(drafted_by_BTD.to(rows_VD.dtype) @ rows_VD.T).argmax(-1)]
            right_BT = chosen_BT == batch.goal_BT
            counted_BT = batch.counts(depth)
            # a draft reaches depth d at slot i if it began at slot i - d and was right at the slots between
            reached_BT = counted_BT if alive is None else counted_BT & shifted(alive.unsqueeze(-1), 1).squeeze(-1)
            alive = reached_BT & right_BT
            n_reached[depth] += int(reached_BT.sum())
            n_right[depth] += int(alive.sum())
    conditional = tuple(r / n if n else 0.0 for r, n in zip(n_right, n_reached, strict=True))
    return HeldOut(n_reached[0], conditional[: _n_real(n_reached)])


def _n_real(n_reached: Sequence[int]) -> int:
    return sum(n > 0 for n in n_reached)
