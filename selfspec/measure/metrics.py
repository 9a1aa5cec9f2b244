"""Ratios of counts and seconds. Sums are pooled before they are divided; a ratio with denominator 0 is nan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfspec.measure.intervals import Interval, interval, t_interval


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
    """The 95 % interval of `speedup`; a prompt is drawn, or left out, with both of its times."""
    return interval(_pooled_speedup, *_columns(baseline, method))


def speedup_t_interval(baseline: Sequence[Timed], method: Sequence[Timed], *, level: float) -> Interval:
    """Student's t interval of `speedup` on the log scale, at any level of confidence and for any number of prompts."""
    return t_interval(_pooled_speedup, *_columns(baseline, method), level=level)


def pooled_ratio(top: Sequence[float], bottom: Sequence[float], *, most: float = math.inf) -> tuple[float, Interval]:
    """The ratio of two sums over prompts, with its 95 % interval.

    Args:
        top: one number a prompt.
        bottom: the number by which it is divided, for the same prompts.
        most: the largest value that the ratio can have: 1 for a fraction.
    """
    columns = np.array(top, dtype=float), np.array(bottom, dtype=float)
    low, high = interval(lambda a, b: a.sum(-1) / b.sum(-1), *columns)
    return ratio(float(columns[0].sum()), float(columns[1].sum())), (max(low, 0.0), min(high, most))


def mean_interval(values: Sequence[float], *, within: Interval) -> Interval:
    """The 95 % interval of a mean over prompts, of values that lie in `within`."""
    low, high = interval(lambda column: column.mean(-1), np.array(values, dtype=float), log=False)
    return max(low, within[0]), min(high, within[1])


def _columns(baseline: Sequence[Timed], method: Sequence[Timed]) -> list[np.ndarray]:
    """Baseline seconds and tokens, then the method's: [n] each."""
    if len(baseline) != len(method):
        raise ValueError(f"{len(baseline)} baseline and {len(method)} method times; they must be paired")
    both = [[getattr(t, name) for t in times] for times in (baseline, method) for name in ("seconds", "tokens")]
    return [np.array(column, dtype=float) for column in both]


def _pooled_speedup(bs: np.ndarray, bt: np.ndarray, ms: np.ndarray, mt: np.ndarray) -> np.ndarray:
    found: np.ndarray = (mt.sum(-1) / ms.sum(-1)) / (bt.sum(-1) / bs.sum(-1))
    return found
