"""Trackers: one that fails costs no result; Weights & Biases works offline, without an account."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from experiments.builders import build
from experiments.tracking import Loggable, NoTracker, Picture, SafeTracker, Table, Tracker, WandbTracker
from selfspec.errors import InputError
from selfspec.records import run_files
from tests.tracked import Tracked, files_holding, own_home, tracked

Call = Callable[[Tracker], Any]
CALLS: dict[str, Call] = {
    "show": lambda tracker: tracker.show({"value": 1.0}),
    "keep": lambda tracker: tracker.keep("set", [Path("skip_set.yaml")], kind="skip_set", is_best=True),
    "finish": lambda tracker: tracker.finish(),
}
PASSWORD = "open-sesame"


class Failing:
    """Fails in each call after the first `n_good`."""

    def __init__(self, n_good: int = 0) -> None:
        self.n_good, self.n_calls = n_good, 0

    def _call(self) -> None:
        self.n_calls += 1
        if self.n_calls > self.n_good:
            raise ConnectionError("the server is gone")

    def show(self, values: Mapping[str, Loggable]) -> None:
        self._call()

    def keep(self, name: str, files: Sequence[Path], *, kind: str, is_best: bool) -> None:
        self._call()

    def finish(self, *, failed: bool = False) -> str | None:
        self._call()
        return "sync me"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestAnyCall:
    def test_no_tracker_listens_and_has_nothing_to_say(self, call: Call) -> None:
        assert call(NoTracker()) is None

    def test_a_failing_tracker_is_given_up_with_one_warning(self, call: Call, caplog: pytest.LogCaptureFixture) -> None:
        inner = Failing(n_good=1)
        tracker = SafeTracker(lambda: inner)
        tracker.show({"value": 1.0})
        for _ in range(3):
            assert call(tracker) is None
        assert inner.n_calls == 2
        warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warnings) == 1 and "the server is gone" in warnings[0].getMessage()

    def test_a_tracker_that_cannot_be_made_is_given_up_with_one_warning(
        self, call: Call, caplog: pytest.LogCaptureFixture
    ) -> None:
        def make() -> Tracker:
            raise ConnectionError("no route")

        tracker = SafeTracker(make)
        assert call(tracker) is None
        assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_what_a_working_tracker_says_last_is_handed_on() -> None:
    assert SafeTracker(lambda: Failing(n_good=9)).finish() == "sync me"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_stopping_a_run_is_no_failure_of_its_tracker(stop: type[BaseException]) -> None:
    class Interrupted(NoTracker):
        def show(self, values: Mapping[str, Loggable]) -> None:
            raise stop

    with pytest.raises(stop):
        SafeTracker(Interrupted).show({})


def test_wandb_asked_for_but_not_installed_is_a_mistake_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install"):
        SafeTracker(lambda: wandb_tracker(tmp_path))


def wandb_tracker(folder: Path, **changes: Any) -> WandbTracker:
    settings: dict[str, Any] = {
        "project": "toys",
        "name": "a run",
        "group": "toys",
        "job_type": "search",
        "run_id": "toy",
        "config": {"seed": 0},
        "mode": "offline",
    }
    return WandbTracker(folder=folder, **(settings | changes))


def configuration(*words: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("search", overrides=["tracker=wandb", *words])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    with own_home(tmp_path_factory.mktemp("home")) as patch:
        patch.setenv("SELFSPEC_TEST_TOKEN", "a-secret-of-nobody")
        yield patch


@pytest.fixture(scope="module")
def finished(
    home: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str | None], list[tuple[Any, ...]], Tracked]:
    """The run folder, what its two `finish` returned, whom this process called, and what was recorded."""
    from matplotlib.figure import Figure

    folder = tmp_path_factory.mktemp("run")
    Figure((1, 1)).savefig(folder / "map.png")
    provenance = {"code": {"commit": "abc", "diff": "- a"}, "argv": [f"password={PASSWORD}"], "run": {"model": "toy"}}
    (folder / run_files.PROVENANCE).write_text(json.dumps(provenance))
    left: list[tuple[Any, ...]] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            left.append(address)
            raise OSError("no network in tests")
        connect(self, address)

    home.setattr(socket.socket, "connect", watched)
    storage = f"storage='postgresql://me:{PASSWORD}@host/db?sslpassword={PASSWORD}'"
    cfg = configuration("tracker.tags=[mine]", storage, "start=a-secret-of-nobody", "name=a set")
    tracker = build.tracker(cfg, verb="search", folder=folder)
    for number in range(3):
        tracker.show({"trial/number": number, "trial/value": None if number == 1 else number / 2})
    tracker.show({"sets": Table([{"skip": "a1", "value": 1.0}, {"skip": "none", "value": float("nan")}])})
    tracker.show({"empty": Table([])})
    tracker.show({"map": Picture(folder / "map.png")})
    tracker.show({"nothing": None})
    tracker.keep("a set", [folder / "map.png"], kind="skip_set", is_best=True)
    tracker.keep("trials", [folder / run_files.PROVENANCE], kind="trials", is_best=False)
    said = [tracker.finish(), tracker.finish()]
    return folder, said, left, tracked(folder)


class TestWandbOffline:
    """One real run, looked at from several sides."""

    def test_all_that_was_shown_is_in_the_run_folder(self, finished: Any) -> None:
        *_, run = finished
        assert run.series("trial/number") == [0, 1, 2] and run.series("trial/value") == [0, 1]
        assert run.table("sets") == [{"skip": "a1", "value": 1.0}, {"skip": "none", "value": None}]
        assert run.table("empty") == [] and run.series("nothing") == []
        (picture,) = run.series("map.path")
        assert (run.folder / "files" / picture).is_file()

    def test_files_are_kept_under_names_that_wandb_takes(self, finished: Any) -> None:
        *_, run = finished
        assert run.artifacts == {
            "a-set": {"kind": "skip_set", "aliases": {"latest", "best"}, "files": ["map.png"]},
            "trials": {"kind": "trials", "aliases": {"latest"}, "files": [run_files.PROVENANCE]},
        }

    def test_the_run_says_what_it_belongs_to(self, finished: Any) -> None:
        folder, *_, run = finished
        assert run.about["project"] == "selfspec" and run.about["run_id"] == folder.name
        assert (run.about["run_group"], run.about["job_type"]) == ("a set", "search")
        assert run.about["tags"] == ["search", "smollm2-135m", "mini", "mine"]

    def test_its_configuration_is_the_whole_one_with_provenance(self, finished: Any) -> None:
        *_, run = finished
        assert run.config["searcher"]["name"] == "quadratic" and run.config["provenance"]["run"] == {"model": "toy"}

    def test_finish_says_how_to_upload_once(self, finished: Any) -> None:
        folder, (first, second), *_ = finished
        assert first.startswith("wandb sync ") and second is None
        named = Path(first.removeprefix("wandb sync "))
        assert named.is_relative_to(folder) and list(named.glob("run-*.wandb"))

    def test_this_process_opens_no_connection(self, finished: Any) -> None:
        _, _, left, _ = finished
        assert left == []

    @pytest.mark.parametrize("secret", [PASSWORD, "a-secret-of-nobody", socket.gethostname() + '"'])
    def test_no_secret_and_no_name_of_this_machine_is_recorded(self, finished: Any, secret: str) -> None:
        folder, *_, run = finished
        assert secret not in str(run.config) and secret not in str(run.about)
        assert files_holding(folder / "wandb", secret) == []


def test_disabled_it_writes_nothing_and_has_nothing_to_say(home: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracker = wandb_tracker(tmp_path, mode="disabled")
    tracker.show({"value": 1.0})
    assert tracker.finish() is None and not list(tmp_path.rglob("*.wandb"))


def test_without_a_mode_the_environment_has_its_say(home: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        wandb_tracker(tmp_path, mode=None).finish()
    assert not list(tmp_path.rglob("*.wandb"))


def test_a_mode_that_is_none_is_refused_with_those_there_are(home: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="online, offline, disabled"):
        SafeTracker(lambda: wandb_tracker(tmp_path, mode="sometimes"))


NO_ANSWER = """
import logging, pathlib, sys
from experiments.tracking import WandbTracker, wandb_tracker

