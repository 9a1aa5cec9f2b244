"""Measure the cost table of a machine once; it then gives the cost of every skip set.

The cost of a part is the difference between forwards with and without all sublayers of its kind, that is, the saving by
skipping it. The seconds are valid for one model, dtype, device, number of threads and kernel. A measurement has a
budget of seconds, so that a slow model takes no longer than a fast one: it is repeated less often.
"""

# L layers

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]
from torch import Tensor

from search.costs.interleaved_timer import InterleavedTimer
from search.costs.table import GRID, CostTable, spread
from search.costs.timed_calls import Place, always, calling_head
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, speculate
from selfspec.measure.phases import Phases, Step, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan, Precision
from selfspec.skipping.skip_set import SkipSet

OVERHEAD_REPEATS, OVERHEAD_ROUNDS, N_DRAFTED = 8, 4, 2  # enough for a median; chosen, not tuned
# Sizes of verifications that are timed. After the first context the curve is timed at each size up to 8, where drafts
# mostly end, and its growth with the context, which is smooth, at a few; sizes between them are interpolated.
NEAR_SIZES, FAR_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32), (1, 4, 12, 32)
# Shares of the seconds of a table; the rest is for the texts before the timed tokens, and for first turns that take
# longer than a share.
DRAFTS_SHARE, NEAR_SHARE, FAR_SHARE, HEAD_SHARE, OVERHEAD_SHARE = 0.17, 0.23, 0.1, 0.03, 0.12
PARTS_SHARE = 0.3  # of the seconds of a table, for the parts of another head or precision


