"""Searching: the loop loses no trial and makes none up, not even when killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial

from search.bits import Exhausted
from search.constraints import Constraints
from search.fidelity import Race
from search.loop import top
from search.objective import GoOn, Score
from search.space import Space
from search.starts import singles
from search.study import STUDY_NAME, SearchStudy
from selfspec.errors import InputError
from selfspec.records import read_rows
from selfspec.skip import SkipSet
from tests.scripted import JOURNAL, N_LAYERS, ROWS, WEIGHTS, Scripted, planted, run, score, tpe

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "elapsed_s")


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows without what time makes of them."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(folder / ROWS)]


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A failure instead of a wait without end."""

    def fail(*args: object) -> None:
        pytest.fail(f"still not done after {seconds} s")

    former = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


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
            expected = {name: v for name, v in score(planted(skip)).as_dict().items() if name != "pruned"}
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

    def test_a_failure_is_a_row_with_its_reason_and_no_numbers_and_is_tried_again(self, tmp_path: Path) -> None:
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


class Listed(BaseSampler):
    """Proposes a list of sets after the first trial, and has no more."""

    def __init__(self, seed: int, *, sets: Sequence[str]) -> None:
        self._sets = sets

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict.fromkeys(Space(N_LAYERS).names, CategoricalDistribution([False, True]))

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, bool]:
        n_told = sum(t.state.is_finished() for t in study.trials)
        if n_told > len(self._sets):
            raise Exhausted
        return dict(zip(search_space, SkipSet.parse(self._sets[n_told - 1], N_LAYERS).bits(), strict=True))

    def sample_independent(self, *args: Any) -> Any:
        raise NotImplementedError


class TestEnd:
    def test_tells_which_budget_was_spent(self, tmp_path: Path) -> None:
        assert run(tmp_path, 5, Scripted()).ended == "trials"

    def test_the_seconds_of_all_sittings_count_and_the_running_trial_is_finished(self, tmp_path: Path) -> None:
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


N_PROMPTS = 16


def noisy(skip: SkipSet) -> list[float]:
    """Prompts that differ from each other more than skip sets do, and that are noisy for each of these."""
    rng, shared = np.random.default_rng([int(bit) for bit in skip.bits()]), np.random.default_rng(0)
    noise = 0.3 * rng.standard_normal(N_PROMPTS) + 3 * shared.standard_normal(N_PROMPTS)
    return [planted(skip) + float(x) for x in noise]


def pruned_at(n_prompts: int) -> Any:
    """A race that stops everything there."""

    class Cruel(Race):
        def against(self, best: Sequence[float]) -> GoOn:
            return lambda values: len(values) < n_prompts

    return Cruel()


