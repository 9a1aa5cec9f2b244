"""From logits to probabilities: the only place that applies logits processors, for target and draft alike.

The processors are those of transformers, so `temperature=0.7` means the same as in `generate`.
"""

# V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selfspec.errors import InputError, PromptError

Warp = Callable[[Tensor, Tensor], Tensor]  # (ids so far [1, T], logits [1, V]) -> logits [1, V]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings for the choice of tokens; the defaults are greedy decoding.

    Attributes:
        do_sample: draw from the warped distribution; otherwise take its maximum.
        temperature, top_k, top_p, min_p: as in transformers; they need `do_sample`.
        repetition_penalty: above 1 makes tokens of the text less likely, in greedy decoding too.
        warps: further processors, called after these with (ids so far [1, T], logits [1, V]).
        seed: seed of the random streams; each row of a batch has streams of its own.
        by_block: verify a sampled chain as a whole instead of token by token (`verify.judge_block`). The distribution
            is the same, the drawn tokens differ.

    Raises:
        InputError: if a setting has no meaning or no effect.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    warps: tuple[Warp, ...] = ()
    seed: int = 0
    by_block: bool = False

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError(
                f"temperature={self.temperature}; it must be above 0 (for greedy decoding: do_sample=false)"
            )
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1 or self.top_k < 0 or self.repetition_penalty <= 0:
            raise InputError(
                f"top_p={self.top_p}, min_p={self.min_p}, top_k={self.top_k}, repetition_penalty="
                f"{self.repetition_penalty}: top_p lies in (0, 1], min_p in [0, 1], top_k >= 0, the penalty above 0"
            )
        if not self.do_sample and (self.temperature != 1 or self.top_k or self.top_p != 1 or self.min_p):
            raise InputError("temperature, top_k, top_p and min_p have no effect when greedy; set do_sample=true")
        if self.by_block and not self.do_sample:
            raise InputError("by_block has no effect when greedy; set do_sample=true")

    def processors(self) -> LogitsProcessorList:
        """transformers' processors for these settings, in the order in which `generate` applies them."""
        found = LogitsProcessorList()
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature != 1:
            found.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            found.append(MinPLogitsWarper(self.min_p))
        found.extend(self.warps)
        return found


class Chooser:
    """Chooses tokens for one row: logits processors, and separate random streams for target and draft."""

    def __init__(self, sampling: Sampling, *, row: int = 0, device: torch.device | None = None) -> None:
        self.do_sample = sampling.do_sample
        self._processors = sampling.processors()
        self.target_rng = torch.Generator().manual_seed(_stream(sampling.seed, row, 0))
        self.draft_rng = torch.Generator().manual_seed(_stream(sampling.seed, row, 1))
        self._draft_seed = self.draft_rng.initial_seed()

    def seek_draft(self, position: int) -> None:
        """Set the draft's stream to that of a position, so that a token drawn there does not depend on earlier draws.

        The output stays exact although a position may be drafted twice with the same draws: the first token there was
        thrown away before anything depended on it, since an earlier one was rejected.
        """
        self.draft_rng.manual_seed(_stream(self._draft_seed, position, 2))

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the choice is the largest raw logit."""
        return not self.do_sample and not self._processors

    def warp(self, ids: Sequence[int], logits_V: Tensor) -> Tensor:
        """The warped logits after `ids`, [V] in float32 or wider."""
        logits_V = logits_V if logits_V.dtype == torch.float64 else logits_V.float()
        if not self._processors:
            return logits_V
        ids_1T = torch.tensor([list(ids)], device=logits_V.device)
        warped: Tensor = self._processors(ids_1T, logits_V.unsqueeze(0))
        return warped[0]

    def probabilities(self, ids: Sequence[int], logits_V: Tensor) -> Tensor:
        """The distribution of the next token after `ids`, [V]; sums to 1."""
        return self.warp(ids, logits_V).softmax(-1)

    def greedy(self, ids: Sequence[int], logits_V: Tensor) -> int:
        """The token with the largest warped logit.

        Raises:
            PromptError: if that logit is nan, or if it is infinite and there is no processor.
        """
        if not self._processors:
            return check_choice(int(choices(logits_V)))
        warped_V = self.warp(ids, logits_V)
        token = int(largest(warped_V))
        if bool(warped_V[token].isnan()):  # a processor may use infinity to force a token
            check_choice(int(choices(logits_V)))
            raise PromptError("the logits processors of the call made nan of the model's logits; leave one of them out")
        return token


def largest(logits: Tensor) -> Tensor:
    """Index of the largest entry of the last dimension; the first of equal ones.

    `argmax` gives the same result but is five times slower on a CPU: 2.0 instead of 0.4 ms for eight rows of 151936 in
    bfloat16.
    """
    return logits.max(-1).indices


NO_NUMBER = -1  # in place of a token id where the largest logit is nan or infinite


def choices(logits: Tensor) -> Tensor:
    """`largest`, with `NO_NUMBER` where the largest logit is nan or infinite.

    The mark is part of the token tensor, so a check needs no further read from the device. `max` returns nan if there
    is one. Minus infinity is allowed, since a constraint may forbid every token.
    """
    values, indices = logits.max(-1)
    return indices.masked_fill_(~(values < torch.inf), NO_NUMBER)


def check_choice(token: int) -> int:
    """The token itself.

    Raises:
        PromptError: if it is `NO_NUMBER`.
    """
    if token == NO_NUMBER:
        raise _no_numbers()
    return token


def draw(probabilities_V: Tensor, rng: torch.Generator) -> int:
    """One token id from a distribution.

    Raises:
        PromptError: if the distribution holds nan.
    """
    try:
        return int(torch.multinomial(probabilities_V.to(rng.device), 1, generator=rng))
    except RuntimeError:  # multinomial looks for nan anyway
        if bool(probabilities_V.isfinite().all()):
            raise
        raise _no_numbers() from None


def probability(distribution_V: Tensor, token: int) -> float:
    """The probability of a token.

    Raises:
        PromptError: if it is nan.
    """
    found = float(distribution_V[token])
    if found != found:
        raise _no_numbers()
    return found


def _no_numbers() -> PromptError:
    return PromptError(
        "the largest logit is nan or infinite: weights are broken, or too large for this dtype; fetch the model again, "
        "or try model.dtype=float32"
    )


def _stream(seed: int, row: int, purpose: int) -> int:
    """A seed of its own for each (seed, row, purpose), well mixed: neighbours do not correlate."""
    words = np.random.SeedSequence([seed % 2**64, row, purpose]).generate_state(1, np.uint64)
    return int(words[0]) >> 1  # torch takes 63 bits
