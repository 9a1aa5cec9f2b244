"""Losses of a draft head at the slots of one depth, by name; a training adds them with weights."""

# M slots, V tokens of the draft's vocabulary, K likeliest tokens of the target, D hidden size

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss

OUTSIDE = -1  # place of a token that the draft's vocabulary lacks


@dataclass(frozen=True, slots=True)
class Slots:
    """What a loss may read.

    Attributes:
        logits_MV: of the draft, over its vocabulary.
        goal_M: place of the target's choice in the vocabulary, or `OUTSIDE`.
        top_MK: places of the target's likeliest tokens, or `OUTSIDE`.
        top_probabilities_MK: the target's probabilities of these tokens.
        feature_MD, true_MD: estimated and true hidden states; None if the head or the store has none.
    """

    logits_MV: Tensor
    goal_M: Tensor
    top_MK: Tensor
    top_probabilities_MK: Tensor
    feature_MD: Tensor | None
    true_MD: Tensor | None


def choice(slots: Slots) -> Tensor:
    """Cross-entropy to the token that the target chooses; tokens outside the vocabulary are left out."""
    return cross_entropy(slots.logits_MV, slots.goal_M, ignore_index=OUTSIDE, reduction="sum") / len(slots.goal_M)


def top_k(slots: Slots) -> Tensor:
    """Cross-entropy to the target's distribution, over its likeliest tokens.

    Source: Zhang et al. 2024, HASS (arXiv:2408.15766), top-K loss.
    """
    log_q_MK = _at(slots.logits_MV.log_softmax(-1), slots.top_MK)
    weights_MK = slots.top_probabilities_MK.masked_fill(slots.top_MK == OUTSIDE, 0)
    return -(weights_MK * log_q_MK).sum(-1).mean()


def rejection(slots: Slots) -> Tensor:
    """Probability that a drafted sample is rejected, 1 - sum of min(p, q), over the target's likeliest tokens."""
    q_MK = _at(slots.logits_MV.softmax(-1), slots.top_MK).masked_fill(slots.top_MK == OUTSIDE, 0)
    return 1 - torch.minimum(q_MK, slots.top_probabilities_MK).sum(-1).mean()


def feature(slots: Slots) -> Tensor:
    """Smooth L1 distance of the estimated hidden state.

    Source: Li et al. 2024, EAGLE (arXiv:2401.15077), regression loss.
    """
    if slots.feature_MD is None or slots.true_MD is None:
        return slots.logits_MV.new_zeros(())
    return smooth_l1_loss(slots.feature_MD, slots.true_MD)


LOSSES: dict[str, Callable[[Slots], Tensor]] = {
    "choice": choice,
    "top_k": top_k,
    "rejection": rejection,
    "feature": feature,
}


def _at(values_MV: Tensor, places_MK: Tensor) -> Tensor:
    return values_MV.gather(-1, places_MK.clamp(min=0))
