"""95 % intervals of statistics that are pooled over prompts: one function for tables, reports and the race.

It knows numbers and prompts. It does not know what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Interval = tuple[float, float]
Statistic = Callable[..., np.ndarray]  # of columns [..., n], one number a prompt, to values [...]


def t_interval(statistic: Statistic, *columns: np.ndarray, log: bool = True, level: float = 0.95) -> Interval:
    """Student's t interval around a pooled statistic, with the jackknife's standard error.

    Args:
        statistic: of columns [..., n] to values [...]; it pools over the last dimension.
        columns: one number a prompt [n] each; a prompt is left out of all of them at once.
        log: whether the statistic is a ratio, whose logarithm is symmetric. The interval is linear where a value
            without one of the prompts is not above 0.
        level: of confidence.

    Returns:
        (low, high), around the statistic of all prompts. The point itself where all prompts agree. nan for fewer than
        two prompts, and where the statistic is nan.

    Source: Miller 1974, The jackknife: a review; for a ratio of sums this is the t interval of the prompts' log ratios,
    each weighted by what it adds to the sums.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    n = len(columns[0])
    if n < 2:
        return math.nan, math.nan
    others = ~np.eye(n, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        point = float(statistic(*columns))
        without_N = statistic(*(np.broadcast_to(c, (n, n))[others].reshape(n, n - 1) for c in columns))
    if not (math.isfinite(point) and np.isfinite(without_N).all()):
        return math.nan, math.nan
    is_log = log and point > 0 and bool((without_N > 0).all())
    shown_N = np.log(without_N) if is_log else without_N
    centre = math.log(point) if is_log else point
    error = math.sqrt((n - 1) / n * float(((shown_N - shown_N.mean()) ** 2).sum()))
    if error < 1e-12 * max(1.0, abs(centre)):  # rounding, of prompts that agree
        return point, point
    reach = float(stdtrit(n - 1, (1 + level) / 2)) * error
    low, high = centre - reach, centre + reach
    return (_exp(low), _exp(high)) if is_log else (low, high)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf  # of two prompts that disagree wildly