@torch.inference_mode()
def measure(
    decoder: Decoder,
    *,
    contexts: Sequence[int],
    max_tokens: int,
    repeats: int,
    stopwatch: Stopwatch,
    max_s: float = math.inf,
    phase: Phases = unwatched,
) -> CostTable:
    """Measure the table on a quiet machine.

    Drafts that skip none, half or all of the attention and MLP sublayers are timed in turn. The costs of the parts are
    the least-squares fit of the medians; the residual of each set is `interaction_s`.

    Args:
        decoder: the model.
        contexts: one or two context lengths, in rising order; two if the growth of attention matters.
        max_tokens: tokens of the longest verification.
        repeats: largest number of calls of every forward, in turn with the others; the median counts.
        stopwatch: measures the seconds.
        max_s: seconds that the table may take. Every forward is called twice, so a model of less than about 5 tokens
            a second takes longer.
        phase: is told how the measurement goes on.
    """
    n = decoder.n_layers
    sets = [SkipSet(n, spread(n, a), spread(n, m)) for a in GRID for m in GRID]
    near, far = _sizes(NEAR_SIZES, max_tokens), _sizes(FAR_SIZES, max_tokens)
    n_calls = len(contexts) * len(sets) + (len(contexts) - 1) * (1 + len(far)) + len(near) + 1
    with phase("costs", n_calls * repeats + OVERHEAD_REPEATS) as step:
        places = [Place(decoder, context, max_tokens) for context in contexts]
        turns = InterleavedTimer(places[0].plain(), repeats, stopwatch, max_s=max_s, step=step)
        full, drafted = [1.0], []
        for context, place in zip(contexts, places, strict=True):
            calls = {str(s): place.drafting(s) for s in sets}
            if context != contexts[0]:
                calls["plain"] = place.plain()
            units = turns.units(calls, share=DRAFTS_SHARE)
            full += [units["plain"]] if "plain" in units else []
            drafted += [(context, s, units[str(s)]) for s in sets]
        base, mlp, *attn = _fit(drafted, contexts)
        verify = [_verification(turns, places[0], near, max_tokens, share=NEAR_SHARE)]
        if len(contexts) > 1:
            there = _verification(turns, places[-1], far, max_tokens, share=FAR_SHARE)
            more = [there[k - 1] - verify[0][k - 1] for k in far]
            grown = np.interp(range(1, max_tokens + 1), far, more)
            verify.append([float(v) for v in np.maximum.accumulate(np.array(verify[0]) + grown)])
        head_units = turns.units({"head": calling_head(decoder)}, share=HEAD_SHARE)["head"]
        overhead = _round_units(decoder, contexts[0], places[0], stopwatch, OVERHEAD_SHARE * max_s, step)
    unit_s = turns.unit_s
    table = CostTable(
        contexts=tuple(contexts),
        attn_s=tuple(v * unit_s for v in attn),
        mlp_s=mlp * unit_s,
        base_s=base * unit_s,
        full_s=tuple(v * unit_s for v in full),
        verify_s=tuple(v * unit_s for v in verify[0]),
        verify_far_s=tuple(v * unit_s for v in verify[-1]) if len(verify) > 1 else (),
        overhead_s=overhead * unit_s,
        head_s=head_units * unit_s,
    )
    left = [tuple(v * unit_s - table.draft_s(s, c) for at, s, v in drafted if at == c) for c in contexts]
    return replace(table, interaction_s=tuple(left))


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
    max_s: float = math.inf,
    phase: Phases = unwatched,
) -> CostTable:
    """The table with the cost of linear bridges, and the savings by a trimmed head and rounded weights.

    They are measured at the first context.

    Args:
        decoder: the model.
        table: costs of plain skipping.
        has_maps: whether drafts have bridges with a matrix.
        head: ids that the draft's head scores, [V]; None: all.
        precision: precision of the kept weights.
        repeats: largest number of calls of every forward, in turn with the others; the median counts.
        stopwatch: measures the seconds.
        max_s: seconds of a whole table, of which this takes `PARTS_SHARE`, and the time to round weights.
        phase: is told how the measurement goes on.
    """
    n = decoder.n_layers
    everything = DraftPlan.from_skip_set(SkipSet.from_bits([True] * (2 * n)))
    has_head, is_rounded = head is not None or precision != "same", precision != "same"
    halves = {"attn": SkipSet(n, mlp=frozenset(range(n))), "mlp": SkipSet(n, attn=frozenset(range(n)))}
    drafts: dict[str, SkipSet | DraftPlan] = {"nothing": everything}
    if has_maps:
        width = int(decoder.config.hidden_size)
        zeros = torch.zeros(width, width), torch.zeros(width)
        places = [at for at in everything.skipped if at[0] == "attn"]  # every architecture takes a bridge there
        bridges = {at: Bridge(zeros[1], zeros[:1]) for at in places}
        drafts["maps"] = DraftPlan(everything.skip, bridges, kind="linear")
    if has_head:
        own = DraftPlan(everything.skip, head=head, precision=precision)
        drafts["head"] = own
    if is_rounded:
        for name, skip in halves.items():
            drafts |= {name: skip, f"{name} rounded": replace(own, skip=skip)}
    context = table.contexts[0]
    with phase(f"costs of {_parts(has_maps, head, precision)}", len(drafts) * repeats) as step:
        place = Place(decoder, context, 1)
        turns = InterleavedTimer(place.plain(), repeats, stopwatch, max_s=max_s, step=step)
        units = turns.units({name: place.drafting(draft) for name, draft in drafts.items()}, share=PARTS_SHARE)
    unit_s = table.plain_s(context)
    map_s = max(0.0, units["maps"] - units["nothing"]) * unit_s / n if has_maps else 0.0
    saved = units["nothing"] - units["head"] if has_head else 0.0
    # A kernel may be slower on small layers: its saving is then negative, and the search must know this.
    attn_s, mlp_s = ((units[k] - units[f"{k} rounded"] - saved) * unit_s / n if is_rounded else 0.0 for k in halves)
    head_s = saved * unit_s if is_rounded else max(0.0, saved) * unit_s
    return replace(table, map_s=map_s, head_saved_s=head_s, attn_saved_s=attn_s, mlp_saved_s=mlp_s)


