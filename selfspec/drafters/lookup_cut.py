"""Where a looked-up draft ends: the stop rule reads a predictor of its tokens, at no draft cost.

The length of the match is what is known of them. The rule begins anew for each draft, so that proposals depend only on
the row's text.
"""

# N looked-up tokens

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec.acceptance.features import SCALARS
from selfspec.acceptance.predictors import Predictor
from selfspec.drafters.lookup import LookedUp
from selfspec.stopping import StopPolicy


@dataclass(frozen=True, slots=True)
class LookupCut:
    """Ends looked-up drafts.

    Attributes:
        predictor: of looked-up tokens; it reads no hidden states.
        stop: rule that reads its probabilities.
    """

    predictor: Predictor
    stop: StopPolicy

    @torch.inference_mode()
    def n_tokens(self, found: LookedUp) -> int:
        """Number of tokens to keep, at least 1."""
        state = self.stop.begin()
        for n, chance in enumerate(self.predictor(lookup_scalars(found)).tolist(), start=1):
            if not state.more(n, chance):
                return min(n, len(found.tokens))
        return len(found.tokens)


def lookup_scalars(found: LookedUp) -> Tensor:
    """Five numbers of each looked-up token, [N, 5], in the places of `features.SCALARS`.

    confidence: n / (n + 1) for a match of n tokens, 0 if the last two occurrences of a token agreed. entropy: 1 if the
    match is in the memory, otherwise 0. margin: place in the proposal, from 1/N to 1. depth: 1 for the first token.
    product: confidence to the power of the depth.
    """
    n = len(found.tokens)
    confidence = found.n_match / (found.n_match + 1)
    depths = range(1, n + 1)
    rows = [(confidence, float(found.in_memory), d / n, float(d), confidence**d) for d in depths]
    return torch.tensor(rows).view(n, len(SCALARS))
