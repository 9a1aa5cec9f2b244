"""Ratios, from counts and seconds. Pool before dividing; a ratio of nothing is nan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from selfspec.measure.intervals import Interval, t_interval


def ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator, or nan where there is nothing to divide by."""
    return numerator / denominator if denominator else math.nan


def acceptance(accepted: int, drafted: int) -> float:
    """Accepted over drafted tokens, pooled, in [0, 1]; nan if nothing was drafted."""
    return ratio(accepted, drafted)


def tokens_per_round(accepted: int, n_rounds: int) -> float:
    """(accepted + 1) a round, pooled: the accepted tokens and the correction or bonus."""
    return ratio(accepted + n_rounds, n_rounds)


@dataclass(frozen=True, slots=True)
class Timed:
    """What decoding one prompt took: seconds, and the tokens they bought. The prefill and its token are not in it."""

    seconds: float
    tokens: int


def tokens_per_s(times: Sequence[Timed]) -> float:
    """Tokens a second, pooled over prompts."""
    return ratio(sum(t.tokens for t in times), sum(t.seconds for t in times))


def speedup(baseline: Sequence[Timed], method: Sequence[Timed]) -> float:
    """The method's tokens per second over the baseline's, pooled over the same prompts in the same order.

    Where both give the same tokens, as lossless methods do, this is baseline seconds over method seconds.
    """
    if len(baseline) != len(method):
        raise ValueError(f"{len(baseline)} baseline and {len(method)} method times; they must be paired")
    return ratio(tokens_per_s(method), tokens_per_s(baseline))


def speedup_interval(baseline: Sequence[Timed], method: Sequence[Timed]) -> Interval:
    """The 95 % bootstrap interval of `speedup`; a prompt is drawn with both of its times."""
    if len(baseline) != len(method):
        raise ValueError(f"{len(baseline)} baseline and {len(method)} method times; they must be paired")
    b = np.array([(t.seconds, t.tokens) for t in baseline], dtype=float).reshape(-1, 2)
    m = np.array([(t.seconds, t.tokens) for t in method], dtype=float).reshape(-1, 2)

    def pooled(picks: np.ndarray) -> np.ndarray:
        bs, ms = b[picks].sum(axis=1), m[picks].sum(axis=1)
        ratios: np.ndarray = (ms[:, 1] / ms[:, 0]) / (bs[:, 1] / bs[:, 0])
        return ratios

    return bootstrap_interval(len(b), pooled)


def speedup_t_interval(baseline: Sequence[Timed], method: Sequence[Timed], *, level: float) -> Interval:
    """Student's t interval of `speedup` on the log scale, at any level of confidence and from two prompts on."""
    return t_interval(_pooled_speedup, *_columns(baseline, method), level=level)


def _columns(baseline: Sequence[Timed], method: Sequence[Timed]) -> list[np.ndarray]:
    """Baseline seconds and tokens, then the method's: [n] each."""
    if len(baseline) != len(method):
        raise ValueError(f"{len(baseline)} baseline and {len(method)} method times; they must be paired")
    both = [[getattr(t, name) for t in times] for times in (baseline, method) for name in ("seconds", "tokens")]
    return [np.array(column, dtype=float) for column in both]


def _pooled_speedup(bs: np.ndarray, bt: np.ndarray, ms: np.ndarray, mt: np.ndarray) -> np.ndarray:
    found: np.ndarray = (mt.sum(-1) / ms.sum(-1)) / (bt.sum(-1) / bs.sum(-1))
    return found


def bootstrap_interval(
    n_prompts: int, statistic: Callable[[np.ndarray], np.ndarray], *, level: float = 0.95, n: int = 2000, seed: int = 0
) -> Interval:
    """Percentile interval of a statistic of prompts.

    Args:
        n_prompts: prompts to draw from, with replacement.
        statistic: from drawn prompt indices [n, n_prompts] to values [n].
        level: of confidence.
        n: resamples; chosen, not tuned.
        seed: of the resampling.

    Returns:
        (low, high); nan for fewer than two prompts, from which nothing can be said.
    """
    if n_prompts < 2:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, n_prompts, size=(n, n_prompts))
    low, high = np.quantile(statistic(picks), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
