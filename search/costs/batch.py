"""Measure the steps of a batch: the target's forward of several rows, and the forwards of a drafter.

The seconds of verifying n tokens in each of B rows after a context are fitted to the few terms of
`selfspec.control.step_costs`. How good the fit is, is measured on points that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls  # type: ignore[import-untyped]

from search.costs.interleaved_timer import InterleavedTimer
from search.costs.timed_calls import Place, always
from selfspec.control.step_costs import StepCosts, terms
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import AroundDrafter, Drafter
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder

TOKENS = (1, 2, 4, 8)  # of each row in a timed forward
HELD_OUT = 5  # every fifth point tells how good the fit is; prime to the number of sizes, so that all sizes occur
N_DRAFTED, N_ROUNDS = 4, 4  # of the rounds that time a drafter

Point = tuple[int, int, int]  # rows, tokens of each, context


@torch.inference_mode()
def measure_steps(
    decoder: Decoder,
    *,
    rows: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    stopwatch: Stopwatch,
    of: Mapping[str, Any],
    max_s: float = math.inf,
    phase: Phases = unwatched,
) -> StepCosts:
    """Time the target's forward of `TOKENS` tokens in each of `rows` rows, in turn with a plain token; fit the seconds.

    Args:
        decoder: the model.
        rows: numbers of rows, rising.
        contexts: tokens before the timed ones, rising; at the second and later ones only the smallest and the largest
            sizes are timed, since the growth with the context is a straight line.
        repeats: largest number of calls of each size; the median counts.
        stopwatch: measures the seconds.
        of: what the seconds are of, for `StepCosts.check_device`.
        max_s: seconds that all of it may take; each size is called at least twice.
        phase: is told how the measurement goes on.
    """
    points = [(n, k, contexts[0]) for n, k in product(rows, TOKENS)]
    ends = {rows[0], rows[-1]}
    points += [(n, k, c) for c in contexts[1:] for n, k in product(sorted(ends), (TOKENS[0], TOKENS[-1]))]
    found: dict[Point, float] = {}
    with phase("costs of batches", len(points) * repeats) as step:
        plain = Place(decoder, contexts[0], TOKENS[-1]).plain()
        turns = InterleavedTimer(plain, repeats, stopwatch, max_s=max_s, step=step)
        for n, context in dict.fromkeys((n, c) for n, _, c in points):  # one cache at a time
            place = Place(decoder, context, TOKENS[-1], n_rows=n)
            sizes = [k for m, k, c in points if (m, c) == (n, context)]
            units = turns.units({str(k): place.plain(k) for k in sizes}, share=len(sizes) / len(points))
            found |= {(n, k, context): units[str(k)] for k in sizes}
    unit_s = turns.unit_s
    return fitted({point: units * unit_s for point, units in found.items()}, of)


def fitted(seconds: Mapping[Point, float], of: Mapping[str, Any] | None = None) -> StepCosts:
    """The terms with the least squares of relative errors, none below 0, and their R² on every fifth point.

    Args:
        seconds: of the target's forward, by rows, tokens of each and context.
        of: what the seconds are of.
    """
    points = sorted(seconds)
    held_out = points[HELD_OUT // 2 :: HELD_OUT]
    rest = StepCosts(_fit({p: seconds[p] for p in points if p not in held_out}))
    true = np.array([seconds[p] for p in held_out])
    missed = true - [rest.verify_s(*p) for p in held_out]
    around = float(((true - true.mean()) ** 2).sum())
    r2 = 1 - float((missed**2).sum()) / around if around > 0 else None
    return StepCosts(_fit(seconds), r2=r2, of=None if of is None else dict(of))


def _fit(seconds: Mapping[Point, float]) -> tuple[float, ...]:
    rows = np.array([[term / s for term in terms(*point)] for point, s in seconds.items()])
    found, _ = nnls(rows, np.ones(len(rows)))
    return tuple(float(v) for v in found)


@torch.inference_mode()
def measure_drafting(
    decoder: Decoder, drafter: Drafter, *, n_rows: int, context: int, stopwatch: Stopwatch
) -> tuple[float, float] | None:
    """Seconds of a forward of a drafter: those of one row without it, and those of each row; see `StepCosts.draft`.

    Real rounds with one row and with `n_rows` are timed, so it serves every drafter. Of drafters around others the
    innermost counts.

    Args:
        decoder: the target.
        drafter: the drafter.
        n_rows: rows of the largest batch.
        context: tokens before the rounds.
        stopwatch: measures the seconds.

    Returns:
        None if it drafts without forwards.
    """
    while isinstance(drafter, AroundDrafter):
        drafter = drafter.inner
    one, all_s = (_forward_s(decoder, drafter, n, context, stopwatch) for n in (1, n_rows))
    if one is None or all_s is None:
        return None
    row_s = max(0.0, (all_s - one) / (n_rows - 1)) if n_rows > 1 else 0.0
    return max(0.0, one - row_s), row_s


def _forward_s(decoder: Decoder, drafter: Drafter, n_rows: int, context: int, stopwatch: Stopwatch) -> float | None:
    ids = [(-1 - i // 3) % int(decoder.config.vocab_size) for i in range(context)]
    results = speculate(
        decoder,
        [ids] * n_rows,
        drafter=drafter,
        stops=[always(N_DRAFTED).begin() for _ in range(n_rows)],
        ending=Ending((N_DRAFTED + 1) * N_ROUNDS + 1, frozenset()),
        stopwatch=stopwatch,
    )
    # equal rows stay together, and each has its share of the seconds
    found = [n_rows * r.draft_s / r.n_forwards for r in results[0].rounds if r.n_forwards]
    return median(found) if found else None
