"""Measure the steps of a batch: the target's forward of several rows.

The seconds of verifying n tokens in each of B rows after a context are fitted to the few terms of
`selfspec.control.step_costs`. How good the fit is, is measured on points that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls  # type: ignore[import-untyped]

from search.costs.interleaved_timer import InterleavedTimer
from search.costs.timed_calls import Place
from selfspec.control.step_costs import StepCosts, terms
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder

TOKENS = (1, 2, 4, 8)  # of each row in a timed forward
PIECES = (32, 128)  # tokens of a prompt in a timed forward
HELD_OUT = 5  # every fifth point tells how good the fit is; prime to the number of sizes, so that all sizes occur

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

    Pieces of one prompt, of `PIECES` tokens, are timed as well: they are far longer than the largest step.

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
    pieces = sorted({min(n, decoder.context_length - contexts[0] - 1) for n in PIECES})
    n_calls = len(points) + len(pieces)
    with phase("costs of batches", n_calls * repeats) as step:
        plain = Place(decoder, contexts[0], TOKENS[-1]).plain()
        turns = InterleavedTimer(plain, repeats, stopwatch, max_s=max_s, step=step)
        for n, context in dict.fromkeys((n, c) for n, _, c in points):  # one cache at a time
            place = Place(decoder, context, TOKENS[-1], n_rows=n)
            sizes = [k for m, k, c in points if (m, c) == (n, context)]
            units = turns.units({str(k): place.plain(k) for k in sizes}, share=len(sizes) / n_calls)
            found |= {(n, k, context): units[str(k)] for k in sizes}
        place = Place(decoder, contexts[0], pieces[-1])
        read = turns.units({str(n): place.reading(n) for n in pieces}, share=len(pieces) / n_calls)
    unit_s = turns.unit_s
    steps = fitted({point: units * unit_s for point, units in found.items()}, of)
    return replace(steps, prefill=_line([(n, read[str(n)] * unit_s) for n in pieces]))


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


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds of a forward without tokens, and of each token, none below 0; through the first and the last point."""
    (n_first, first_s), (n_last, last_s) = points[0], points[-1]
    each = max(0.0, (last_s - first_s) / (n_last - n_first)) if n_last > n_first else first_s / n_first
    return max(0.0, last_s - each * n_last), each


def _fit(seconds: Mapping[Point, float]) -> tuple[float, ...]:
    rows = np.array([[term / s for term in terms(*point)] for point, s in seconds.items()])
    found, _ = nnls(rows, np.ones(len(rows)))
    return tuple(float(v) for v in found)
