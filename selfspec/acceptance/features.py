"""What is known of a drafted token before it is verified: five numbers, computed alike in training and in drafting."""

# N tokens that the draft has read, K drafted tokens after each, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.engine.protocols import Row

SCALARS = ("confidence", "entropy", "margin", "depth", "product")
CONFIDENCE, DEPTH = SCALARS.index("confidence"), SCALARS.index("depth")
SMALLEST = 1e-6  # of a probability whose logarithm is taken


@dataclass(frozen=True, slots=True)
class Before:
    """What stands before drafted tokens.

    Attributes:
        row: the prompt, and what was committed.
        tokens: drafted tokens on the path to them.
        product: of the confidences of these tokens.
    """

    row: Row
    tokens: Sequence[int]
    product: float


def scalars(before: Sequence[Before], logits_NV: Tensor, tokens_NK: Tensor) -> Tensor:
    """The five numbers of each token, [N, K, 5], in the order of `SCALARS`.

    confidence: probability of the token, before any processor. entropy: of its distribution, in nats. margin: its
    probability less that of the likeliest other token. depth: 1 for the first token of a draft. product: of the
    confidences up to this token.
    """
    wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logs_NV = wide_NV.log_softmax(-1)
    confidence_NK = logs_NV.gather(-1, tokens_NK).exp()
    # an infinitely unlikely token adds nothing to the entropy, and 0 times -inf would be nan
    entropy_N1 = -(logs_NV.exp() * logs_NV.clamp_min(-1e4)).sum(-1, keepdim=True)
    top_N2 = logs_NV.topk(2, -1)
    top_p_N2 = top_N2.values.exp()
    other_NK = torch.where(tokens_NK == top_N2.indices[:, :1], top_p_N2[:, 1:], top_p_N2[:, :1])
    depth_N1 = torch.tensor([[len(b.tokens) + 1.0] for b in before], device=logits_NV.device)
    product_N1 = torch.tensor([[b.product] for b in before], device=logits_NV.device)
    parts = (
        confidence_NK,
        entropy_N1.expand_as(confidence_NK),
        confidence_NK - other_NK,
        depth_N1.expand_as(confidence_NK),
        product_N1 * confidence_NK,
    )
    return torch.stack([part.to(confidence_NK.dtype) for part in parts], -1)


def columns(scalars_N5: Tensor) -> Tensor:
    """The numbers in a form that a linear model fits well, [N, 5]: log-odds of the confidence, logarithms."""
    confidence, entropy, margin, depth, product = scalars_N5.float().unbind(-1)
    odds = confidence.clamp(SMALLEST, 1 - SMALLEST).logit()
    return torch.stack([odds, entropy, margin, depth.log(), product.clamp_min(SMALLEST).log()], -1)
