"""The experiments with all systems, on a toy: what they train and search is decoded, and what was begun goes on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.config.composing import option
from experiments.results.published import published_figures
from experiments.systems.systems import slug
from experiments.verbs import train as train_verb
from experiments.verbs.reproduce import STEPS
from selfspec.records import run_files
from tests.commands import command

pytestmark = pytest.mark.usefixtures("empty_folder")

SMALL = "systems/smollm2-135m"
TINY = [
    *("samples=1", "max_new_tokens=8", "n=2", "train.max_s=null", "train.epochs=1", "train.slots=64"),
    *("train.check_every=2", "train.bf16=false", "vocabulary=48", "check_overfit=false", "costs.repeats=1"),
    *("costs.contexts=[8]", "costs.max_tokens=6", "costs.rows=[1,2]"),
]
SEARCH = [
    *("searcher.n_trials=2", "objective.n_prompts=1", "objective.max_new_tokens=3", "finals.top=1", "finals.race=1"),
    *("finals.n_prompts=1", "calibration.n_tokens=16", "calibration.max_new_tokens=8", "check=1"),
    *(
        "predictor.epochs=1",
        "predictor.n_compared=2",
        "n=4",
        "max_new_tokens=24",
        "trained=null",
    ),  # enough tokens for a predictor
]
KEPT = ("text_raw", "eagle", "code_raw", "report")


def step(name: str, text: str) -> str:
    return f"experiment.steps.{name}='{text}'"


def thin() -> list[str]:
    """The experiment with one store, one training, one evaluation and the report."""
    dropped = [name for name in option("experiment", SMALL).steps if name not in KEPT]
    return [
        "experiment.training='train.max_s=null'",  # of the newest store
        *(f"experiment.steps.{name}=null" for name in dropped),
        step("code_raw", "evaluate data=mini skip={eagle} arm=EAGLE-1 stop=searched controls=false generate=false"),
    ]


def steps_of(folder: Path) -> dict[str, Path]:
    return {row["step"]: Path(row["run"]) for row in run_files.read_rows(folder / STEPS)}


def test_collected_and_trained_steps_go_on_where_they_were_killed(
    toy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """As sudden as a kill: nothing catches it."""

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train_verb, "_finish", dies)
        ran = command("reproduce", f"experiment={SMALL}", *thin(), *toy, *TINY)
        assert ran.status == 0, ran.err
    (folder,) = Path("outputs/reproduce").glob("*/*")
    assert list(steps_of(folder)) == ["text_raw"]
    (store,) = (folder / "runs" / "store").iterdir()
    shards = {file: file.read_bytes() for file in store.iterdir()}
    (curve,) = folder.glob(f"runs/train/eagle/*/{run_files.CURVE}")
    before = curve.read_text()
    ran = command("reproduce", f"resume={folder}")
    assert ran.status == 0, ran.err
    assert {file: file.read_bytes() for file in store.iterdir()} == shards
    assert curve.read_text().startswith(before) and len(before.splitlines()) >= 1
    done = steps_of(folder)
    assert list(done) == [*KEPT]
    assert done["text_raw"] == store and done["eagle"] == curve.parent
    written = (done["report"] / "table.md").read_text()
    assert "All systems: speedup" in written and "| EAGLE-1 |" in written
    assert "s to collect" in written  # the seconds of the step that no run of its own records


@pytest.mark.slow
def test_the_whole_experiment_runs_on_a_toy(toy: list[str]) -> None:
    ran = command("reproduce", f"experiment={SMALL}", *toy, *TINY, *SEARCH, "experiment.exit_layer=2")
    assert ran.status == 0, ran.err
    (folder,) = Path("outputs/reproduce").glob("*/*")
    done = steps_of(folder)
    assert list(done) == list(option("experiment", SMALL).steps)
    with (done["report"] / "systems_costs.csv").open(newline="") as file:
        shown = {slug(row["system"]) for row in csv.DictReader(file)}
    known = {row["system"] for row in published_figures("systems")}
    assert known - shown == set(), shown


def test_both_experiments_are_the_same_steps() -> None:
    small, code = (option("experiment", name) for name in (SMALL, "systems/qwen2.5-coder-0.5b"))
    assert list(small.steps) == list(code.steps) and small.settings != code.settings
