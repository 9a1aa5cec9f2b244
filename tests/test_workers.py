"""Several workers on one search: every place is run once, whoever dies, and wherever the workers meet.

`python -m tests.test_workers WORKER N_TRIALS SECONDS_PER_TRIAL GRACE_S FOLDER STORAGE ...` is one worker, on one search
after another; it tells what it found in lines of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.space import Space
from search.study import workers
from search.study.loop import run_search
from search.study.processes import mark_of
from search.study.study import STUDY_NAME, SearchStudy
from search.study.workers import Claims, Sharing, open_storage, shown
from selfspec.errors import InputError
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet
from tests.scripted import N_LAYERS, ROWS, Scripted, planted, score, ticking, tpe

ROOT = Path(__file__).parents[1]
STARTS = [SkipSet.parse(text, N_LAYERS) for text in ("none", "a1 m1", "a2-3", "m0,2")]
PATIENCE_S = 100  # of a test; the machine may be busy


def joined(storage: str | Path, worker: int = 0, **sharing: float) -> SearchStudy:
    """The study of the scripted search, seen by one of its workers."""
    return SearchStudy(
        Space(N_LAYERS),
        tpe,
        seed=0,
        identity={"objective": "planted"},
        storage=storage,
        sharing=Sharing(worker, **sharing),
    )


def work(storage: str, worker: int, n_trials: int, sleep_s: float, grace_s: float, rows_path: Path) -> dict[str, Any]:
    """Run trials until there are `n_trials`; the best, and what this worker ran."""
    objective = Scripted(sleep_s=sleep_s)
    study = joined(storage, worker, beat_s=grace_s / 10, grace_s=grace_s, poll_s=0.05)
    found = run_search(
        study.space,
        objective,
        study,
        starts=STARTS,
        n_trials=n_trials,
        seed=0,
        rows_path=rows_path,
        stopwatch=ticking(),
    )
    best = {k: v for k, v in asdict(found).items() if k in ("value", "n_trials")}
    return {**best, "skip": str(found.skip), "ran": objective.calls, "n_rows": len(read_rows(rows_path))}


class Workers:
    """Processes that run a search on each of `storages`."""

    def __init__(self, folder: Path, *storages: str | Path, n_trials: int, sleep_s: float, grace_s: float = 60) -> None:
        self._arguments = [str(n_trials), str(sleep_s), str(grace_s), str(folder), *map(str, storages)]
        self._storages, self._n_trials = storages, n_trials
        self._found: list[list[dict[str, Any]]] | None = None
        self.processes: list[subprocess.Popen[str]] = []

    def begin(self, worker: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.test_workers", str(worker), *self._arguments]
        self.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return self.processes[-1]

    def found(self, storage: str | Path) -> list[dict[str, Any]]:
        """What those that were not killed found there."""
        if self._found is None:
            told = [p.communicate(timeout=PATIENCE_S)[0].splitlines() for p in self.processes]
            assert {p.returncode for p in self.processes} <= {0, -signal.SIGKILL}
            self._found = [
                [json.loads(line) for line in lines]
                for lines, p in zip(told, self.processes, strict=True)
                if p.returncode == 0
            ]
        return [found[self._storages.index(storage)] for found in self._found]

    def assert_exact(self, storage: str | Path) -> None:
        """Every place was run once, and all workers agree about the best."""
        found = self.found(storage)
        trials = finished(storage)
        assert sorted(t.user_attrs["place"] for t in trials) == list(range(self._n_trials))
        by_place = {t.user_attrs["place"]: SkipSet.parse(t.user_attrs["skip"], N_LAYERS) for t in trials}
        assert [by_place[place] for place in range(len(STARTS))] == STARTS
        best = max(planted(skip) for skip in by_place.values())
        assert {(f["n_trials"], f["value"], f["n_rows"]) for f in found} == {(self._n_trials, best, self._n_trials)}
        assert len({f["skip"] for f in found}) == 1
        for start in STARTS:
            assert sum(f["ran"].count(str(start)) for f in found) <= 1, f"{start} was run twice"

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def finished(storage: str | Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name=STUDY_NAME, storage=open_storage(storage)).trials


def claims(storage: str | Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name=f"{STUDY_NAME} claims", storage=open_storage(storage)).trials


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def working(workers: Workers) -> Iterator[Workers]:
    """None of them outlives the test."""
    try:
        yield workers
    finally:
        workers.end()


@contextmanager
def proxy(folder: Path) -> Iterator[str]:
    """The address of Optuna's gRPC proxy, in front of a database of its own."""
    port, url = free_port(), f"sqlite:///{folder / 'proxied.db'}"
    serve = "import sys; from optuna.storages import get_storage, run_grpc_proxy_server as run; "
    serve += "run(get_storage(sys.argv[1]), port=int(sys.argv[2]))"
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", serve, url, str(port)]) as server:
        try:
            yield f"grpc://localhost:{port}"
        finally:
            server.kill()


