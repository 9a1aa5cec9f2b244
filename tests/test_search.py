"""Searching: the loop loses no trial and makes none up, not even when killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.constraints import Constraints
from search.objective import Score
from search.space import Space
from search.starts import singles
from search.study.loop import top
from search.study.study import SearchStudy
from selfspec.errors import InputError
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet
from tests.scripted import JOURNAL, N_LAYERS, ROWS, WEIGHTS, Listed, Scripted, planted, rows_of, run, score, tpe


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


class TestLoop:
    def test_each_trial_has_a_row_with_all_that_readers_need(self, tmp_path: Path) -> None:
        run(tmp_path, 6, Scripted())
        rows = read_rows(tmp_path / ROWS)
        assert [row["number"] for row in rows] == list(range(6))
        for row in rows:
            skip = SkipSet.parse(row["skip"], N_LAYERS)
            assert (row["attn"], row["mlp"]) == (sorted(skip.attn), sorted(skip.mlp))
            assert row["value"] == planted(skip)
            expected = {name: v for name, v in score(planted(skip)).to_dict().items() if name != "pruned"}
            assert row | expected | {"values": []} == row
            assert row["acceptance"] == row["accepted"] / row["drafted"]
            assert (row["schema"], row["state"], row["seed"]) == (1, "complete", 0)

    def test_elapsed_seconds_never_fall_even_across_a_resume(self, tmp_path: Path) -> None:
        run(tmp_path, 4, Scripted())
        run(tmp_path, 8, Scripted())
        elapsed = [row["elapsed_s"] for row in read_rows(tmp_path / ROWS)]
        assert elapsed == sorted(set(elapsed)), elapsed

    def test_starts_are_run_first_and_in_order(self, tmp_path: Path) -> None:
        starts = [SkipSet.parse(text, N_LAYERS) for text in ("m3", "none", "a1-2")]
        run(tmp_path, 5, Scripted(), starts=starts)
        rows = read_rows(tmp_path / ROWS)
        assert [row["skip"] for row in rows[:3]] == ["m3", "none", "a1-2"]
        assert [row["origin"] for row in rows] == ["start"] * 3 + ["searcher"] * 2

    def test_a_skip_set_that_was_run_is_answered_from_memory(self, tmp_path: Path) -> None:
        objective = Scripted()
        same = [SkipSet.parse(text, N_LAYERS) for text in ("a1", "m2", "a1")]
        run(tmp_path, 3, objective, starts=same)
        first, _, again = rows_of(tmp_path)
        assert objective.calls == ["a1", "m2"]
        assert {**again, "number": 0, "reason": None} == first
        assert again["reason"] == "known from trial 0"

    def test_memory_outlives_a_resume(self, tmp_path: Path) -> None:
        same = [SkipSet.parse("a1", N_LAYERS)] * 2
        run(tmp_path, 1, Scripted(), starts=same)
        objective = Scripted()
        run(tmp_path, 2, objective, starts=same)
        assert objective.calls == []

    def test_memory_names_the_first_of_several_even_after_a_resume(self, tmp_path: Path) -> None:
        same = [SkipSet.parse("a1", N_LAYERS)] * 3
        run(tmp_path, 2, Scripted(), starts=same)
        run(tmp_path, 3, Scripted(), starts=same)
        assert [row["reason"] for row in read_rows(tmp_path / ROWS)] == [None, *["known from trial 0"] * 2]

    def test_a_failure_is_a_row_without_numbers_and_is_tried_again(self, tmp_path: Path) -> None:
        objective = Scripted(fails=lambda skip: 1 in skip.attn)
        starts = [SkipSet.parse(text, N_LAYERS) for text in ("a1", "none", "a1")]
        run(tmp_path, 3, objective, starts=starts)
        failed, complete, again = read_rows(tmp_path / ROWS)
        assert (failed["state"], failed["reason"]) == ("failed", "cannot score a1")
        numbers = ("value", "acceptance", "drafted", "accepted", "n_rounds", "n_tokens", "seconds")
        assert [failed[name] for name in numbers] == [None] * len(numbers)
        assert (complete["state"], again["state"]) == ("complete", "failed")
        assert objective.calls == ["a1", "none", "a1"]  # running out of memory may not happen twice

    def test_a_bug_in_an_objective_ends_the_search(self, tmp_path: Path) -> None:
        def broken(skip: SkipSet) -> float:
            raise KeyError("a bug")

        with pytest.raises(KeyError):
            run(tmp_path, 3, Scripted(value=broken))

    def test_a_score_that_is_no_number_is_refused(self) -> None:
        with pytest.raises(ValueError, match="finite"):
            Score(float("nan"), 1, 1, 1, 1, 1.0)

    def test_finds_the_best_that_was_run(self, tmp_path: Path) -> None:
        found = run(tmp_path, 40, Scripted())
        rows = read_rows(tmp_path / ROWS)
        assert found.value == max(row["value"] for row in rows) > 0
        assert rows[found.number]["skip"] == str(found.skip)
        assert (found.nothing_value, found.n_trials) == (0.0, 40)

    def test_the_listener_hears_each_row_as_it_is_written(self, tmp_path: Path) -> None:
        heard: list[tuple[dict[str, Any], int]] = []
        run(tmp_path, 4, Scripted(), listener=lambda row: heard.append((row, len(read_rows(tmp_path / ROWS)))))
        rows = read_rows(tmp_path / ROWS)
        assert [({"schema": 1, **row}, n) for row, n in heard] == [(row, n + 1) for n, row in enumerate(rows)]

    def test_the_budget_counts_the_trials_before_the_resume(self, tmp_path: Path) -> None:
        run(tmp_path, 5, Scripted())
        objective = Scripted()
        found = run(tmp_path, 7, objective)
        assert found.n_trials == 7
        assert len(read_rows(tmp_path / ROWS)) == 7 and len(objective.calls) <= 2

    def test_a_spent_budget_runs_nothing_more(self, tmp_path: Path) -> None:
        first = run(tmp_path, 5, Scripted())
        objective = Scripted()
        assert run(tmp_path, 5, objective) == first
        assert objective.calls == []

    @pytest.mark.parametrize("n_trials", [0, -1])
    def test_a_budget_of_no_trials_is_refused(self, n_trials: int, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="at least 1 trial"):
            run(tmp_path, n_trials, Scripted())

    def test_a_search_without_a_single_score_says_why(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none of 4 trials .*cannot score none"):
            run(tmp_path, 4, Scripted(fails=lambda skip: True))


class TestEnd:
    def test_tells_which_budget_was_spent(self, tmp_path: Path) -> None:
        assert run(tmp_path, 5, Scripted()).ended == "trials"

    def test_seconds_of_all_sittings_count_and_the_running_trial_ends(self, tmp_path: Path) -> None:
        first = run(tmp_path, 100, Scripted(), max_s=10)
        assert first.ended == "seconds" and first.n_trials < 100
        times = [row["elapsed_s"] for row in read_rows(tmp_path / ROWS)]
        assert times[-2] < 10 <= times[-1] + 1  # the clock is a second later each time it is read
        objective = Scripted()
        assert run(tmp_path, 100, objective, max_s=10) == first
        assert objective.calls == []
        assert run(tmp_path, 100, Scripted(), max_s=20).n_trials > first.n_trials

    def test_even_a_moment_is_enough_for_one_trial(self, tmp_path: Path) -> None:
        assert run(tmp_path, 100, Scripted(), max_s=0.001).n_trials == 1

    def test_patience_is_with_the_searcher_alone_and_outlives_a_resume(self, tmp_path: Path) -> None:
        best_first = [SkipSet.parse("a0 a1 a2 a3", N_LAYERS), *singles(N_LAYERS)]
        run(tmp_path, len(best_first) + 1, Scripted(), starts=best_first, patience=3)
        found = run(tmp_path, 100, Scripted(), starts=best_first, patience=3)
        assert (found.ended, found.n_trials) == ("stagnation", len(best_first) + 3)

    def test_a_new_best_renews_the_patience(self, tmp_path: Path) -> None:
        found = run(tmp_path, 200, Scripted(), patience=20)
        rows = read_rows(tmp_path / ROWS)
        assert found.ended == "stagnation"
        assert found.n_trials == found.number + 1 + 20 and found.value == max(row["value"] for row in rows)

    def test_a_searcher_with_nothing_left_ends_it(self, tmp_path: Path) -> None:
        found = run(
            tmp_path, 100, Scripted(), sampler=partial(Listed, sets=("a0", "a0 m0", "m0")), starts=[SkipSet(N_LAYERS)]
        )
        assert (found.ended, found.n_trials, str(found.skip)) == ("exhausted", 4, "a0")
        objective = Scripted()
        assert (
            run(
                tmp_path,
                100,
                objective,
                sampler=partial(Listed, sets=("a0", "a0 m0", "m0")),
                starts=[SkipSet(N_LAYERS)],
            )
            == found
        )
        assert objective.calls == []

    @pytest.mark.parametrize(
        ("budget", "message"), [({"max_s": 0}, "seconds above 0"), ({"patience": 0}, "1 trial or")]
    )
    def test_a_budget_of_nothing_is_refused(self, budget: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=message):
            run(tmp_path, 5, Scripted(), **budget)


class TestInterrupted:
    @pytest.fixture(autouse=True)
    def heard(self) -> Iterator[None]:
        """A shell lets what it starts in the background ignore Ctrl-C, and Python then never hears of it."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @staticmethod
    def after(n_calls: int) -> Scripted:
        """Ctrl-C while the next trial runs."""
        objective = Scripted()

        def value(skip: SkipSet) -> float:
            if len(objective.calls) > n_calls:
                signal.raise_signal(signal.SIGINT)
            return planted(skip)

        objective.value = value
        return objective

    def test_ends_with_the_best_so_far_and_drops_the_running_trial(self, tmp_path: Path) -> None:
        found = run(tmp_path, 20, self.after(5))
        rows = read_rows(tmp_path / ROWS)
        assert (found.ended, found.n_trials, len(rows)) == ("interrupted", 5, 5)
        assert found.value == max(row["value"] for row in rows)

    def test_goes_on_as_if_it_had_not_been(self, tmp_path: Path) -> None:
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        for folder in (whole, stopped):
            folder.mkdir()
        run(whole, 12, Scripted())
        run(stopped, 12, self.after(5))
        run(stopped, 12, Scripted())
        assert rows_of(stopped) == rows_of(whole)

    def test_before_the_first_score_there_is_nothing_to_return(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, 5, self.after(0))

    def test_a_trial_that_is_being_written_is_written_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tell = SearchStudy.tell

        def interrupted(study: SearchStudy, *args: Any, **facts: Any) -> Any:
            if len(study.trials) == 4:
                signal.raise_signal(signal.SIGINT)
            return tell(study, *args, **facts)

        monkeypatch.setattr(SearchStudy, "tell", interrupted)
        found = run(tmp_path, 20, Scripted())
        assert (found.ended, found.n_trials) == ("interrupted", 5)
        assert len(read_rows(tmp_path / ROWS)) == 5
        with pytest.raises(KeyboardInterrupt):  # Ctrl-C means again what it meant
            signal.raise_signal(signal.SIGINT)


