"""Continuations: what the full model writes after calibration prompts, from which drafts are fitted.

They are decoded in batches and kept in a cache, one entry a prompt, as soon as a batch is done. In 16 bits the other
prompts of a batch may decide a near tie, so a continuation is material for fits and nothing is judged by it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from search.replay.references import greedy_answer, tell_found
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.prefix import shared_prefix
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.decoder import Decoder
from selfspec.records.content_cache import ContentCache

KIND = "continuations"  # of entries of a cache
BATCH = 8  # prompts decoded at once


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the full model's continuation, as token ids."""

    prompt: list[int]
    tokens: list[int]


def continued(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    n_tokens: int,
    cache: ContentCache | None = None,
    phase: Phases = unwatched,
) -> list[Text]:
    """Continuations of the first prompts by the full model, as many batches of them as give `n_tokens` tokens.

    Args:
        decoder: the model.
        prompts: token ids.
        max_new_tokens: largest length of a continuation.
        n_tokens: number of tokens that suffices.
        cache: of this model: holds continuations that were decoded before, and keeps those that are decoded now.
        phase: is told how the decoding goes on.

    Raises:
        InputError: if the model takes no batches.
    """
    texts: list[Text] = []
    ending = Ending(max_new_tokens)
    n_known = n_written = 0
    # of all prompts, so that what an earlier run has kept does not change how the others are read
    prefix = functools.cache(lambda: shared_prefix(decoder, prompts))
    with phase(KIND, min(n_tokens, len(prompts) * max_new_tokens)) as step:
        for begin in range(0, len(prompts), BATCH):
            group = [list(ids) for ids in prompts[begin : begin + BATCH]]
            of = [greedy_answer(decoder, ids, ending) for ids in group]
            entries = [cache.get(KIND, each) if cache else None for each in of]
            known = {i: list(entry.body["tokens"]) for i, entry in enumerate(entries) if entry}
            n_known += len(known)
            step(sum(map(len, known.values())))
            missing = [i for i in range(len(group)) if i not in known]
            if missing:
                some = [group[i] for i in missing]
                results = autoregress(
                    decoder, some, ending=ending, listener=lambda row, tokens, kinds: step(len(tokens)), prefix=prefix()
                )
                for i, result in zip(missing, results, strict=True):
                    known[i] = result.tokens
                    if cache:
                        cache.put(KIND, of[i], {"tokens": result.tokens})
            texts += [Text(ids, known[i]) for i, ids in enumerate(group)]
            n_written += sum(map(len, known.values()))
            if n_written >= n_tokens:
                break
    tell_found(n_known, len(texts), KIND)
    return texts