class TestRace:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_saves_prompts_and_stops_no_trial_that_would_have_been_the_best(self, seed: int, tmp_path: Path) -> None:
        found, objectives = [], []
        for race in (None, Race()):
            folder = tmp_path / str(race)
            folder.mkdir()
            objectives.append(Scripted(prompts=noisy))
            found.append(run(folder, 30, objectives[-1], seed=seed, sampler=RandomSampler, race=race))
        full, raced = (read_rows(tmp_path / str(race) / ROWS) for race in (None, Race()))
        assert [row["skip"] for row in raced] == [row["skip"] for row in full]  # what is asked knows no scores
        assert replace(found[0], elapsed_s=0) == replace(found[1], elapsed_s=0)
        best = float("-inf")
        for whole, row in zip(full, raced, strict=True):
            assert row["state"] == "complete" or whole["value"] <= best, row["skip"]
            best = max(best, whole["value"])
        assert objectives[1].n_prompts < 0.7 * objectives[0].n_prompts

    def test_a_stopped_trial_is_never_the_best_and_its_row_says_why(self, tmp_path: Path) -> None:
        def value(skip: SkipSet) -> list[float]:
            return [float(len(skip))] * N_PROMPTS

        starts = [SkipSet(N_LAYERS), SkipSet.parse("a1 m1", N_LAYERS)]
        found = run(tmp_path, 12, Scripted(prompts=value), starts=starts, race=pruned_at(7))
        rows = read_rows(tmp_path / ROWS)
        assert (str(found.skip), found.number) == ("a1 m1", 1)  # though larger values were seen
        assert {row["state"] for row in rows[:2]} == {"complete"}  # starts are never stopped
        new = [row for row in rows[2:] if not str(row["reason"]).startswith("known")]
        assert new and {(row["state"], row["reason"], len(row["values"])) for row in new} == {
            ("pruned", "behind trial 1 after 7 prompts", 7)
        }

    def test_a_stopped_set_is_answered_with_what_is_known_unless_it_is_a_start(self, tmp_path: Path) -> None:
        one = [SkipSet(N_LAYERS)]
        again = partial(Listed, sets=("a1", "a1"))
        objective = Scripted(prompts=noisy)
        run(tmp_path, 3, objective, starts=one, sampler=again, race=pruned_at(7))
        rows = read_rows(tmp_path / ROWS)
        assert [row["state"] for row in rows] == ["complete", "pruned", "pruned"]
        assert rows[2]["reason"] == "known from trial 1" and rows[2]["value"] == rows[1]["value"]
        assert objective.calls == ["none", "a1"]
        run(tmp_path, 4, objective, starts=[*one * 3, SkipSet.parse("a1", N_LAYERS)], race=pruned_at(7))
        assert read_rows(tmp_path / ROWS)[3]["state"] == "complete"

    def test_an_interrupted_race_goes_on_as_an_uninterrupted_one(self, tmp_path: Path) -> None:
        for name, sittings in (("whole", [20]), ("parts", [4, 11, 20])):
            (tmp_path / name).mkdir()
            for n_trials in sittings:
                run(tmp_path / name, n_trials, Scripted(prompts=noisy), race=Race())
        assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
        assert "pruned" in {row["state"] for row in rows_of(tmp_path / "whole")}

    def test_asks_for_enough_prompts_and_stops_only_what_is_worse(self) -> None:
        best = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        go_on = Race(min_prompts=6).against(best)
        worse, better = [x - 0.5 for x in best], [x + 0.5 for x in best]
        assert [go_on(worse[:n]) for n in range(1, 8)] == [True] * 5 + [False] * 2
        assert all(go_on(values[:n]) for values in (best, better) for n in range(1, 8))
        assert go_on([*worse, 0.0])  # prompts that the best has not seen tell nothing
        assert Race().against([])(worse)

    @pytest.mark.parametrize(("p", "min_prompts"), [(0.05, 4), (0.01, 6), (0.0, 6), (0.6, 6)])
    def test_a_race_that_can_stop_nothing_or_everything_is_refused(self, p: float, min_prompts: int) -> None:
        with pytest.raises(InputError, match="p="):
            Race(p, min_prompts)


class TestJournal:
    @pytest.mark.parametrize(
        ("identity", "n_layers"), [({"model": "b"}, 4), ({"model": "a"}, 5), ({"model": "a", "seed": 1}, 4)]
    )
    def test_the_journal_of_another_search_is_refused(
        self, identity: dict[str, Any], n_layers: int, tmp_path: Path
    ) -> None:
        mine = SearchStudy(Space(4), tpe, seed=0, identity={"model": "a"}, journal=tmp_path / JOURNAL)
        mine.tell(mine.ask(), score(1.0))
        with pytest.raises(InputError, match="belongs to a search with"):
            SearchStudy(Space(n_layers), tpe, seed=0, identity=identity, journal=tmp_path / JOURNAL)

    def test_optuna_opens_it_and_sees_one_boolean_per_sublayer(self, tmp_path: Path) -> None:
        run(tmp_path, 6, Scripted(fails=lambda skip: 1 in skip.attn))
        storage = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        rows = read_rows(tmp_path / ROWS)
        assert [t.value for t in study.trials] == [row["value"] for row in rows]
        for trial, row in zip(study.trials, rows, strict=True):
            assert set(trial.distributions.values()) == {CategoricalDistribution([False, True])}
            assert [trial.params[name] for name in Space(N_LAYERS).names] == list(
                SkipSet.parse(row["skip"], N_LAYERS).bits()
            )

    def test_names_sort_in_the_order_of_the_bits(self) -> None:
        assert Space(2).names == ["attn_00", "mlp_00", "attn_01", "mlp_01"]

    def test_a_model_without_layers_has_nothing_to_search(self) -> None:
        with pytest.raises(InputError, match="nothing to search"):
            Space(0)


