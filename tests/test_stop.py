"""Stop rules keep the contract; the paper's rule computes what its formula says; bad settings are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from experiments.build import options, stop_by_name
from selfspec.errors import InputError
from selfspec.stop import Adaptive, Fixed, StopPolicy, Threshold
from tests.contracts.stop import StopContract, draft_length, live

ADAPTIVE: dict[str, Any] = {
    "max_draft": 4,
    "threshold": 0.5,
    "target_acceptance": 0.5,
    "step": 0.1,
    "smooth_acceptance": 0.5,
    "smooth_threshold": 0.5,
    "carry_over": False,
}


def adaptive(**changes: Any) -> Adaptive:
    return Adaptive(**(ADAPTIVE | changes))


class TestFixed(StopContract):
    def make(self) -> StopPolicy:
        return Fixed(3)

    def test_always_drafts_max_draft(self) -> None:
        assert {n for n, _ in live(Fixed(5), Fixed(5).begin())} == {5}


class TestFixedOne(StopContract):
    def make(self) -> StopPolicy:
        return Fixed(1)


class TestThreshold(StopContract):
    def make(self) -> StopPolicy:
        return Threshold(5, threshold=0.4)

    @pytest.mark.parametrize(("confidence", "length"), [(0.39, 1), (0.4, 5), (0.41, 5)])
    def test_a_token_exactly_at_the_threshold_goes_on(self, confidence: float, length: int) -> None:
        rule = self.make()
        assert draft_length(rule, rule.begin(), [confidence]) == length

    def test_drafts_the_token_that_it_is_not_sure_of_and_no_more(self) -> None:
        rule = self.make()
        assert draft_length(rule, rule.begin(), [0.9, 0.8, 0.3, 0.9]) == 3


class TestAdaptive(StopContract):
    def make(self) -> StopPolicy:
        return adaptive()

    def test_threshold_follows_the_formula_in_each_of_its_three_cases(self) -> None:
        state = adaptive().begin()
        thresholds = []
        # AR: 0.5·0 + 0.5·1/4 = 0.125 < α, so γ̃ = 0.6, although drafted == max_draft;  γ = 0.5·0.5 + 0.5·0.6
        # AR: 0.5·0.125 + 0.5·4/4 = 0.5625 >= α and drafted == max_draft, so γ̃ = γ
        # AR: 0.5·0.5625 + 0.5·2/2 = 0.78125 >= α, so γ̃ = 0.45;                      γ = 0.5·0.55 + 0.5·0.45
        for n_drafted, n_accepted in ((4, 1), (4, 4), (2, 2)):
            state.observe(n_drafted, n_accepted)
            thresholds.append(state.threshold)
        assert thresholds == pytest.approx([0.55, 0.55, 0.5], abs=1e-12)

    def test_acceptance_right_at_the_target_lowers_the_threshold(self) -> None:
        state = adaptive(target_acceptance=0.25).begin()
        state.observe(2, 1)  # AR = 0.5·0 + 0.5·0.5 = α
        assert state.threshold == pytest.approx(0.5 * 0.5 + 0.5 * 0.4, abs=1e-12)

    def test_the_two_smoothings_are_not_mixed_up(self) -> None:
        state = adaptive(smooth_acceptance=0.0, smooth_threshold=0.9).begin()
        state.observe(2, 1)  # AR = 0.5 >= α: with β1 and β2 swapped AR would be 0.05 and the threshold rise
        assert state.threshold == pytest.approx(0.9 * 0.5 + 0.1 * 0.4, abs=1e-12)

    def test_a_round_without_a_draft_teaches_nothing(self) -> None:
        state = adaptive().begin()
        state.observe(4, 1)
        before = repr(state)
        state.observe(0, 0)
        assert repr(state) == before

    def test_the_moved_threshold_is_the_one_that_stops(self) -> None:
        rule = adaptive()
        state = rule.begin()
        assert draft_length(rule, state, [0.52]) == 4
        state.observe(4, 1)  # γ = 0.55
        assert draft_length(rule, state, [0.52]) == 1

    @pytest.mark.parametrize(("carry_over", "start"), [(True, 0.55), (False, 0.5)])
    def test_the_next_prompt_starts_at_the_last_threshold_only_if_it_carries_over(
        self, carry_over: bool, start: float
    ) -> None:
        rule = adaptive(carry_over=carry_over)
        last = rule.begin()
        last.observe(4, 1)
        assert rule.begin(last).threshold == pytest.approx(start, abs=1e-12)

    def test_acceptance_does_not_carry_over(self) -> None:
        rule = adaptive(carry_over=True)
        last = rule.begin()
        last.observe(4, 4)  # AR = 0.5 >= α and drafted == max_draft: γ stays 0.5
        state = rule.begin(last)
        state.observe(2, 1)  # from AR = 0: 0.25 < α, up; had 0.5 been carried over: 0.5 >= α, down
        assert state.threshold == pytest.approx(0.55, abs=1e-12)


class TestAdaptiveCarriesOver(StopContract):
    def make(self) -> StopPolicy:
        return adaptive(carry_over=True)


class TestConfigured(StopContract):
    @pytest.fixture(params=options("stop"))
    def policy(self, request: pytest.FixtureRequest) -> StopPolicy:
        return stop_by_name(request.param)


@pytest.mark.parametrize("max_draft", [0, -1])
def test_a_round_drafts_at_least_one_token(max_draft: int) -> None:
    for make in (
        lambda: Fixed(max_draft),
        lambda: Threshold(max_draft, threshold=0.5),
        lambda: adaptive(max_draft=max_draft),
    ):
        with pytest.raises(InputError, match=rf"stop\.max_draft={max_draft}"):
            make()


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["threshold", "target_acceptance", "step", "smooth_acceptance", "smooth_threshold"])
def test_what_is_no_probability_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"stop\.{name}={value}"):
        adaptive(**{name: value})


def test_a_threshold_that_is_no_probability_is_refused() -> None:
    with pytest.raises(InputError, match=r"stop\.threshold=2"):
        Threshold(4, threshold=2)


def test_a_name_that_is_no_rule_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'adaptive'"):
        stop_by_name("adaptiv")
