"""Another model in the folder of the first: plans, runs, searches and cost tables are not taken for its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from search.replay.objectives import ReplayObjective
from selfspec.records import run_files
from tests.commands import command, write_model

COSTS = "costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=2"
SEARCH = (
    *("objective.n_prompts=2", "objective.max_new_tokens=8", "finals.n_prompts=2", "finals.top=0", "force=true"),
    *("searcher=random", *COSTS),
)


@pytest.fixture
def words(model_folder: Path, prompts_file: Path, empty_folder: Path) -> list[str]:
    shutil.copytree(model_folder, empty_folder / "m")
    return [
        "model=local",
        "model.path=m",
        "model.dtype=float64",
        "data=jsonl",
        f"data.path={prompts_file}",
        "threads=1",
    ]


def turn_into_another(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["model.layers.1.mlp.gate_proj.weight"] *= -1
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def test_evaluation_does_not_go_on_with_another_model(words: list[str]) -> None:
    ran = command("evaluate", *words, "n=2", "max_new_tokens=6", "generate=false")
    rows = (ran.run / run_files.RECORDS).read_bytes()
    turn_into_another(Path("m"))
    resumed = command("evaluate", f"resume={ran.run}")
    assert resumed.status == 2
    assert "began with weights=" in resumed.error_lines[-1]
    assert (ran.run / run_files.RECORDS).read_bytes() == rows


def test_search_does_not_go_on_with_another_model(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    score, calls = ReplayObjective.__call__, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return score(*args, **kwargs)

    monkeypatch.setattr(ReplayObjective, "__call__", interrupted)
    cut = command("search", "draft=skip", *words, *SEARCH, "searcher.n_trials=9")
    turn_into_another(Path("m"))
    resumed = command("search", f"resume={cut.run}")
    assert resumed.status == 2
    assert "belongs to a search with weights=" in resumed.error_lines[-1]


def test_plan_is_refused_for_another_model_of_the_same_shape(words: list[str]) -> None:
    ran = command("search", *words, *SEARCH, "searcher.n_trials=3", "draft=mean", "calibration.max_new_tokens=8")
    assert ran.status == 0, ran.err
    same = command("evaluate", *words, f"skip={ran.run}", "n=1", "max_new_tokens=6", "generate=false")
    assert same.status == 0, same.err
    turn_into_another(Path("m"))
    other = command("evaluate", *words, f"skip={ran.run}", "n=1", "max_new_tokens=6", "generate=false")
    assert other.status == 2
    assert "with weights=sha256" in other.error_lines[-1]


def test_costs_are_measured_anew_for_another_folder_and_not_for_a_copy(words: list[str], tmp_path: Path) -> None:
    def tables() -> set[Path]:
        command("profile", *words, *COSTS)
        return set(Path("outputs/cache/costs").glob("*.json"))

    first = tables()
    shutil.move("m", "away")
    shutil.copytree("away", "m")
    assert tables() == first
    shutil.rmtree("m")
    write_model(Path("m"), n_layers=6)
    assert len(tables()) == 2