class TestConstrained:
    def test_only_what_is_allowed_is_run_and_told(self, tmp_path: Path) -> None:
        space = Space(N_LAYERS, Constraints(n_skipped=4, keep_first=1))
        found = run(tmp_path, 20, Scripted(), space=space)
        rows = read_rows(tmp_path / ROWS)
        assert all(space.constraints.allows(SkipSet.parse(row["skip"], N_LAYERS)) for row in rows), rows
        assert space.constraints.allows(found.skip) and found.nothing_value is None


class TestTop:
    def test_the_best_distinct_sets_that_were_scored_to_their_end(self, tmp_path: Path) -> None:
        starts = [SkipSet.parse(text, N_LAYERS) for text in ("a1", "a0", "a1", "m1", "a2")]
        run(tmp_path, 5, Scripted(fails=lambda skip: 2 in skip.attn), starts=starts)
        study = SearchStudy(Space(N_LAYERS), tpe, seed=0, identity={"objective": "planted"}, journal=tmp_path / JOURNAL)
        assert [(str(skip), value) for skip, value in top(study, 10)] == [("a0", 0.9), ("a1", 0.5), ("m1", -0.4)]
        assert top(study, 2) == top(study, 10)[:2]


def test_the_planted_function_has_one_optimum() -> None:
    best = SkipSet.from_bits([weight > 0 for weight in WEIGHTS])
    assert planted(best) == sum(weight for weight in WEIGHTS if weight > 0)
