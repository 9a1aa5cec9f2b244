"""Accept, correct, bonus: which drafted tokens stand, and what the target says after them.

Pure functions of tokens and distributions. Whatever the draft proposes, the committed tokens are distributed exactly as
the target's own (greedy: are the target's own).
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selfspec.sampling import draw


@dataclass(frozen=True, slots=True)
class Verdict:
    """`n_accepted` drafted tokens stand; `token` follows them."""

    n_accepted: int
    token: int

    def kind(self, n_drafted: int) -> Literal["correction", "bonus"]:
        """Whether `token` replaces a rejected token or comes on top of a draft accepted whole."""
        return "bonus" if self.n_accepted == n_drafted else "correction"


def judge_greedy(drafted: Sequence[int], target: Sequence[int]) -> Verdict:
    """The longest prefix of `drafted` that equals the target's choices.

    Args:
        drafted: K token ids.
        target: K + 1 token ids: what the target chooses at each drafted position and after the last.
    """
    n = 0
    while n < len(drafted) and drafted[n] == target[n]:
        n += 1
    return Verdict(n, target[n])


def judge_sampled(
    drafted: Sequence[int],
    draft: Sequence[Tensor] | None,
    target: Callable[[int], Tensor],
    rng: torch.Generator,
) -> Verdict:
    """Rejection sampling: the committed tokens follow the target's distribution exactly.

    Args:
        drafted: K token ids.
        draft: the distribution [V] that each was drawn from; None if each was chosen without chance (a point mass).
        target: gives the target's distribution [V] at position i, asked in order and no further than needed.
        rng: the target's stream.

    Source: Leviathan et al. 2023 (arXiv:2211.17192), section 2.3; their p is our target, their q our draft.
    """
    for i, token in enumerate(drafted):
        target_V = target(i)
        draft_V = None if draft is None else draft[i]
        if float(torch.rand((), generator=rng, dtype=torch.float64)) >= acceptance_probability(
            token, draft_V, target_V
        ):
            return Verdict(i, draw(residual(token, draft_V, target_V), rng))
    return Verdict(len(drafted), draw(target(len(drafted)), rng))


def acceptance_probability(token: int, draft_V: Tensor | None, target_V: Tensor) -> float:
    """min(1, target / draft) at `token`; a point-mass draft has probability 1 there."""
    if draft_V is None:
        return float(target_V[token])
    return min(1.0, float(target_V[token]) / float(draft_V[token]))


def residual(token: int, draft_V: Tensor | None, target_V: Tensor) -> Tensor:
    """The distribution of a correction, [V]: what of the target the draft under-serves, max(target - draft, 0).

    Args:
        token: the rejected token, where the draft is a point mass (`draft_V` is None).
    """
    if draft_V is None:
        left_V = target_V.clone()
        left_V[token] = 0
    else:
        left_V = (target_V - draft_V).clamp_(min=0)
    total = left_V.sum()
    # Nothing is left where draft and target differ by rounding alone; then the target itself is what is left of it.
    return left_V / total if total > 0 else target_V
