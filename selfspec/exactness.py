"""Are two outputs the same, and if not, was it a tie?

In float32 and float64 greedy outputs must be equal. In 16 bits a forward of one token and a forward of eight round
differently, so plain decoding itself is not unique where two tokens are nearly equally likely: such a first divergence
is a near-tie. Anything else is a mismatch, that is, a bug.
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from selfspec.model import Decoder

Verdict = Literal["identical", "near_tie", "mismatch"]

# In units of eps · (the logit that is largest without its sign): rounding errors grow with what is summed, and where
# the best token is unsure that one is a negative logit. Measured in bfloat16, 6366 places of three texts (SmolLM2-135M,
# Qwen2.5-Coder-0.5B): the gaps between the best three tokens change by up to 2.84 between the whole text, by which it
# is judged here, and forwards of one, five and eleven tokens; in units of the best token's logit by up to 6.5. In
# float32 and wider this is far below any gap between two tokens.
TOLERANCE_ULPS = 4


@dataclass(frozen=True, slots=True)
class Comparison:
    """How an output compares with the baseline's.

    Attributes:
        verdict: identical, near_tie (a first divergence within the tolerance), or mismatch.
        first_divergence: index of the first differing token, None if identical.
        gap: at that token, how far below the target's largest logit the less likely of the two tokens lies.
        tolerance: the largest gap that is called a near-tie here.
    """

    verdict: Verdict
    first_divergence: int | None = None
    gap: float | None = None
    tolerance: float | None = None


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The index of the first token that differs, the shorter length if one is a prefix of the other; None if equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


@torch.inference_mode()
def compare(decoder: Decoder, prompt: Sequence[int], baseline: Sequence[int], tokens: Sequence[int]) -> Comparison:
    """Compare two greedy outputs for one prompt; asks the target at the first divergence, if there is one.

    An output that merely ends sooner than the other is a mismatch: no rounding explains it.
    """
    at = first_difference(baseline, tokens)
    if at is None:
        return Comparison("identical")
    if at >= min(len(baseline), len(tokens)):
        return Comparison("mismatch", at)
    ids = [*prompt, *baseline[:at]]
    cache = decoder.new_cache(n_rows=1, capacity=len(ids))
    logits_V = decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)[0, -1]
    logits_V = logits_V.double()
    top = float(logits_V.max())
    gap = top - min(float(logits_V[baseline[at]]), float(logits_V[tokens[at]]))
    tolerance = TOLERANCE_ULPS * torch.finfo(decoder.dtype).eps * max(1.0, float(logits_V.abs().max()))
    return Comparison("near_tie" if gap <= tolerance else "mismatch", at, gap, tolerance)
