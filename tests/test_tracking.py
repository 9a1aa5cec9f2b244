"""Trackers: one that fails costs no result; Weights & Biases works offline, without an account."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from experiments import build
from experiments.tracking import NoTracker, SafeTracker, Tracker, WandbTracker
from selfspec.errors import InputError

Call = Callable[[Tracker], Any]
CALLS: dict[str, Call] = {
    "log": lambda tracker: tracker.log(0, {"value": 1.0}),
    "table": lambda tracker: tracker.table("arms", [{"a": 1}]),
    "image": lambda tracker: tracker.image("map", Path("map.png")),
    "finish": lambda tracker: tracker.finish(),
}


class Failing:
    """Fails in each call from the `n_good`-th on."""

    def __init__(self, n_good: int = 0) -> None:
        self.n_good, self.n_calls = n_good, 0

    def _call(self) -> None:
        self.n_calls += 1
        if self.n_calls > self.n_good:
            raise ConnectionError("the server is gone")

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        self._call()

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._call()

    def image(self, name: str, path: Path) -> None:
        self._call()

    def finish(self) -> str | None:
        self._call()
        return "sync me"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestAnyCall:
    def test_no_tracker_listens_and_has_nothing_to_say(self, call: Call) -> None:
        assert call(NoTracker()) is None

    def test_a_failing_tracker_is_given_up_with_one_warning(self, call: Call, caplog: pytest.LogCaptureFixture) -> None:
        inner = Failing(n_good=1)
        tracker = SafeTracker(lambda: inner)
        tracker.log(0, {"value": 1.0})
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
        def log(self, step: int, values: Mapping[str, float | None]) -> None:
            raise stop

    with pytest.raises(stop):
        SafeTracker(Interrupted).log(0, {})


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
        "config": {"seed": 0, "model": {"name": "toy"}},
        "mode": "offline",
    }
    return WandbTracker(folder=folder, **(settings | changes))


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """No login of this machine, and no settings of it."""
    pytest.importorskip("wandb", reason="the wandb package is not installed")
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(home))
        for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("SELFSPEC_TEST_TOKEN", "a-secret-of-nobody")
        yield patch


@pytest.fixture(scope="module")
def finished(
    own_home: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str | None], list[tuple[Any, ...]], dict[str, Any]]:
    """The folder of the run, what its two `finish` returned, whom this process called, and the run's configuration."""
    from matplotlib.figure import Figure

    folder = tmp_path_factory.mktemp("run")
    Figure((1, 1)).savefig(folder / "map.png")
    left: list[tuple[Any, ...]] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            left.append(address)
            raise OSError("no network in tests")
        connect(self, address)

    own_home.setattr(socket.socket, "connect", watched)
    tracker = wandb_tracker(folder, mode=None)
    for step in range(3):
        tracker.log(step, {"value": step / 2, "acceptance": None if step == 1 else 0.5})
    tracker.table("trials", [{"skip": "a1", "value": 1.0}, {"skip": "none", "value": None}])
    tracker.table("empty", [])
    tracker.image("map", folder / "map.png")
    config = dict(tracker._run.config)
    return folder, [tracker.finish(), tracker.finish()], left, config


class TestWandbOffline:
    """One real run, looked at from several sides."""

    def test_the_run_is_written_into_the_run_folder(self, finished: Any) -> None:
        folder, *_ = finished
        (written,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        keys = (b"acceptance", b"value", b"trials", b"map")
        deadline = time.monotonic() + 10  # wandb's own process writes it, some milliseconds after `finish` returned
        while (missing := [k for k in keys if k not in written.read_bytes()]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert missing == []
        media = {path.suffix for path in written.parent.rglob("media/**/*.*")}
        assert {".json", ".png"} <= media

    def test_finish_says_how_to_upload_once(self, finished: Any) -> None:
        folder, (first, second), *_ = finished
        assert first.startswith("wandb sync ") and second is None
        named = Path(first.removeprefix("wandb sync "))
        assert named.is_relative_to(folder) and list(named.glob("run-*.wandb"))

    def test_this_process_opens_no_connection(self, finished: Any) -> None:
        _, _, left, _ = finished
        assert left == []

    def test_no_environment_variable_is_recorded(self, finished: Any) -> None:
        folder, _, _, config = finished
        assert set(config) == {"seed", "model"}
        holding = [p.name for p in folder.rglob("*") if p.is_file() and b"a-secret-of-nobody" in p.read_bytes()]
        assert holding == []


def test_no_tracker_is_the_default() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("search")
    assert isinstance(build.tracker(cfg, verb="search", run_id="id", folder=Path()), NoTracker)


def test_a_tracker_from_the_configuration_shows_the_whole_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def record(**settings: Any) -> NoTracker:
        given.update(settings)
        return NoTracker()

    monkeypatch.setattr(build, "WandbTracker", record)
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("search", overrides=["tracker=wandb", "tracker.tags=[a,b]"])
    build.tracker(cfg, verb="search", run_id="20300101T000000Z-abc", folder=tmp_path)
    assert given["name"] == "smollm2-135m-mini 20300101T000000Z-abc"
    assert (given["group"], given["tags"], given["folder"]) == ("smollm2-135m-mini", ["a", "b"], tmp_path)
    assert given["config"]["searcher"]["name"] == "quadratic" and type(given["config"]["searcher"]) is dict