class TestKilled:
    """What a kill can leave behind at each moment of a trial, made by hand; and one real kill."""

    N = 9

    @pytest.fixture
    def whole(self, tmp_path: Path) -> Path:
        folder = tmp_path / "whole"
        folder.mkdir()
        run(folder, self.N, Scripted())
        return folder

    @pytest.fixture
    def stopped(self, tmp_path: Path) -> Path:
        folder = tmp_path / "stopped"
        folder.mkdir()
        run(folder, 5, Scripted())
        return folder

    def assert_resumes(self, stopped: Path, whole: Path) -> None:
        run(stopped, self.N, Scripted())
        assert rows_of(stopped) == rows_of(whole)
        storage = JournalStorage(JournalFileBackend(str(stopped / JOURNAL)))
        trials = optuna.load_study(study_name=STUDY_NAME, storage=storage).trials
        assert [t.user_attrs["skip"] for t in trials] == [row["skip"] for row in rows_of(whole)]

    def test_between_two_trials(self, stopped: Path, whole: Path) -> None:
        self.assert_resumes(stopped, whole)

    def test_before_the_row_of_a_told_trial(self, stopped: Path, whole: Path) -> None:
        rows = stopped / ROWS
        rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:-1]))
        self.assert_resumes(stopped, whole)

    @pytest.mark.parametrize("n_bytes", [1, 40, -1])
    def test_in_the_middle_of_a_row(self, n_bytes: int, stopped: Path, whole: Path) -> None:
        rows = stopped / ROWS
        *before, last = rows.read_bytes().splitlines(keepends=True)
        rows.write_bytes(b"".join(before) + last[:n_bytes])
        self.assert_resumes(stopped, whole)

    @pytest.mark.parametrize("n_bytes", [1, 40, -1])
    def test_in_the_middle_of_a_line_of_the_journal(self, n_bytes: int, stopped: Path, whole: Path) -> None:
        *before, last = (stopped / JOURNAL).read_bytes().splitlines(keepends=True)
        (stopped / JOURNAL).write_bytes(b"".join(before) + last[:n_bytes])
        rows = stopped / ROWS
        rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:-1]))  # a trial is told before its row
        self.assert_resumes(stopped, whole)

    def test_and_its_rows_were_taken_from_another_search(self, stopped: Path, whole: Path) -> None:
        rows = stopped / ROWS
        rows.write_bytes(b"".join(reversed(rows.read_bytes().splitlines(keepends=True))))
        self.assert_resumes(stopped, whole)

    def test_before_the_first_trial(self, tmp_path: Path, whole: Path) -> None:
        folder = tmp_path / "stopped"
        folder.mkdir()
        for n_lines in range(len(journal_of(whole)) - self.N + 1):  # of the study's own: created, then its identity
            lines = (whole / JOURNAL).read_bytes().splitlines(keepends=True)
            (folder / JOURNAL).write_bytes(b"".join(lines[:n_lines]))
            (folder / ROWS).unlink(missing_ok=True)
            self.assert_resumes(folder, whole)

    @pytest.mark.slow
    def test_while_the_journal_was_locked(
        self, stopped: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        relative = stopped.relative_to(tmp_path)  # as run folders are by default

        def leave_the_next_lock(skip: SkipSet) -> float:
            monkeypatch.setattr(JournalFileSymlinkLock, "release", lambda self: None)
            return planted(skip)

        run(relative, 6, Scripted(value=leave_the_next_lock))
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert (stopped / f"{JOURNAL}.lock").is_symlink()
        with time_limit(20):
            self.assert_resumes(relative, whole)

    @pytest.mark.slow
    def test_by_the_system_at_any_moment(self, tmp_path: Path) -> None:
        n_trials, folder, whole = 24, tmp_path / "killed", tmp_path / "whole"
        folder.mkdir()
        whole.mkdir()
        command = [sys.executable, "-m", "tests.scripted", str(folder), str(n_trials), "0.05"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as search:
            deadline = time.monotonic() + 60
            while not (folder / ROWS).is_file() or len((folder / ROWS).read_bytes().splitlines()) < 6:
                assert search.poll() is None and time.monotonic() < deadline, "the search ended before it was killed"
                time.sleep(0.01)
            search.send_signal(signal.SIGKILL)
            assert search.wait() == -signal.SIGKILL
        n_before = len(read_rows(folder / ROWS))
        assert 5 <= n_before < n_trials
        run(folder, n_trials, Scripted())
        run(whole, n_trials, Scripted())
        assert rows_of(folder) == rows_of(whole)


def test_the_planted_function_has_one_optimum() -> None:
    best = SkipSet.from_bits([weight > 0 for weight in WEIGHTS])
    assert planted(best) == sum(weight for weight in WEIGHTS if weight > 0)