@torch.inference_mode()
def check(
    decoder: Decoder,
    table: CostTable,
    sets: Sequence[SkipSet | DraftPlan],
    *,
    repeats: int,
    stopwatch: Stopwatch,
    max_s: float = math.inf,
    phase: Phases = unwatched,
) -> list[tuple[float, float]]:
    """(predicted, measured) cost of one drafted token of each set, in plain tokens, at the first context."""
    context = table.contexts[0]
    with phase("check of costs", len(sets) * repeats) as step:
        place = Place(decoder, context, 1)
        turns = InterleavedTimer(place.plain(), repeats, stopwatch, max_s=max_s, step=step)
        measured = turns.units({str(i): place.drafting(skip) for i, skip in enumerate(sets)})
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


def _sizes(wanted: Sequence[int], largest_size: int) -> list[int]:
    """The wanted sizes below the largest one, and the largest one."""
    return [*(k for k in wanted if k < largest_size), largest_size]


def _verification(
    turns: InterleavedTimer, place: Place, sizes: Sequence[int], max_tokens: int, *, share: float
) -> list[float]:
    """Cost of the full forward of 1, 2, ..., `max_tokens` tokens, in plain tokens; between `sizes` interpolated."""
    units = turns.units({str(k): place.plain(k) for k in sizes}, share=share)
    # More tokens never cost less; falling medians are noise.
    rising = isotonic_regression([units[str(k)] for k in sizes]).x
    return [float(v) for v in np.interp(range(1, max_tokens + 1), sizes, rising)]


def _parts(has_maps: bool, head: Tensor | None, precision: Precision) -> str:
    """The parts of a draft for people: `int4 weights, a head of 8192`."""
    found = ["bridges"] if has_maps else []
    found += [f"{precision} weights"] if precision != "same" else []
    found += [] if head is None else [f"a head of {head.numel()}"]
    return ", ".join(found) or "drafts"


def _round_units(decoder: Decoder, context: int, place: Place, stopwatch: Stopwatch, max_s: float, step: Step) -> float:
    """Cost of a real round minus its forwards, in plain tokens; at least 0, and 0 if the context has no room for one.

    The forwards are timed again just before and after: their cost in plain tokens depends on the load of the machine's
    memory, and a round consists mostly of forwards.
    """
    nothing = SkipSet(decoder.n_layers)
    spec = DraftSpec(DraftPlan.from_skip_set(nothing), always(N_DRAFTED))
    drafter, plain = build_drafter(spec, decoder), place.plain()
    forwards = {"draft": place.drafting(nothing), "verify": place.plain(N_DRAFTED + 1)}

    def timed(*, is_warm: bool) -> tuple[dict[str, float], float]:
        turns = InterleavedTimer(plain, 3, stopwatch)
        return turns.units(forwards, is_warm=is_warm), turns.unit_s

    began, left = stopwatch.now(), []
    before, unit_before_s = timed(is_warm=False)
    for _ in range(OVERHEAD_REPEATS):
        begin = stopwatch.now()
        (result,) = speculate(
            decoder,
            [[5] * context],
            drafter=drafter,
            stops=[spec.stop.begin()],
            ending=Ending((N_DRAFTED + 1) * OVERHEAD_ROUNDS + 1, frozenset()),
            stopwatch=stopwatch,
        )
        after, unit_after_s = timed(is_warm=True)
        unit_s = (unit_before_s + unit_after_s) / 2
        draft, verify = ((before[name] + after[name]) / 2 for name in forwards)
        whole = [r for r in result.rounds if r.drafted == N_DRAFTED]
        left += [(r.draft_s + r.verify_s) / unit_s - N_DRAFTED * draft - verify for r in whole]
        before, unit_before_s = after, unit_after_s
        now = stopwatch.now()
        if 2 * now - begin - began > max_s:
            break
    step(OVERHEAD_REPEATS)
    return max(0.0, statistics.median(left)) if left else 0.0
