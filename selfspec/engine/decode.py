"""Decode prompts with or without a draft: the entry point of the engine.

`speculate` decodes prompts with any drafter. `autoregress` is the same loop with a drafter that proposes nothing, so
baseline and method differ only in their drafter. `schedule.Sequential` is the loop.
"""

# B rows, T tokens, V vocabulary

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec.control.base import ControlState
from selfspec.drafters.chain import NoDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.masks import check_batches
from selfspec.engine.prefix import Prefix, text_cache
from selfspec.engine.protocols import Drafter, Kind, Row, Schedule, Verifier
from selfspec.engine.request import Criterion, Ending, Request
from selfspec.engine.sampling import Chooser, Sampling, draw
from selfspec.engine.schedule import Listener, Sequential, Session
from selfspec.engine.trace import DecodeResult
from selfspec.engine.verify import Exact
from selfspec.errors import InputError, PromptError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.context import context_source, tell_full
from selfspec.models.decoder import Decoder
from selfspec.stopping import Fixed, StopState

__all__ = ["Criterion", "Ending", "Kind", "Listener", "autoregress", "speculate"]

_KEYS = itertools.count()  # keys of rows, unique across decodes, since several decodes may share a drafter


def autoregress(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    ending: Ending | Sequence[Ending],
    sampling: Sampling | Sequence[Sampling] | None = None,
    first_row: int = 0,
    listener: Listener | None = None,
    stopwatch: Stopwatch | None = None,
    prefix: Prefix | None = None,
) -> list[DecodeResult]:
    """Plain decoding, one full forward for each token. Arguments as in `speculate`."""
    return speculate(
        decoder,
        prompts,
        drafter=NoDraft(),
        stops=[Fixed(1).begin() for _ in prompts],
        ending=ending,
        sampling=sampling,
        first_row=first_row,
        listener=listener,
        stopwatch=stopwatch,
        prefix=prefix,
    )


@torch.inference_mode()
def speculate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    drafter: Drafter,
    stops: Sequence[StopState],
    ending: Ending | Sequence[Ending],
    sampling: Sampling | Sequence[Sampling] | None = None,
    first_row: int = 0,
    listener: Listener | None = None,
    stopwatch: Stopwatch | None = None,
    verifier: Verifier | None = None,
    schedule: Schedule | None = None,
    control: ControlState | None = None,
    prefix: Prefix | None = None,
) -> list[DecodeResult]:
    """The target's own output for each prompt, with fewer forwards of the target.

    Args:
        decoder: the target.
        prompts: token ids, at least one each. They are decoded as one batch, and each row ends on its own.
        drafter: proposes tokens.
        stops: for each prompt a fresh state of the stop rule.
        ending: when a sequence is over; one for all prompts, or one for each.
        sampling: how tokens are chosen; one for all prompts, or one for each, alike in `by_block`. Greedy if None.
        first_row: number of the first prompt. Prompt i uses the random streams of row first_row + i, so its output does
            not depend on the other prompts of the batch.
        listener: called with tokens when they are committed.
        stopwatch: measures the seconds.
        verifier: decides which tokens are accepted; None: `verify.Exact`, by the settings of `sampling`.
        schedule: order of drafting and verifying; None: `schedule.Sequential`.
        control: decides in each step how far each row drafts, and learns from it; None: as far as the stop rules go.
        prefix: a beginning of prompts that was read before; prompts with another one are read as a whole, and so are
            all if the drafter needs hidden states.

    Raises:
        InputError: if a prompt is empty or leaves no room in the model's context.
        PromptError: if a prompt holds an id outside the vocabulary, or the model's logits are nan or infinite.
        DrafterError: if a draft is invalid.
    """
    if len(prompts) > 1:
        check_batches(decoder.config)
    watch = stopwatch or Stopwatch(decoder.device)
    endings = [ending] * len(prompts) if isinstance(ending, Ending) else ending
    how = [sampling or Sampling()] * len(prompts) if isinstance(sampling, Sampling | None) else sampling
    by_block = any(each.by_block for each in how)
    assert by_block == all(each.by_block for each in how) or not how, "one verifier judges all rows"
    requests = [
        new_request(decoder, i, prompt, stop, end, Chooser(chosen, row=first_row + i))
        for i, (prompt, stop, end, chosen) in enumerate(zip(prompts, stops, endings, how, strict=True))
    ]
    tell = listener or (lambda row, tokens, kinds: None)
    known = None if drafter.needs.hidden else prefix
    caches = [_prefill(decoder, request, drafter, watch, tell, known) for request in requests]
    live = [request for request in requests if request.finish is None]
    if live:
        cache = ClockCache.stack([c for c, r in zip(caches, requests, strict=True) if r.finish is None])
        del caches
        session = Session(decoder, drafter, verifier or Exact(by_block), live, cache, watch, tell, control)
        (schedule or Sequential()).run(session)
    for request, end in zip(requests, endings, strict=True):
        if request.finish == "length" and request.n_max < end.max_new_tokens:
            tell_full(decoder.config, end.max_new_tokens)
    return [request.result() for request in requests]


def new_request(
    decoder: Decoder, index: int, prompt: Sequence[int], stop: StopState, ending: Ending, chooser: Chooser
) -> Request:
    """A request with a key of its own, before its prompt is read.

    Raises:
        InputError: if the prompt is empty or leaves no room in the model's context.
        PromptError: if it holds an id outside the vocabulary.
    """
    room = decoder.context_length - len(prompt)
    if not prompt or room < 1:
        raise InputError(
            f"prompt {index} has {len(prompt)} tokens, and the model's context holds {decoder.context_length} "
            f"({context_source(decoder.config)}); " + ("shorten it" if prompt else "give it at least one token")
        )
    if not 0 <= min(prompt) <= max(prompt) < decoder.n_vocab:
        alien = next(token for token in prompt if not 0 <= token < decoder.n_vocab)
        raise PromptError(
            f"prompt {index} holds token {alien}, but the model's vocabulary has {decoder.n_vocab}; use the tokenizer "
            "of this model, or resize its embedding"
        )
    return Request(
        index=index,
        row=Row(next(_KEYS), list(prompt), 0, stop, chooser),
        n_prompt=len(prompt),
        n_max=min(ending.max_new_tokens, room),
        eos_ids=decoder.eos_ids if ending.eos_ids is None else ending.eos_ids,
        criterion=ending.criterion,
    )


def _prefill(
    decoder: Decoder, request: Request, drafter: Drafter, watch: Stopwatch, tell: Listener, prefix: Prefix | None
) -> ClockCache:
    """Run the full model on the prompt: this gives the first token, and the hidden states that the drafter needs."""
    begin = watch.now()
    row = request.row
    cache, n_known = text_cache(decoder, row.ids, prefix, capacity=request.n_prompt + request.n_max)
    ids_1T = torch.tensor([row.ids[n_known:]], device=decoder.device)
    output = decoder.full.output(ids_1T, starts=[n_known], cache=cache, n_logits=1, hidden=drafter.needs.hidden)
    token = choose(row, output.logits_BTV[0, -1])
    request.commit([token])
    if request.finish is None:
        drafter.begin(row, output)
    request.prefill_s = request.total_s = watch.now() - begin
    tell(request.index, [token], ["bonus"])
    return cache


def choose(row: Row, logits_V: Tensor) -> int:
    """The target's own next token of a row, without a draft."""
    if row.chooser.do_sample:
        return draw(row.chooser.probabilities(row.ids, logits_V), row.chooser.target_rng)
    return row.chooser.greedy(row.ids, logits_V)
