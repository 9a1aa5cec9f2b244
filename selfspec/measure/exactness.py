"""Compare two outputs: identical, a near-tie, or a mismatch.

In float32 and float64 greedy outputs must be equal. In 16 bits a forward of one token and a forward of eight round
differently, so plain decoding itself is not unique if two tokens are almost equally likely. A first divergence at such
a place is a near-tie. Any other divergence is a mismatch, that is, a bug.
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from selfspec.models.decoder import Decoder

Outcome = Literal["identical", "near_tie", "mismatch"]

# In units of eps · (largest absolute logit): rounding errors grow with the summands, and if the best token is unsure
# that logit is a negative one. Measured in bfloat16, 6366 places of three texts (SmolLM2-135M,
# Qwen2.5-Coder-0.5B): the gaps between the best three tokens change by up to 2.84 between the whole text and forwards
# of one, five and eleven tokens; in units of the best token's logit by up to 6.5. In float32 and wider this is far
# below any gap between two tokens.
TOLERANCE_ULPS = 4
LONGEST_REREAD = 12  # tokens of a verification to read again, as long as the longest draft of the default rule


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison with the baseline's output.

    Attributes:
        verdict: identical, near_tie (a first divergence that rounding can explain), or mismatch.
        first_divergence: index of the first differing token, None if identical.
        gap: at that token, the target's largest logit minus the logit of the less likely of the two tokens; from the
            second check, if there was one.
        tolerance: largest gap of a near-tie.
    """

    verdict: Outcome
    first_divergence: int | None = None
    gap: float | None = None
    tolerance: float | None = None


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Index of the first differing token; the shorter length if one is a prefix of the other; None if equal."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return None if len(a) == len(b) else min(len(a), len(b))


@torch.inference_mode()
def compare(decoder: Decoder, prompt: Sequence[int], baseline: Sequence[int], tokens: Sequence[int]) -> Comparison:
    """Compare two greedy outputs for one prompt; at a divergence the target's logits decide.

    The target reads the whole text at once. If that gives a mismatch, it reads the text once more token by token, as
    the baseline was decoded: reading the whole text rounds in yet another way. Where a router is level between two
    experts, rounding moves logits by more than the tolerance. So it reads the text in further ways, the last tokens in
    a forward of their own as in a verification: if one reading prefers either token, that is a near-tie, too.

    An output that only ends sooner than the other is a mismatch, since no rounding explains it.
    """
    at = first_difference(baseline, tokens)
    if at is None:
        return Comparison("identical")
    if at >= min(len(baseline), len(tokens)):
        return Comparison("mismatch", at)
    text, pair = [*prompt, *baseline[:at]], (baseline[at], tokens[at])
    preferred: set[int] = set()
    for pieces in ([text], [prompt, *([token] for token in baseline[:at])]):
        logits_V = _after(decoder, pieces)
        found = _judged(logits_V, at, pair, decoder.dtype)
        if found.verdict == "near_tie":
            return found
        preferred.add(int(logits_V.argmax()))
    for n_last in range(1, min(LONGEST_REREAD, len(text) - 1) + 1):
        preferred.add(int(_after(decoder, [text[:-n_last], text[-n_last:]]).argmax()))
        if preferred.issuperset(pair):
            return replace(found, verdict="near_tie")
    return found


def _judged(logits_V: Tensor, at: int, pair: tuple[int, int], dtype: torch.dtype) -> Comparison:
    """Near-tie if rounding can make either token of the pair the best, otherwise mismatch."""
    logits_V = logits_V.double()
    gap = float(logits_V.max()) - min(float(logits_V[token]) for token in pair)
    tolerance = TOLERANCE_ULPS * torch.finfo(dtype).eps * max(1.0, float(logits_V.abs().max()))
    return Comparison("near_tie" if gap <= tolerance else "mismatch", at, gap, tolerance)


def _after(decoder: Decoder, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Logits [V] after a text, each piece of which is read by one forward."""
    starts = list(accumulate(map(len, pieces), initial=0))
    cache = decoder.new_cache(n_rows=1, capacity=starts[-1])
    for ids, start in zip(pieces, starts, strict=False):
        ids_1T = torch.tensor([list(ids)], device=decoder.device)
        logits_1TV = decoder.full(ids_1T, starts=[start], cache=cache, n_logits=1)
    return logits_1TV[0, -1]