logging.basicConfig(format="%(levelname)s %(message)s")
wandb_tracker.CONNECT_S = 1.0
folder = pathlib.Path(sys.argv[1])
tracker = WandbTracker(project="p", name="n", group="g", job_type="search", run_id="id", folder=folder, config={})
tracker.show({"value": 1.0})
print(tracker.finish())
"""


@pytest.mark.slow
def test_a_server_that_does_not_answer_makes_the_run_an_offline_one(home: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # of this process
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    words = [sys.executable, "-c", NO_ANSWER, str(tmp_path)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=alone | nobody)
    assert ran.returncode == 0, ran.stderr
    run = tracked(tmp_path)
    assert ran.stdout == f"wandb sync {run.folder}\n" and run.series("value") == [1]
    (warning,) = (line for line in ran.stderr.splitlines() if line.startswith("WARNING"))
    assert "does not answer, so this run is offline" in warning


def test_a_failed_run_is_finished_as_failed_and_says_how_to_upload(tmp_path: Path) -> None:
    told: list[bool] = []

    class Listening(NoTracker):
        def finish(self, *, failed: bool = False) -> str | None:
            told.append(failed)
            return "sync me"

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "WandbTracker", lambda **settings: Listening())
        with build.tracking(configuration(), verb="search", folder=tmp_path, say=said.append):
            assert told == []
        with (
            pytest.raises(KeyboardInterrupt),
            build.tracking(configuration(), verb="search", folder=tmp_path, say=said.append),
        ):
            raise KeyboardInterrupt
    assert told == [False, True] and said == ["sync me", "sync me"]


def test_no_tracker_is_the_default() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("search")
    assert isinstance(build.tracker(cfg, verb="search", folder=Path()), NoTracker)


def test_the_earlier_part_of_a_run_is_where_no_sync_finds_it(home: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part, other = (tmp_path / "wandb" / f"offline-run-20260101_000000-{name}" for name in ("mine", "other"))
    part.mkdir(parents=True), other.mkdir()
    tracker = wandb_tracker(tmp_path, run_id="mine")
    line = tracker.finish()
    left = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert left == sorted([other.name, Path(str(line)).name]) and part.name not in left
    assert [path.name for path in (tmp_path / "wandb" / "earlier").iterdir()] == [part.name]
