"""Searching: every searcher keeps the contract, and the loop loses no trial and makes none up, not even when killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from experiments.build import instance, options
from search.loop import default_starts
from search.objective import Score
from search.space import Space
from search.study import STUDY_NAME, SearchStudy
from selfspec.errors import InputError
from selfspec.records import read_rows
from selfspec.skip import SkipSet
from tests.contracts.searcher import SearcherContract
from tests.scripted import JOURNAL, N_LAYERS, ROWS, WEIGHTS, Scripted, planted, run, score, tpe

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "elapsed_s")


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


class Configured(SearcherContract):
    """With the settings of conf/searcher."""

    name: ClassVar[str]

    def make_sampler(self, seed: int) -> BaseSampler:
        cfg = OmegaConf.load(ROOT / "conf" / "searcher" / f"{self.name}.yaml")
        assert self.encoding == cfg.encoding
        sampler: BaseSampler = instance(cfg.sampler)(seed)
        return sampler


class TestRandom(Configured):
    """100 of 256 skip sets are seen, so one of the best 13 (5 %) is found in 994 of 1000 searches."""

    name = "random"
    n_best = 13


class TestTpe(Configured):
    name = "tpe"  # of 12 seeds the slowest needed 52 trials


class TestCmaes(Configured):
    name = "cmaes"  # of 12 seeds the slowest needed 122 trials
    encoding = "floats"
    n_trials = 200
    seeds = (0, 1)


class TestGp(Configured):
    name = "gp"  # of 4 seeds the slowest needed 12 trials, the first 10 of which are random
    n_trials = 15
    seeds = (0, 1)
    resume_at = (2, 12)
    n_resumed = 14


def test_every_configured_searcher_is_held_to_the_contract() -> None:
    assert {c.name for c in Configured.__subclasses__()} == set(options("searcher"))


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
            assert row | score(planted(skip)).as_dict() == row
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

    @pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 30])
    def test_the_default_starts_begin_with_nothing_and_suit_any_model(self, n_layers: int) -> None:
        starts = default_starts(n_layers)
        assert len(starts[0]) == 0
        assert {s.n_layers for s in starts} == {n_layers}

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
