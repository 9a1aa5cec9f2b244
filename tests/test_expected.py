"""What a search says its draft is worth on prompts that nobody has seen."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from search.job import Finals
from search.objective import Score
from search.study.expected import hardness, optimism
from tests.scripted import score
from tests.test_job import small_job


def scored(*values: float) -> Score:
    return replace(score(fmean(values)), values=values)


def test_what_is_best_on_every_prompt_was_chosen_by_none() -> None:
    assert optimism([scored(1.5, 1.6, 1.7), scored(1.2, 1.1, 1.3)]) == 1.0


def test_what_one_prompt_has_chosen_is_worth_less_on_the_others() -> None:
    assert optimism([scored(1.0, 1.0, 1.9), scored(1.2, 1.2, 1.2)]) == pytest.approx(1.3 / ((1.0 + 1.0 + 1.2) / 3))


@pytest.mark.parametrize("scores", [[], [score(1.0)], [scored(1.0), scored(2.0)], [scored(1.0, 2.0), scored(1.0)]])
def test_without_two_prompts_of_each_there_is_nothing_to_correct(scores: list[Score]) -> None:
    assert optimism(scores) == 1.0


def test_prompts_that_are_easier_than_others_promise_less() -> None:
    fresh, seen = replace(score(2.0), n_tokens=10), replace(score(1.0), n_tokens=30)
    assert hardness(fresh, seen) == pytest.approx(40 / (10 / 2.0 + 30 / 1.0) / 2.0)


def test_the_choice_among_equals_is_corrected_on_average() -> None:
    """Ten drafts of value 1.5 and noise: the best has more on its prompts, and 1.5 on others."""
    rng = np.random.default_rng(0)
    best, corrected = [], []
    for _ in range(300):
        scores = [scored(*rng.normal(1.5, 0.2, 8)) for _ in range(10)]
        best.append(max(s.value for s in scores))
        corrected.append(best[-1] / optimism(scores))
    assert fmean(best) > 1.55
    assert fmean(corrected) == pytest.approx(1.5, abs=0.02)


def test_finalists_say_what_is_expected_elsewhere() -> None:
    raced = small_job(fresh={"mine": [[4, 5], [6, 7]]}, finals=Finals(top=3, race=2)).run().raced
    factors = [r.row["expected"] / r.row["fresh_value"] for r in raced]
    assert len(raced) > 1 and factors == pytest.approx([factors[0]] * len(raced))
    assert factors[0] != 1.0, "the prompts of the search are others"


def test_without_fresh_prompts_nothing_is_expected_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    raced = small_job(finals=Finals(top=1, race=1)).run().raced
    assert {r.row["expected"] for r in raced} == {None} and "no calibration prompts are left" in caplog.text