def programs() -> list[str]:
    """Those that make and start a server of PostgreSQL; empty where there are none, or nobody who may start it."""
    folders = [*map(str, Path("/usr/lib/postgresql").glob("*/bin")), os.environ.get("PATH", "")]
    found = [shutil.which(name, path=os.pathsep.join(folders)) for name in ("initdb", "pg_ctl")]
    allowed = os.geteuid() != 0 or shutil.which("runuser")  # the server refuses to run as root
    return [name for name in found if name] if all(found) and allowed else []


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database on a server of this test."""
    initdb, pg_ctl = programs()
    as_nobody = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="pg") as folder:  # not pytest's: a socket's path must be short
        if as_nobody:
            shutil.chown(folder, "nobody")

        def call(*command: str) -> None:
            subprocess.run([*as_nobody, *command], check=True, cwd=folder, stdout=subprocess.DEVNULL)

        data = f"{folder}/data"
        call(initdb, "-D", data, "-U", "search", "-A", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        call(pg_ctl, "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql://search@/postgres?host={folder}"
        finally:
            call(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Workers]]:
    """Every kind of database there is here, and two workers that meet in one after the other."""
    folder = tmp_path_factory.mktemp("databases")
    urls = {"sqlite": f"sqlite:///{folder / 'study.db'}"}
    with ExitStack() as stack:
        if find_spec("grpc"):
            urls["grpc"] = stack.enter_context(proxy(folder))
        if find_spec("psycopg") and programs():
            urls["postgresql"] = stack.enter_context(postgresql())
        workers = stack.enter_context(working(Workers(folder, *urls.values(), n_trials=10, sleep_s=0.05)))
        workers.begin(0), workers.begin(1)
        yield urls, workers


class TestProcesses:
    @pytest.mark.slow
    def test_four_on_a_journal_run_every_place_once(self, tmp_path: Path) -> None:
        journal = tmp_path / "study.journal"
        with working(Workers(tmp_path, journal, n_trials=40, sleep_s=0.1)) as four:
            for worker in range(4):
                four.begin(worker)
            four.assert_exact(journal)

    def test_the_place_of_a_killed_one_is_run_by_another(self, tmp_path: Path) -> None:
        journal = tmp_path / "study.journal"

        def running(worker: int) -> list[int]:
            made = journal.exists() and b"search claims" in journal.read_bytes()
            held = [c.user_attrs for c in claims(journal) if c.state == TrialState.RUNNING] if made else []
            return [attrs["place"] for attrs in held if attrs["worker"] == worker]

        with working(Workers(tmp_path, journal, n_trials=12, sleep_s=0.4, grace_s=2)) as two:
            victim, _ = two.begin(0), two.begin(1)
            wait_until(lambda: bool(running(0)))
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
            (left,) = running(0)
            two.assert_exact(journal)
        reasons = [
            c.user_attrs["reason"]
            for c in claims(journal)
            if c.user_attrs["place"] == left and "reason" in c.user_attrs
        ]
        assert any("worker 0 died" in reason for reason in reasons), reasons

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["sqlite", "grpc", "postgresql"])
    def test_two_meet_in_a_database(self, kind: str, databases: tuple[dict[str, str], Workers]) -> None:
        urls, workers = databases
        if kind not in urls:
            pytest.skip(f"needs selfspec[{kind}]" + (" and PostgreSQL's initdb and pg_ctl" if kind != "grpc" else ""))
        workers.assert_exact(urls[kind])


class TestPlaces:
    """Two workers in one process, by turns."""

    @pytest.fixture
    def journal(self, tmp_path: Path) -> Path:
        return tmp_path / "study.journal"

    def test_each_worker_gets_the_first_place_that_nobody_has(self, journal: Path) -> None:
        first, second = joined(journal, 0), joined(journal, 1)
        assert (first.claim(9), second.claim(9)) == (0, 1)
        first.tell(first.start(STARTS[0]), score(1.0))
        assert first.claim(9) == 2

    def test_a_place_that_was_given_back_is_taken_next(self, journal: Path) -> None:
        first, second = joined(journal, 0), joined(journal, 1)
        assert (first.claim(9), second.claim(9)) == (0, 1)
        first.release()
        second.tell(second.start(STARTS[1]), score(1.0))
        assert second.claim(9) == 0

    def test_a_worker_that_comes_to_its_end_gives_its_place_back(self, journal: Path) -> None:
        first, second = joined(journal, 0), joined(journal, 1)
        assert first.claim(9) == 0
        del first
        assert second.claim(9) == 0

    def test_a_worker_that_is_started_again_has_its_place_at_once(self, journal: Path) -> None:
        joined_before = joined(journal, 3)
        assert joined_before.claim(9) == 0
        assert joined(journal, 3).claim(9) == 0

    @pytest.mark.parametrize("what", ["place", "finals"])
    def test_two_processes_with_one_number_are_told_so(
        self, what: str, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, pid = joined(journal), os.getppid()
        with monkeypatch.context() as patch:  # a process that is alive and is not this one
            patch.setattr(workers, "this_process", lambda: mark_of(pid))
            first.claim(9) if what == "place" else first.claim_finals()
        for study in (joined(journal), joined(journal)):
            with pytest.raises(InputError, match=f"worker=0 is at work on this search already .process {pid} on"):
                study.claim(9)
            with pytest.raises(InputError, match="worker=0 is at work"):
                study.claim_finals()
        assert joined(journal, worker=1).claim(9) == (1 if what == "place" else 0)
        first.release()
        assert joined(journal).claim(9) is not None

    def test_the_last_places_are_waited_for_until_their_worker_dies(self, journal: Path) -> None:
        dead = Claims(open_storage(journal), STUDY_NAME, Sharing(7, beat_s=100, grace_s=200))
        assert dead.take(1, set) == 0  # and never a sign of life
        assert joined(journal, 0, beat_s=0.05, grace_s=0.2, poll_s=0.01).claim(1) == 0

    def test_a_worker_that_is_alive_keeps_its_place(self, journal: Path) -> None:
        slow = joined(journal, 0, beat_s=0.02, grace_s=60)
        other = Claims(open_storage(journal), STUDY_NAME, Sharing(1, beat_s=0.1, grace_s=0.5, poll_s=0.01))
        assert slow.claim(1) == 0
        began = time.monotonic()

        def done() -> set[int]:
            if time.monotonic() - began > 1:
                slow.tell(slow.start(STARTS[0]), score(1.0))
                return {0}
            return set()

        assert other.take(1, done) is None
        assert [t.user_attrs["place"] for t in finished(journal)] == [0]

    def test_a_trial_that_comes_second_is_left_out(self, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
        frozen = joined(journal, 0, beat_s=100, grace_s=200)
        assert frozen.claim(2) == 0
        other = joined(journal, 1, beat_s=0.02, grace_s=0.1, poll_s=0.01)
        assert other.claim(2) == 1
        other.tell(other.start(STARTS[1]), score(1.0))
        assert other.claim(2) == 0  # waited for, and given up
        other.tell(other.start(STARTS[0]), score(2.0))
        with caplog.at_level(logging.WARNING):
            told = frozen.tell(frozen.start(STARTS[0]), score(3.0))
        assert (told.user_attrs["worker"], told.value) == (1, 2.0)
        assert "finished by worker 1 meanwhile" in caplog.text
        assert len(frozen.trials) == len(other.trials) == len(finished(journal)) == 2

    def test_a_trial_that_was_written_by_a_killed_worker_is_not_run_again(self, journal: Path) -> None:
        first = joined(journal, 0)
        assert first.claim(1) == 0
        first._claims.close = lambda: None  # type: ignore[method-assign, union-attr]
        first.tell(first.start(STARTS[0]), score(1.0))
        assert joined(journal, 1).claim(1) is None

    def test_what_one_worker_tells_the_others_learn_from(self, journal: Path) -> None:
        first, second = joined(journal, 0), joined(journal, 1)
        for _ in range(5):
            first.claim(9)
            proposal = first.ask()
            first.tell(proposal, score(planted(proposal.skip)), reason=None)
        assert second.trials == []
        second.sync()
        assert [(t.params, t.value) for t in second.trials] == [(t.params, t.value) for t in first.trials]

    def test_workers_propose_differently_from_the_same_trials(self, journal: Path) -> None:
        first, second = joined(journal, 0), joined(journal, 1)
        assert first.ask().skip != second.ask().skip

    def test_a_single_worker_searches_as_one_that_is_alone(self, tmp_path: Path) -> None:
        def skips(study: SearchStudy) -> list[str]:
            while study.claim(20) is not None:
                proposal = study.ask()
                study.tell(proposal, score(planted(proposal.skip)))
            return [t.user_attrs["skip"] for t in study.trials]

        alone = SearchStudy(Space(N_LAYERS), tpe, seed=0, journal=tmp_path / "alone.journal")
        assert skips(joined(tmp_path / "shared.journal")) == skips(alone)

    def test_a_search_begun_alone_goes_on_with_several(self, tmp_path: Path) -> None:
        alone = SearchStudy(Space(N_LAYERS), tpe, seed=0, identity={"objective": "planted"}, journal=tmp_path / ROWS)
        for _ in range(3):
            alone.tell(alone.ask(), score(1.0))
        first, second = joined(tmp_path / ROWS, 0), joined(tmp_path / ROWS, 1)
        assert (first.claim(9), second.claim(9)) == (3, 4)

    def test_a_shared_trial_needs_a_place(self, journal: Path) -> None:
        study = joined(journal)
        with pytest.raises(AssertionError, match="claim a place"):
            study.tell(study.ask(), score(1.0))


class TestStorage:
    @pytest.mark.parametrize("kind", ["journal", "sqlite"])
    def test_another_search_is_refused_wherever_it_lies(self, kind: str, tmp_path: Path) -> None:
        where = tmp_path / "study.journal" if kind == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
        study = joined(where)
        study.claim(1)
        study.tell(study.start(STARTS[0]), score(1.0))
        with pytest.raises(InputError, match=r"belongs to a search with objective='planted', not 'speed'"):
            SearchStudy(Space(N_LAYERS), tpe, seed=0, identity={"objective": "speed"}, storage=where)
        with pytest.raises(InputError, match="belongs to a search with n_layers=4, not 5"):
            SearchStudy(Space(N_LAYERS + 1), tpe, seed=0, identity={"objective": "planted"}, storage=where)

    def test_two_searches_share_a_database_by_their_names(self, tmp_path: Path) -> None:
        where = f"sqlite:///{tmp_path / 'study.db'}"
        for name in ("one", "two"):
            study = SearchStudy(Space(N_LAYERS), tpe, seed=0, identity={"model": name}, storage=where, name=name)
            assert study.claim(1) == 0

    @pytest.mark.parametrize("storage", ["mysql://host/db", "http://host", "redis://host"])
    def test_an_unknown_kind_is_refused_with_those_that_there_are(self, storage: str) -> None:
        with pytest.raises(InputError, match="use the path of a journal, sqlite:///FILE"):
            open_storage(storage)

    @pytest.mark.parametrize("storage", ["grpc://", "grpc://host", "grpc://:80"])
    def test_a_proxy_needs_host_and_port(self, storage: str) -> None:
        with pytest.raises(InputError, match="grpc://HOST:PORT"):
            open_storage(storage)

    def test_a_database_that_cannot_be_opened_is_an_error_of_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="unable to open database file") as error:
            open_storage(f"sqlite:///{tmp_path}/missing/study.db")
        assert "\n" not in str(error.value)

    def test_no_message_names_a_password(self) -> None:
        assert shown("postgresql://me:s3cret@host/db") == "postgresql://me:***@host/db"
        assert shown("postgresql://me@host/db") == "postgresql://me@host/db"

    def test_half_a_line_is_dropped_with_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        journal = tmp_path / "study.journal"
        study = joined(journal)
        study.claim(3)
        study.tell(study.start(STARTS[0]), score(1.0))
        whole = journal.read_bytes()
        journal.write_bytes(whole + b'{"op_code":4,"worker')
        with caplog.at_level(logging.WARNING):
            again = joined(journal)
        assert "study.journal ended in half a line" in caplog.text
        assert again.claim(3) == 1
        assert journal.read_bytes().startswith(whole)

    def test_half_a_line_that_a_peer_left_is_dropped_before_the_next(self, tmp_path: Path) -> None:
        journal = tmp_path / "study.journal"
        study = joined(journal)
        with journal.open("ab") as file:
            file.write(b'{"op_code":4,"worker')
        assert study.claim(3) == 0
        assert len([json.loads(line) for line in journal.read_text().splitlines()])

    def test_a_journal_and_a_storage_at_once_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="leave out one"):
            SearchStudy(Space(4), tpe, seed=0, journal=tmp_path / "a", storage=tmp_path / "b")

    @pytest.mark.parametrize("wrong", [{"worker": -1}, {"beat_s": 0}, {"beat_s": 60, "grace_s": 60}])
    def test_sharing_that_cannot_work_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            Sharing(**wrong)

    def test_the_dashboard_reads_the_result(self, tmp_path: Path) -> None:
        dashboard = pytest.importorskip("optuna_dashboard", reason="needs selfspec[dashboard]")
        journal = tmp_path / "study.journal"
        study = joined(journal)
        for _ in range(3):
            study.claim(3)
            study.tell(study.ask(), score(1.0))
        assert dashboard.wsgi(open_storage(journal))


if __name__ == "__main__":
    _, number, n_trials, sleep_s, grace_s, folder, *storages = sys.argv
    for i, storage in enumerate(storages):
        rows_path = Path(folder) / f"{i}-{number}.jsonl"
        found = work(storage, int(number), int(n_trials), float(sleep_s), float(grace_s), rows_path)
        print(json.dumps(found))
