"""Intervals hold the truth as often as they say, and a few or equal prompts give what a reader expects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from selfspec.measure.intervals import FEW, N_RESAMPLES
from selfspec.measure.metrics import (
    Timed,
    mean_interval,
    pooled_ratio,
    speedup,
    speedup_interval,
    speedup_t_interval,
)


@pytest.fixture(autouse=True)
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(n: int, rng: np.random.Generator, sigma: float = 0.2) -> tuple[list[Timed], list[Timed]]:
    """`n` prompts of different lengths, whose speedups are log-normal around 1.2."""
    tokens = rng.integers(30, 120, n)
    ratios = 1.2 * np.exp(sigma * rng.standard_normal(n))
    plain = [Timed(0.03 * int(t), int(t)) for t in tokens]
    return plain, [Timed(t.seconds / r, t.tokens) for t, r in zip(plain, ratios, strict=True)]


def coverage(n: int, n_draws: int) -> float:
    rng = np.random.default_rng(n)
    truth = 1.2 * math.exp(-(0.2**2) / 2)  # seconds are pooled: the mean of 1 / ratio counts
    ends = [speedup_interval(*drawn(n, rng)) for _ in range(n_draws)]
    return sum(low <= truth <= high for low, high in ends) / n_draws


@pytest.mark.parametrize("n, n_draws", [(6, 1000), (12, 200), pytest.param(30, 1000, marks=pytest.mark.slow)])
def test_an_interval_holds_the_truth_in_95_of_100_cases(n: int, n_draws: int) -> None:
    assert abs(coverage(n, n_draws) - 0.95) <= 0.03


@pytest.mark.parametrize("n", [2, 5, FEW - 1, FEW, 25])
def test_the_pooled_value_lies_inside(n: int) -> None:
    times = drawn(n, np.random.default_rng(n))
    low, high = speedup_interval(*times)
    assert 0 < low < speedup(*times) < high


def test_prompts_whose_speedups_agree_give_a_point() -> None:
    for n in (2, FEW - 1, FEW, 25):
        plain, method = drawn(n, np.random.default_rng(0), sigma=0.0)
        low, high = speedup_interval(plain, method)
        assert low == high == pytest.approx(1.2)
        assert speedup_interval(plain, plain) == (1, 1)
        assert mean_interval([1.0] * n, within=(0, 1)) == (1, 1)
        assert pooled_ratio([0] * n, [3] * n) == (0, (0, 0))


@pytest.mark.parametrize("n", [0, 1])
def test_of_one_prompt_there_is_no_interval(n: int) -> None:
    times = [Timed(1.0, 10)] * n
    assert all(map(math.isnan, speedup_interval(times, times)))
    assert all(map(math.isnan, mean_interval([0.5] * n, within=(0, 1))))
    assert all(map(math.isnan, pooled_ratio([1.0] * n, [2.0] * n)[1]))


@pytest.mark.parametrize("n", [4, 15])
def test_a_time_that_is_not_known_or_nothing_to_time_gives_no_interval(n: int) -> None:
    known = [Timed(1.0, 10)] * n
    for unknown in ([Timed(math.nan, 10), *known[1:]], [Timed(0.0, 0)] * n):
        assert all(map(math.isnan, speedup_interval(known, unknown)))


def test_a_fraction_stays_a_fraction() -> None:
    assert mean_interval([1, 1, 1, 0], within=(0, 1))[1] == 1
    value, (low, high) = pooled_ratio([9, 9, 9, 2], [9, 9, 9, 9], most=1)
    assert low < value < high == 1
    value, (low, high) = pooled_ratio([0, 0, 0, 2], [9, 9, 9, 9], most=1)  # without the last one the ratio is 0
    assert low == 0 < value < high


def test_a_prompt_counts_by_what_it_adds_to_the_sums() -> None:
    # the odd prompt is a thousandth of the others' length: it moves neither the pooled value nor its interval
    plain, method = [Timed(1.0, 1000)] * 20, [Timed(0.5, 1000)] * 20
    low, high = speedup_interval([*plain, Timed(0.001, 1)], [*method, Timed(0.005, 1)])
    assert 1.99 < low <= high <= 2.0


def test_a_smaller_error_takes_a_wider_interval() -> None:
    times = drawn(12, np.random.default_rng(3))
    wide, narrow = (speedup_t_interval(*times, level=level) for level in (0.999, 0.9))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_an_interval_is_the_same_each_time() -> None:
    times = drawn(20, np.random.default_rng(4))
    assert N_RESAMPLES >= 2000 and speedup_interval(*times) == speedup_interval(*times)
