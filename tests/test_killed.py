"""A search that is killed, anywhere, goes on from its journal and loses the running trial at most."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from search.space import Space
from search.study.study import STUDY_NAME, SearchStudy
from selfspec.errors import InputError
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet
from tests.scripted import JOURNAL, N_LAYERS, ROWS, Scripted, planted, rows_of, run, score, tpe

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


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

    @pytest.mark.parametrize("n_lines", [None, 0, 5, -2])
    def test_and_its_journal_was_lost_or_cut_off(self, n_lines: int | None, stopped: Path, whole: Path) -> None:
        journal, before = stopped / JOURNAL, rows_of(stopped)
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.unlink() if n_lines is None else journal.write_bytes(b"".join(lines[:n_lines]))
        objective = Scripted()
        run(stopped, self.N, objective)
        assert rows_of(stopped)[: len(before)] == before and len(rows_of(stopped)) == self.N
        assert not {row["skip"] for row in before} & set(objective.calls), "no trial is run again"
        self.assert_resumes(stopped, whole)

    @pytest.mark.parametrize("text", [b"garbage\n", b"[" * 50_000 + b"\n", b"{}\n", b"5\n", b'{"op_code": 99}\n'])
    def test_and_its_journal_was_damaged(self, text: bytes, stopped: Path) -> None:
        rows, journal = rows_of(stopped), (stopped / JOURNAL).read_bytes()
        (stopped / JOURNAL).write_bytes(text + journal)
        with pytest.raises(InputError, match=r"study.journal is damaged .*trials\.jsonl"):
            run(stopped, self.N, Scripted())
        assert rows_of(stopped) == rows and (stopped / JOURNAL).read_bytes() == text + journal

    def test_rows_of_another_search_are_kept_beside_it(self, stopped: Path) -> None:
        text = "".join(reversed((stopped / ROWS).read_text(encoding="utf-8").splitlines(keepends=True)))
        (stopped / ROWS).write_text(text, encoding="utf-8")
        run(stopped, self.N, Scripted())
        assert (stopped / f"{ROWS}.1").read_text(encoding="utf-8") == text

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
