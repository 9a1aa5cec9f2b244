"""What the full model says on the calibration prompts, decoded once; and its keys and values of it.

In greedy mode the accepted prefix of a draft is by definition the prefix that equals these tokens: whoever has them can
score a draft without ever verifying.
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

BATCH_STARTS = 256  # positions from which drafts begin in one batch: measured, more gain nothing and take memory


@dataclass(frozen=True, slots=True)
class Reference:
    """A prompt and what the full model says after it, token ids; `n_max` is the most that it might have said."""

    prompt: list[int]
    tokens: list[int]
    n_max: int

    @property
    def n_starts(self) -> int:
        """The places where a round may begin: after each token but the last."""
        return len(self.tokens) - 1


@dataclass(frozen=True, slots=True)
class ReferenceBatch:
    """References that are drafted for together, and the full model's keys and values of them, one row each."""

    references: tuple[Reference, ...]
    cache: ClockCache

    @property
    def n_keys(self) -> int:
        """The longest row's: what lies behind is free for drafts."""
        return max(len(r.prompt) + len(r.tokens) - 1 for r in self.references)


@torch.inference_mode()
def decode_references(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, ending: Ending, batch_starts: int = BATCH_STARTS
) -> list[ReferenceBatch]:
    """Decode each prompt greedily with the full model, and keep what drafting after it needs.

    Prompts whose answer is a single token are left out: there is nothing to draft.

    Args:
        decoder: the model.
        prompts: token ids.
        ending: of each answer.
        batch_starts: the most places to draft from in one batch; it bounds the memory of a forward.

    Raises:
        InputError: if the model takes no explicit mask, without which chains cannot be told apart.
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
