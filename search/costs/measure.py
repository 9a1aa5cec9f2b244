"""Measure the cost table of a machine once; it then gives the cost of every skip set.

The cost of a part is the difference between forwards with and without all sublayers of its kind, that is, the saving by
skipping it. The seconds are valid for one model, dtype, device, number of threads and kernel.
"""

# L layers

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]
from torch import Tensor

from search.costs.interleaved_timer import InterleavedTimer
from search.costs.table import GRID, CostTable, spread
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import Row
from selfspec.engine.sampling import Chooser, Sampling, largest
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan, Precision
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Threshold

OVERHEAD_REPEATS, OVERHEAD_ROUNDS, N_DRAFTED = 8, 4, 2  # enough for a median; chosen, not tuned


@torch.inference_mode()
def measure(
    decoder: Decoder, *, contexts: Sequence[int], max_tokens: int, repeats: int, stopwatch: Stopwatch
) -> CostTable:
    """Measure the table with about `repeats` · 2 · (sets + max_tokens) forwards, on a quiet machine.

    Drafts that skip none, half or all of the attention and MLP sublayers are timed in turn. The costs of the parts are
    the least-squares fit of the medians; the residual of each set is `interaction_s`.

    Args:
        decoder: the model.
        contexts: one or two context lengths, in rising order; two if the growth of attention matters.
        max_tokens: tokens of the longest verification.
        repeats: number of calls of every forward, in turn with the others; the median counts.
        stopwatch: measures the seconds.
    """
    n = decoder.n_layers
    sets = [SkipSet(n, spread(n, a), spread(n, m)) for a in GRID for m in GRID]
    turns = InterleavedTimer(_plain(decoder, 1, contexts[0]), repeats, stopwatch)
    full, drafted = [1.0], []
    for context in contexts:
        calls = {str(s): _drafting(decoder, s, context) for s in sets}
        if context != contexts[0]:
            calls["plain"] = _plain(decoder, 1, context)
        units = turns.units(calls)
        full += [units["plain"]] if "plain" in units else []
        drafted += [(context, s, units[str(s)]) for s in sets]
    base, mlp, *attn = _fit(drafted, contexts)
    verify = []
    for context in contexts:
        sizes = {str(k): _plain(decoder, k, context) for k in range(1, max_tokens + 1)}
        # More tokens never cost less; falling medians are noise.
        verify.append(isotonic_regression(list(turns.units(sizes).values())).x)
    head_units = turns.units({"head": _calling_head(decoder)})["head"]
    unit_s = turns.unit_s
    table = CostTable(
        contexts=tuple(contexts),
        attn_s=tuple(v * unit_s for v in attn),
        mlp_s=mlp * unit_s,
        base_s=base * unit_s,
        full_s=tuple(v * unit_s for v in full),
        verify_s=tuple(float(v) * unit_s for v in verify[0]),
        verify_far_s=tuple(float(v) * unit_s for v in verify[-1]) if len(verify) > 1 else (),
        head_s=head_units * unit_s,
    )
    left = [tuple(v * unit_s - table.draft_s(s, c) for at, s, v in drafted if at == c) for c in contexts]
    table = replace(table, interaction_s=tuple(left))
    return replace(table, overhead_s=_round_units(decoder, contexts[0], stopwatch) * unit_s)


@torch.inference_mode()
def measure_drafts(
    decoder: Decoder,
    table: CostTable,
    *,
    has_maps: bool,
    head: Tensor | None,
    precision: Precision = "same",
    repeats: int,
    stopwatch: Stopwatch,
) -> CostTable:
    """The table with the cost of linear bridges, and the savings by a trimmed head and rounded weights.

    They are measured at the first context.

    Args:
        decoder: the model.
        table: costs of plain skipping.
        has_maps: whether drafts have bridges with a matrix.
        head: ids that the draft's head scores, [V]; None: all.
        precision: precision of the kept weights.
        repeats: number of calls of every forward, in turn with the others; the median counts.
        stopwatch: measures the seconds.
    """
    context, n = table.contexts[0], decoder.n_layers
    everything = DraftPlan.from_skip_set(SkipSet.from_bits([True] * (2 * n)))
    has_head, is_rounded = head is not None or precision != "same", precision != "same"
    halves = {"attn": SkipSet(n, mlp=frozenset(range(n))), "mlp": SkipSet(n, attn=frozenset(range(n)))}
    calls = {"nothing": _drafting(decoder, everything, context)}
    if has_maps:
        width = int(decoder.config.hidden_size)
        zeros = torch.zeros(width, width), torch.zeros(width)
        places = [at for at in everything.skipped if at[0] == "attn"]  # every architecture takes a bridge there
        bridges = {at: Bridge(zeros[1], zeros[:1]) for at in places}
        calls["maps"] = _drafting(decoder, DraftPlan(everything.skip, bridges, kind="linear"), context)
    if has_head:
        own = DraftPlan(everything.skip, head=head, precision=precision)
        calls["head"] = _drafting(decoder, own, context)
    if is_rounded:
        for name, skip in halves.items():
            calls[name] = _drafting(decoder, skip, context)
            calls[f"{name} rounded"] = _drafting(decoder, replace(own, skip=skip), context)
    turns = InterleavedTimer(_plain(decoder, 1, context), repeats, stopwatch)
    units, unit_s = turns.units(calls), table.plain_s(context)
    map_s = max(0.0, units["maps"] - units["nothing"]) * unit_s / n if has_maps else 0.0
    saved = units["nothing"] - units["head"] if has_head else 0.0
    # A kernel may be slower on small layers: its saving is then negative, and the search must know this.
    attn_s, mlp_s = ((units[k] - units[f"{k} rounded"] - saved) * unit_s / n if is_rounded else 0.0 for k in halves)
    head_s = saved * unit_s if is_rounded else max(0.0, saved) * unit_s
    return replace(table, map_s=map_s, head_saved_s=head_s, attn_saved_s=attn_s, mlp_saved_s=mlp_s)


