"""What a drafter asks of its newest tokens: the probability of each that it is accepted."""

# N tokens that the draft has read, K drafted tokens after each, V vocabulary, D hidden size

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from selfspec.acceptance.features import CONFIDENCE, DEPTH, Before, scalars
from selfspec.acceptance.predictors import Predictor


class Scorer(Protocol):
    """Judges drafted tokens before they are verified."""

    @property
    def needs_hidden(self) -> bool:
        """Whether it reads the draft's hidden states."""
        ...

    @property
    def is_late(self) -> bool:
        """Whether it scores the token before the newest one; a tree has no use for that."""
        ...

    def score(
        self, before: Sequence[Before], logits_NV: Tensor, tokens_NK: Tensor, hidden_ND: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(probability of acceptance, confidence) of each token, [N, K] each.

        Args:
            before: what stands before the tokens of each row.
            logits_NV: the draft's logits, before any processor.
            tokens_NK: the tokens that were chosen under them.
            hidden_ND: input of the draft's output head; None if not needed.
        """
        ...


class PredictorScorer:
    """Judges by a predictor.

    Args:
        predictor: the predictor.
        device: where the draft runs.
    """

    def __init__(self, predictor: Predictor, device: torch.device) -> None:
        self.predictor = predictor.to(device).eval()

    @property
    def needs_hidden(self) -> bool:
        """Whether the predictor reads hidden states."""
        return self.predictor.needs_hidden

    @property
    def is_late(self) -> bool:
        """Whether the predictor scores the token before the newest one."""
        return self.predictor.is_late

    @torch.inference_mode()
    def score(
        self, before: Sequence[Before], logits_NV: Tensor, tokens_NK: Tensor, hidden_ND: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Scorer.score`; of a late predictor, the first token of a draft follows a token that is committed."""
        scalars_NK5 = scalars(before, logits_NV, tokens_NK)
        n, k = tokens_NK.shape
        wide_MD = None if hidden_ND is None else hidden_ND.repeat_interleave(k, 0)
        scores_NK = self.predictor(scalars_NK5.flatten(0, 1), wide_MD).view(n, k)
        if self.is_late:
            scores_NK = scores_NK.masked_fill(scalars_NK5[..., DEPTH] == 1, 1.0)
        return scores_NK, scalars_NK5[..., CONFIDENCE]
