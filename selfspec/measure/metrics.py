"""Ratios of counts and seconds. Sums are pooled before they are divided; a ratio with denominator 0 is nan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Interval = tuple[float, float]


def ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator; nan if the denominator is 0."""
    return numerator / denominator if denominator else math.nan


def acceptance(accepted: int, drafted: int) -> float:
    """Accepted over drafted tokens, pooled, in [0, 1]; nan if nothing was drafted."""
    return ratio(accepted, drafted)


def tokens_per_round(accepted: int, n_rounds: int) -> float:
    """Committed tokens in a round, pooled: the accepted ones, and the correction or bonus."""
    return ratio(accepted + n_rounds, n_rounds)


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds and tokens of decoding one prompt, without the prefill and its token."""

    seconds: float
    tokens: int


def tokens_per_s(times: Sequence[Timed]) -> float:
    """Tokens per second, pooled over prompts."""
    return ratio(sum(t.tokens for t in times), sum(t.seconds for t in times))


def speedup(baseline: Sequence[Timed], method: Sequence[Timed]) -> float:
    """The method's tokens per second over the baseline's, pooled over the same prompts in the same order.

    If both give the same tokens, as lossless methods do, this is baseline seconds over method seconds.
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
        (low, high); nan for fewer than two prompts.
    """
    if n_prompts < 2:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, n_prompts, size=(n, n_prompts))
    low, high = np.quantile(statistic(picks), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
