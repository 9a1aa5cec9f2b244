"""Measure the cost table of an accelerator with recorded forwards: replays are timed on the device.

`search.costs.measure` times calls of one token on the host's clock. With graphs a draft is one launch, so here the cost
of a drafted token is its share of a whole chain, and the cost of a verification is that of the replay of its recording.
The overhead of the host in a round is measured separately, from real rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

from search.costs.measure import _fit
from search.costs.table import GRID, CostTable, spread
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, speculate
from selfspec.measure.stopwatch import Stopwatch, device_seconds
from selfspec.models.decoder import Decoder
from selfspec.recorded.graphed import STRETCH, GraphedDecoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed

N_DRAFTED = 4  # tokens of a timed chain
N_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """Median seconds of one full forward of this size."""

    n_rows: int
    n_tokens: int
    context: int
    seconds: float


def forward_costs(
    decoder: Decoder, *, rows: Sequence[int], tokens: Sequence[int], contexts: Sequence[int], repeats: int
) -> list[ForwardCost]:
    """Costs of the full forward for all numbers of rows, new tokens and context tokens; with graphs only the replay."""
    found = []
    for n_rows in rows:
        for context in contexts:
            for n_tokens in tokens:
                cache = prefilled(decoder, n_rows, context, max(tokens))
                ids = torch.full((n_rows, n_tokens), 5, device=decoder.device)
                call = forward_call(decoder, ids, context, cache)
                seconds = median_seconds(call, decoder.device, repeats)
                found.append(ForwardCost(n_rows, n_tokens, context, seconds))
    return found


@torch.inference_mode()
def measure_by_graphs(graphed: GraphedDecoder, *, contexts: Sequence[int], max_tokens: int, repeats: int) -> CostTable:
    """The cost table of a decoder whose forwards are recorded; the counterpart of `search.costs.measure.measure`.

    Args:
        graphed: the decoder.
        contexts: one or two context lengths, in rising order.
        max_tokens: tokens of the longest verification.
        repeats: number of replays; the median counts.
    """
    n = graphed.n_layers
    sets = [SkipSet(n, spread(n, a), spread(n, m)) for a in GRID for m in GRID]
    full, drafted, verify = [], [], []
    for context in contexts:
        full.append(_plain_s(graphed, context, repeats))
        drafted += [(context, s, _chain_s(graphed, s, context, repeats)) for s in sets]
        sizes = sorted({k for k in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 32) if k < max_tokens} | {max_tokens})
        costs = forward_costs(graphed, rows=[1], tokens=sizes, contexts=[context], repeats=repeats)
        # More tokens never cost less; falling medians are noise.
        rising = isotonic_regression([c.seconds for c in costs]).x
        # Sizes between two recorded ones are padded to the larger.
        padded = [next(i for i, size in enumerate(sizes) if size >= k) for k in range(1, max_tokens + 1)]
        verify.append(tuple(float(rising[i]) for i in padded))
    base, mlp, *attn = _fit(drafted, contexts)
    table = CostTable(
        contexts=tuple(contexts),
        attn_s=tuple(attn),
        mlp_s=mlp,
        base_s=base,
        full_s=tuple(full),
        verify_s=verify[0],
        verify_far_s=verify[-1] if len(verify) > 1 else (),
        head_s=_head_s(graphed, repeats),
    )
    left = [tuple(v - table.draft_s(s, c) for at, s, v in drafted if at == c) for c in contexts]
    table = replace(table, interaction_s=tuple(left))
    return replace(table, overhead_s=_overhead_s(graphed, table))


def forward_call(decoder: Decoder, ids: torch.Tensor, context: int, cache: ClockCache) -> Callable[[], object]:
    """A call of the full forward, for timing; for a graphed decoder the replay of its recording."""
    n_rows = ids.shape[0]

    def call() -> object:
        return decoder.full(ids, starts=[context] * n_rows, cache=cache)

    if isinstance(decoder, GraphedDecoder):
        call()
        replay: Callable[[], object] = decoder.stage.recorder.replay_last
        return replay
    return call


@torch.inference_mode()
def prefilled(decoder: Decoder, n_rows: int, context: int, n_more: int) -> ClockCache:
    """A cache with `context` tokens in each row, and room for `n_more`."""
    cache = decoder.new_cache(n_rows=n_rows, capacity=context + n_more)
    ids = torch.arange(context, device=decoder.device) // 3 % int(decoder.config.vocab_size)
    decoder.full(ids.expand(n_rows, -1), starts=[0] * n_rows, cache=cache, n_logits=1)
    return cache


@torch.inference_mode()
def median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of `repeats` calls, after two warm-up calls."""
    return statistics.median(device_seconds(call, device=device, repeats=repeats + 2)[2:])


def _chain_s(graphed: GraphedDecoder, skip: SkipSet, context: int, repeats: int) -> float:
    """Seconds of one token of a recorded chain."""
    chain = graphed.drafter(skip, needs_confidence=True)
    cache = prefilled(graphed, 1, context, N_DRAFTED)
    static = graphed.full.caches_for(cache, n_tokens=context + N_DRAFTED)
    chain.play(torch.tensor([[5]]), [context], N_DRAFTED, static)
    return median_seconds(graphed.stage.recorder.replay_last, graphed.device, repeats) / N_DRAFTED


def _plain_s(graphed: GraphedDecoder, context: int, repeats: int) -> float:
    """Seconds of one token of plain decoding, as its share of a stretch."""
    cache = prefilled(graphed, 1, context, STRETCH)
    static = graphed.full.caches_for(cache, n_tokens=context + STRETCH)
    graphed.plain.play(torch.tensor([[5]]), [context], STRETCH, static)
    return median_seconds(graphed.stage.recorder.replay_last, graphed.device, repeats) / STRETCH


def _head_s(graphed: GraphedDecoder, repeats: int) -> float:
    """Seconds of the output head on one token, called by the host: an upper bound of its part of the base."""
    head = graphed.model.get_output_embeddings()  # type: ignore[operator]
    hidden = torch.zeros(1, 1, int(graphed.config.hidden_size), dtype=graphed.dtype, device=graphed.device)
    return median_seconds(lambda: head(hidden), graphed.device, repeats)


def _overhead_s(graphed: GraphedDecoder, table: CostTable) -> float:
    """Seconds of a real round minus those of its chain and verification, on the host's clock; at least 0."""
    context, n = table.contexts[0], graphed.n_layers
    (result,) = speculate(
        graphed,
        [[i // 3 for i in range(context)]],
        drafter=graphed.drafter(SkipSet(n), needs_confidence=False),
        stops=[Fixed(N_DRAFTED).begin()],
        ending=Ending((N_DRAFTED + 1) * N_ROUNDS + 1, frozenset()),
        stopwatch=Stopwatch(graphed.device),
    )
    forwards_s = N_DRAFTED * table.draft_s(SkipSet(n), context) + table.verification_s(N_DRAFTED + 1, context)
    whole = [r.draft_s + r.verify_s for r in result.rounds if r.drafted == N_DRAFTED]
    return max(0.0, statistics.median(whole) - forwards_s) if whole else 0.0
