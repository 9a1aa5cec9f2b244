"""References: the full model's greedy answers to the calibration prompts, decoded once, with keys and values.

In greedy decoding the accepted prefix of a draft is the prefix that equals these tokens. References therefore allow to
score a draft without verification. They are kept in a cache, one entry a prompt.
"""

# B prompts

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.masks import check_batches
from selfspec.engine.prefix import Prefix, shared_prefix, text_cache
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.decoder import Decoder
from selfspec.records.content_cache import ContentCache

log = logging.getLogger(__name__)

KIND, STATES = "references", "states"  # kinds of entries of a cache: answers, and keys and values
LARGEST_STATES = 1 << 26  # bytes of an entry of keys and values; larger ones are computed again; chosen, not tuned
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
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    ending: Ending,
    batch_starts: int = BATCH_STARTS,
    cache: ContentCache | None = None,
    phase: Phases = unwatched,
) -> list[ReferenceBatch]:
    """Decode each prompt greedily with the full model, and keep the keys and values that replays need.

    Prompts with an answer of a single token are left out, since there is nothing to draft.

    Args:
        decoder: the model.
        prompts: token ids.
        ending: end of each answer; without a criterion if there is a cache.
        batch_starts: largest number of starts in one batch; it bounds the memory of a forward.
        cache: of this model: holds references that were decoded before, and keeps those that are decoded now.
        phase: is told how the decoding goes on.

    Raises:
        InputError: if the model takes no explicit mask, which is necessary to separate chains.
    """
    assert cache is None or ending.criterion is None, "a function cannot determine an entry"
    try:
        check_batches(decoder.config)
    except InputError as error:
        raise InputError(f"{error}; or search with objective=tokens_per_second, which needs no batches") from None
    batches: list[list[tuple[Reference, ClockCache]]] = []
    n_known = 0
    # of all prompts, so that what an earlier run has kept does not change how the others are read
    prefix = functools.cache(lambda: shared_prefix(decoder, prompts))
    with phase(KIND, len(prompts) * ending.max_new_tokens) as step:
        for prompt in prompts:
            of = greedy_answer(decoder, prompt, ending)
            entry = cache.get(KIND, of) if cache else None
            n_known += entry is not None
            if entry:
                tokens = entry.body["tokens"]
            else:
                (result,) = autoregress(
                    decoder,
                    [prompt],
                    ending=ending,
                    listener=lambda row, new, kinds: step(len(new)),
                    prefix=prefix(),
                )
                tokens = result.tokens
                if cache:
                    cache.put(KIND, of, {"tokens": tokens})
            reference = Reference(
                list(prompt), tokens, min(ending.max_new_tokens, decoder.context_length - len(prompt))
            )
            if reference.n_starts:
                if not batches or sum(r.n_starts for r, _ in batches[-1]) + reference.n_starts > batch_starts:
                    batches.append([])
                batches[-1].append((reference, _states(decoder, [*prompt, *tokens][:-1], cache, prefix)))
            step(ending.max_new_tokens - (0 if entry else len(tokens)))
    tell_found(n_known, len(prompts), KIND)
    return [ReferenceBatch(tuple(r for r, _ in b), ClockCache.stack([c for _, c in b])) for b in batches]


@torch.inference_mode()
def batches_of(
    decoder: Decoder, texts: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_starts: int = BATCH_STARTS
) -> list[ReferenceBatch]:
    """References whose answers are known: (prompt, answer) pairs, in order, of 2 answer tokens or more.

    Args:
        decoder: the model, for keys and values.
        texts: token ids.
        batch_starts: see `decode_references`.
    """
    check_batches(decoder.config)
    grouped: list[list[Reference]] = []
    for prompt, tokens in texts:
        reference = Reference(list(prompt), list(tokens), len(tokens))
        if not grouped or sum(r.n_starts for r in grouped[-1]) + reference.n_starts > batch_starts:
            grouped.append([])
        grouped[-1].append(reference)

    def states(reference: Reference) -> ClockCache:
        return _states(decoder, [*reference.prompt, *reference.tokens][:-1], None, lambda: None)

    return [ReferenceBatch(tuple(group), ClockCache.stack([states(r) for r in group])) for group in grouped]


def greedy_answer(decoder: Decoder, prompt: Sequence[int], ending: Ending) -> dict[str, Any]:
    """What determines the greedy answer of a model to a prompt, for a cache."""
    eos_ids = decoder.eos_ids if ending.eos_ids is None else ending.eos_ids
    return {"prompt": list(prompt), "max_new_tokens": ending.max_new_tokens, "eos_ids": sorted(eos_ids)}


def tell_found(n_known: int, n: int, kind: str) -> None:
    """Log how many entries of a kind were found again, if any."""
    if n_known:
        log.info("%d of %d %s found again", n_known, n, kind)


def _states(
    decoder: Decoder, ids: list[int], cache: ContentCache | None, prefix: Callable[[], Prefix | None]
) -> ClockCache:
    """Keys and values of a text."""
    of = {"ids": ids}
    entry = cache.get(STATES, of, has_tensors=True) if cache else None
    if entry:
        found = decoder.new_cache(n_rows=1, capacity=len(ids))
        layers = decoder.model.get_submodule(decoder.sublayers.path)
        for i, layer in enumerate(found.layers):
            if f"keys {i}" in entry.tensors:
                device = next(layers.get_submodule(str(i)).parameters()).device
                layer.restore(entry.tensors[f"keys {i}"], entry.tensors[f"values {i}"], device)
        return found
    # One forward over the rest of the text gives all its keys and values at once.
    found, n_known = text_cache(decoder, ids, prefix(), capacity=len(ids))
    decoder.full(torch.tensor([ids[n_known:]], device=decoder.device), starts=[n_known], cache=found, n_logits=1)
    ours = [(i, layer) for i, layer in enumerate(found.layers) if layer.is_initialized]
    tensors = {f"{name} {i}": getattr(layer, name) for i, layer in ours for name in ("keys", "values")}
    if cache and sum(t.numel() * t.element_size() for t in tensors.values()) <= LARGEST_STATES:
        cache.put(STATES, of, {}, tensors)
    return found