@torch.inference_mode()
def check(
    decoder: Decoder, table: CostTable, sets: Sequence[SkipSet | DraftPlan], *, repeats: int, stopwatch: Stopwatch
) -> list[tuple[float, float]]:
    """(predicted, measured) cost of one drafted token of each set, in plain tokens, at the first context."""
    context = table.contexts[0]
    turns = InterleavedTimer(_plain(decoder, 1, context), repeats, stopwatch)
    measured = turns.units({str(i): _drafting(decoder, skip, context) for i, skip in enumerate(sets)})
    plain_s = table.plain_s(context)
    return [(table.draft_s(skip, context) / plain_s, measured[str(i)]) for i, skip in enumerate(sets)]


def random_sets(n_layers: int, n_sets: int, seed: int) -> list[SkipSet]:
    """Random skip sets of evenly spaced sizes, from few sublayers to almost all."""
    rng = np.random.default_rng(seed)
    sizes = np.linspace(1, 2 * n_layers - 1, n_sets).round().astype(int)
    found = []
    for size in sizes:
        chosen = set(rng.choice(2 * n_layers, size=size, replace=False).tolist())
        found.append(SkipSet.from_bits([i in chosen for i in range(2 * n_layers)]))
    return found


def _fit(drafted: Sequence[tuple[int, SkipSet, float]], contexts: Sequence[int]) -> list[float]:
    """Cost of the base, of one MLP, and of one attention at each context: the least squares of relative errors."""
    rows = []
    for context, skip, cost in drafted:
        n_attn, n_mlp = skip.n_layers - len(skip.attn), skip.n_layers - len(skip.mlp)
        rows.append([v / cost for v in (1.0, n_mlp, *(n_attn * (context == c) for c in contexts))])
    parts, *_ = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)
    return [max(0.0, float(v)) for v in parts]


def _round_units(decoder: Decoder, context: int, stopwatch: Stopwatch) -> float:
    """Cost of a real round minus its forwards, in plain tokens; at least 0, and 0 if the context has no room for one.

    The forwards are timed again just before and after: their cost in plain tokens depends on the load of the machine's
    memory, and a round consists mostly of forwards.
    """
    nothing = SkipSet(decoder.n_layers)
    spec = DraftSpec(DraftPlan.from_skip_set(nothing), _always(N_DRAFTED))
    drafter, plain = build_drafter(spec, decoder), _plain(decoder, 1, context)
    forwards = {"draft": _drafting(decoder, nothing, context), "verify": _plain(decoder, N_DRAFTED + 1, context)}
    left = []
    for _ in range(OVERHEAD_REPEATS):
        turns = InterleavedTimer(plain, 3, stopwatch)
        before = turns.units(forwards)
        (result,) = speculate(
            decoder,
            [[5] * context],
            drafter=drafter,
            stops=[spec.stop.begin()],
            ending=Ending((N_DRAFTED + 1) * OVERHEAD_ROUNDS + 1, frozenset()),
            stopwatch=stopwatch,
        )
        after = turns.units(forwards)
        draft, verify = ((before[name] + after[name]) / 2 for name in forwards)
        whole = [r for r in result.rounds if r.drafted == N_DRAFTED]
        left += [(r.draft_s + r.verify_s) / turns.unit_s - N_DRAFTED * draft - verify for r in whole]
    return max(0.0, statistics.median(left)) if left else 0.0


def _drafting(decoder: Decoder, draft: SkipSet | DraftPlan, context: int) -> Callable[[], None]:
    """A call that drafts one token after `context` tokens, for timing."""
    cache, ids = _prefilled(decoder, context, 1)
    spec = DraftSpec(draft if isinstance(draft, DraftPlan) else DraftPlan.from_skip_set(draft), _always(1))
    drafter = build_drafter(spec, decoder)
    row = Row(0, [*ids, 5], 1, spec.stop.begin(), Chooser(Sampling()))

    def call() -> None:
        drafter.propose([row], cache=cache)

    return call


def _always(n_tokens: int) -> Threshold:
    """A rule that always drafts this number of tokens, and reads confidences like a threshold rule."""
    return Threshold(n_tokens, 0.0)


def _plain(decoder: Decoder, n_tokens: int, context: int) -> Callable[[], None]:
    """A call of the full forward of `n_tokens` after `context` tokens and the choice of tokens, for timing."""
    cache, _ = _prefilled(decoder, context, n_tokens)
    ids = torch.full((1, n_tokens), 5, device=decoder.device)

    def call() -> None:
        largest(decoder.full(ids, starts=[context], cache=cache)).tolist()

    return call


def _calling_head(decoder: Decoder) -> Callable[[], None]:
    """A call of the output head on one token, for timing."""
    head = decoder.model.get_output_embeddings()  # type: ignore[operator]
    hidden_11D = torch.zeros(1, 1, int(decoder.config.hidden_size), dtype=decoder.dtype, device=decoder.device)
    return lambda: head(hidden_11D)


def _prefilled(decoder: Decoder, context: int, n_more: int) -> tuple[ClockCache, list[int]]:
    """A cache of `context` tokens with room for more, and its tokens; every third token is a new one."""
    cache = decoder.new_cache(n_rows=1, capacity=context + n_more)
    ids = [(-1 - i // 3) % int(decoder.config.vocab_size) for i in range(context)]
    decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
    return cache, ids
