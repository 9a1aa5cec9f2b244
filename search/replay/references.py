"""References: the full model's greedy answers to the calibration prompts, decoded once, with keys and values.

In greedy decoding the accepted prefix of a draft is the prefix that equals these tokens. References therefore allow to
score a draft without verification.
"""

# B prompts

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.masks import check_batches
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder

BATCH_STARTS = 256  # starts of drafts in one batch; in measurements more gained nothing, and they take memory


@dataclass(frozen=True, slots=True)
class Reference:
    """A prompt and the full model's answer, as token ids; `n_max` is the largest length that the answer could have."""

    prompt: list[int]
    tokens: list[int]
    n_max: int

    @property
    def n_starts(self) -> int:
        """Number of possible starts of a round: one after each token except the last."""
        return len(self.tokens) - 1


@dataclass(frozen=True, slots=True)
class ReferenceBatch:
    """References that are replayed together, and the full model's keys and values, one row for each."""

    references: tuple[Reference, ...]
    cache: ClockCache

    @property
    def n_keys(self) -> int:
        """Number of keys of the longest row; drafts may use the slots after it."""
        return max(len(r.prompt) + len(r.tokens) - 1 for r in self.references)


@torch.inference_mode()
def decode_references(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, ending: Ending, batch_starts: int = BATCH_STARTS
) -> list[ReferenceBatch]:
    """Decode each prompt greedily with the full model, and keep the keys and values that replays need.

    Prompts with an answer of a single token are left out, since there is nothing to draft.

    Args:
        decoder: the model.
        prompts: token ids.
        ending: end of each answer.
        batch_starts: largest number of starts in one batch; it bounds the memory of a forward.

    Raises:
        InputError: if the model takes no explicit mask, which is necessary to separate chains.
    """
    try:
        check_batches(decoder.config)
    except InputError as error:
        raise InputError(f"{error}; or search with objective=tokens_per_second, which needs no batches") from None
    batches: list[list[tuple[Reference, ClockCache]]] = []
    for prompt in prompts:
        (result,) = autoregress(decoder, [prompt], ending=ending)
        n_max = min(ending.max_new_tokens, decoder.context_length - len(prompt))
        reference = Reference(list(prompt), result.tokens, n_max)
        if not reference.n_starts:
            continue
        # One forward over the whole text gives all keys and values at once.
        ids = [*prompt, *result.tokens][:-1]
        cache = decoder.new_cache(n_rows=1, capacity=len(ids))
        decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
        if not batches or sum(r.n_starts for r, _ in batches[-1]) + reference.n_starts > batch_starts:
            batches.append([])
        batches[-1].append((reference, cache))
    return [ReferenceBatch(tuple(r for r, _ in b), ClockCache.stack([c for _, c in b])) for b in batches]
