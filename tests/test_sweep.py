"""A sweep: one job that fails takes no other with it, and the end says which one it was and why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config.sweep import _state_of
from selfspec.errors import InputError
from selfspec.records import run_files
from tests.commands import Ran, command

SMALL = ("generate=false", "max_new_tokens=4", "n=1", "stop=fixed", "name=swept")
SWEPT = "batch=1,0,2"  # no prompt at once is none


def failures(outputs: Path) -> dict[Path, dict[str, object]]:
    return {file.parent: json.loads(file.read_text()) for file in sorted(outputs.rglob(run_files.FAILURE))}


def assert_only_one_failed(status: int, err: str, outputs: Path) -> None:
    assert status == 1, err
    whole = [file.parent for file in outputs.rglob(run_files.SUMMARY)]
    ((folder, failure),) = failures(outputs).items()
    assert len(whole) == 2 and folder.parent == whole[0].parent == outputs / "evaluate" / "swept"
    assert "batch=0" in failure["overrides"] and "must be a whole number from 1 on" in str(failure["error"])  # type: ignore[operator]
    last, listed = err.splitlines()[-2:]
    assert "1 of the sweep's jobs failed" in last
    assert "batch=0" in listed and "must be a whole number from 1 on" in listed and str(folder) in listed


@pytest.fixture(scope="module")
def swept(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    outputs = tmp_path_factory.mktemp("swept")
    return command("evaluate", "-m", *toy, *SMALL, SWEPT, f"paths.outputs={outputs}"), outputs


def test_a_job_that_fails_does_not_end_the_others(swept: tuple[Ran, Path]) -> None:
    ran, outputs = swept
    assert_only_one_failed(ran.status, ran.err, outputs)


def test_a_folder_with_a_failure_is_no_run(swept: tuple[Ran, Path]) -> None:
    _, outputs = swept
    (folder,) = failures(outputs)
    assert sorted(p.name for p in folder.iterdir()) == [run_files.CONFIG, run_files.FAILURE, run_files.OVERRIDES]


def test_a_sweep_lists_its_own_failures_alone(swept: tuple[Ran, Path], toy: list[str], tmp_path: Path) -> None:
    _, outputs = swept
    (folder,) = failures(outputs)
    there = tmp_path / "evaluate" / "swept" / "old"
    there.parent.mkdir(parents=True)
    folder.rename(there)
    try:
        ran = command("evaluate", "-m", *toy, *SMALL, "batch=1,2", f"paths.outputs={tmp_path}")
        assert ran.status == 0 and "failed" not in ran.err and "all its jobs are whole" in ran.err, ran.err
    finally:
        there.rename(folder)


def test_a_bug_in_one_job_is_told_with_its_traceback(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("experiments.verbs.evaluate.evaluate", broken)
    ran = command("evaluate", "-m", *toy, *SMALL, "seed=0,1", f"paths.outputs={tmp_path}")
    assert ran.status == 1 and "Traceback" in ran.err
    assert [f["error"] for f in failures(tmp_path).values()] == ["KeyError: 'a bug'"] * 2


def states(outputs: Path) -> list[list[str]]:
    """The states of the jobs of each sweep."""
    sweeps = sorted((outputs / "sweep").iterdir())
    return [[json.loads(file.read_text())["state"] for file in sorted(s.glob("jobs/*.json"))] for s in sweeps]


def test_paths_mean_what_they_mean_where_they_are_typed(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(cfg: Any, overrides: list[str], say: object) -> None:
        if not Path(cfg.data.path).is_file():
            raise InputError(f"no {cfg.data.path} in {Path.cwd()}")

    monkeypatch.setattr("experiments.verbs.evaluate.evaluate", verb)
    (empty_folder / "p.jsonl").touch()
    words = ["data=jsonl", "data.path=p.jsonl", "paths.outputs=o", "hydra.job.chdir=true"]
    ran = command("evaluate", *words, "-m", "n=2,-1")
    assert ran.status == 1 and "n=-1 was asked for" in ran.err and "no p.jsonl" not in ran.err, ran.err
    assert command("evaluate", *words, "-m", "n=2,3").status == 0
    assert sorted(states(empty_folder / "o")) == [["whole", "failed"], ["whole", "whole"]]  # of two names


def test_ctrl_c_ends_the_sweep(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(cfg: Any, overrides: list[str], say: object) -> None:
        if "n=2" in overrides:
            raise KeyboardInterrupt

    monkeypatch.setattr("experiments.verbs.evaluate.evaluate", verb)
    ran = command("evaluate", "-m", "n=1,2,3")
    assert ran.status == 130 and "whole" not in ran.err, ran.err
    assert states(empty_folder / "outputs") == [["whole", "interrupted"]]


def test_a_job_gets_what_was_typed(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    verb: Callable[..., None] = lambda cfg, overrides, say: got.append((cfg.name, list(cfg.arms), overrides))  # noqa: E731
    monkeypatch.setattr("experiments.verbs.evaluate.evaluate", verb)
    arms = "arms={1_0: {skip: a1, stop: fixed}}"
    ran = command("evaluate", arms, "-m", "name=1_0,'a, b'")
    assert ran.status == 0, ran.err
    assert got == [("1_0", ["1_0"], [arms, "name=1_0"]), ("a, b", ["1_0"], [arms, "name='a, b'"])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "settings"),
    [("joblib", ["hydra.launcher.n_jobs=2"]), ("submitit_local", ["hydra.launcher.timeout_min=5"])],
)
def test_other_launchers_keep_to_it(launcher: str, settings: list[str], toy: list[str], tmp_path: Path) -> None:
    plugin = f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher"
    pytest.importorskip(plugin, reason=f"{plugin} is not installed")
    code = "import sys; from experiments.cli import main; main()"
    words = ["-m", *toy, *SMALL, SWEPT, f"paths.outputs={tmp_path}", f"hydra/launcher={launcher}", *settings]
    ran = subprocess.run([sys.executable, "-c", code, "evaluate", *words], capture_output=True, text=True)
    assert_only_one_failed(ran.returncode, ran.stderr, tmp_path)


def test_a_damaged_state_of_a_job_is_told_as_a_failure(tmp_path: Path) -> None:
    for number, text in enumerate(('{"state": "whole", "overrides": ["n=1"]}', '{"state": "wh', "[]", '"\x00"')):
        (tmp_path / f"{number}.json").write_text(text)
    found = [_state_of(file) for file in sorted(tmp_path.glob("*.json"))]
    assert [state["state"] for state in found] == ["whole", *["failed"] * 3]
    assert all("cannot be read" in state["error"] for state in found[1:])
