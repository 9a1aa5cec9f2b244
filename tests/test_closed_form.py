"""The closed form of the expected speedup: equal to its definition, to a simulation, and invertible."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfspec.measure.closed_form import best_length, chance_of_acceptance, expected_speedup, expected_tokens

CHANCES = (0.0, 1e-300, 0.2, 0.8, 1 - 1e-9, 1.0)
N_ROUNDS = 40_000


def simulated_tokens(chance: float, n_drafted: int, *, seed: int) -> np.ndarray:
    """Tokens of each round: those before the first rejected one, and the correction or bonus."""
    is_rejected = np.random.default_rng(seed).random((N_ROUNDS, n_drafted)) >= chance
    n_accepted = np.where(is_rejected.any(axis=1), is_rejected.argmax(axis=1), n_drafted)
    return n_accepted + 1


@pytest.mark.parametrize("n_drafted", [1, 3, 12])
@pytest.mark.parametrize("chance", CHANCES)
def test_tokens_of_a_round_are_the_sum_of_the_powers(chance: float, n_drafted: int) -> None:
    assert expected_tokens(chance, n_drafted) == pytest.approx(sum(chance**k for k in range(n_drafted + 1)), rel=1e-12)


@pytest.mark.parametrize(("chance", "n_drafted"), [(0.0, 4), (0.3, 2), (0.7, 5), (0.95, 12), (1.0, 4)])
def test_tokens_and_speedup_are_those_of_a_simulation(chance: float, n_drafted: int) -> None:
    tokens = simulated_tokens(chance, n_drafted, seed=n_drafted)
    error = 4 * tokens.std() / math.sqrt(N_ROUNDS)  # of the mean: passed by chance in one of 16,000 simulations
    assert abs(expected_tokens(chance, n_drafted) - tokens.mean()) <= error + 1e-12
    round_cost = 0.3 * n_drafted + 1.1
    speedup = expected_speedup(chance, n_drafted=n_drafted, draft_cost=0.3, verify_cost=1.1)
    assert abs(speedup - tokens.sum() / (N_ROUNDS * round_cost)) <= error / round_cost + 1e-12


@pytest.mark.parametrize("n_drafted", [1, 4, 12])
@pytest.mark.parametrize("chance", CHANCES)
def test_the_chance_of_acceptance_explains_the_accepted_tokens(chance: float, n_drafted: int) -> None:
    acceptance = (expected_tokens(chance, n_drafted) - 1) / n_drafted
    assert chance_of_acceptance(acceptance, n_drafted) == pytest.approx(chance, abs=1e-8)


def test_the_best_length_is_short_where_drafting_is_dear() -> None:
    assert [best_length(0.8, draft_cost=c, longest=8) for c in (0.9, 0.3, 0.0)] == [1, 3, 8]


def test_a_mean_length_between_whole_ones_gives_a_speedup_between_theirs() -> None:
    low, middle, high = (expected_tokens(0.8, n) for n in (3, 3.5, 4))
    assert low < middle < high


@pytest.mark.parametrize(("chance", "n_drafted"), [(-0.1, 3), (1.1, 3), (math.nan, 3), (0.5, -1)])
def test_what_is_no_probability_or_no_length_is_refused(chance: float, n_drafted: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        expected_tokens(chance, n_drafted)
