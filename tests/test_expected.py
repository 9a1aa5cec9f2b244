"""What a search says its draft is worth on prompts that nobody has seen."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from search.job import Finals
from search.objective import Score, TokensPerSecond
from search.point import Point
from search.study import expected
from search.study.expected import hardness, optimism
from search.study.finals import Finalist
from selfspec.drafters.spec import DraftSpec
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
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


def test_finalists_are_worth_less_where_the_control_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expected, "as_raced", lambda objective, spec: lambda point: score(1.0))
    spec = DraftSpec(DraftPlan(SkipSet(2)), Fixed(2))
    best, control = (Finalist(Point(SkipSet.parse(skip, 2)), spec, 3.0) for skip in ("a1", "none"))
    best.score, control.score = score(2.4), score(2.0)
    expected.expect([best, control], [best], TokensPerSecond.__new__(TokensPerSecond))
    pooled = 20 / (10 / 2.0 + 10 / 1.0)
    assert (best.expected, control.expected) == (pytest.approx(1.2 * pooled), pytest.approx(pooled))


def test_a_search_says_what_is_expected_elsewhere() -> None:
    raced = small_job(fresh={"mine": [[4, 5], [6, 7]]}, finals=Finals(top=3, race=2)).run().raced
    factors = [r.row["expected"] / r.row["fresh_value"] for r in raced]
    assert len(raced) > 1 and factors == pytest.approx([factors[0]] * len(raced))


def test_without_fresh_prompts_nothing_is_expected_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    raced = small_job(finals=Finals(top=1, race=1)).run().raced
    assert {r.row["expected"] for r in raced} == {None} and "no calibration prompts are left" in caplog.text


def test_more_prompts_are_scored_than_raced() -> None:
    fresh = {"mine": [[4, 5], [6, 7], [5, 9]]}
    raced = small_job(fresh=fresh, finals=Finals(top=2, race=2, n_raced=1)).run().raced
    assert {r.row["n_prompts"] for r in raced} == {1}
    assert {len(r.finalist.score.values) for r in raced if r.finalist.score} == {3}
