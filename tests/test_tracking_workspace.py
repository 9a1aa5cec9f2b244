"""The saved view of a W&B project, as far as it goes without a login: it is built, and draws what runs show."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import made_up

pytest.importorskip("wandb_workspaces", reason="the wandb-workspaces package is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "wandb_workspace", Path(__file__).parents[1] / "scripts" / "wandb_workspace.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def view(script: ModuleType) -> dict[str, Any]:
    """What would be sent to the server."""
    built = script.workspace("somebody", "toys", filters="Config('model.name') = 'toy'")
    body: dict[str, Any] = json.loads(built._to_model().model_dump_json(by_alias=True))
    return body


def texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from texts(value)
    elif isinstance(tree, str):
        yield tree


def keys(view: dict[str, Any]) -> set[str]:
    """The names of what is drawn."""
    found = {text.removeprefix("summary:") for text in texts(view)}
    return {text for text in found if text.startswith(("draft/", "trial/", "position/", "time/"))}


def test_it_has_skip_sets_acceptance_against_speedup_and_searches(view: dict[str, Any]) -> None:
    sections = {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}
    kinds = {name: {panel["viewType"] for panel in panels} for name, panels in sections.items()}
    assert {"Media Browser", "Run Comparer", "Weave"} <= kinds["Skip sets"]
    assert "Scatter Plot" in kinds["Acceptance against speedup"] and "Run History Line Plot" in kinds["Searches"]


def test_runs_are_grouped_and_filtered(view: dict[str, Any]) -> None:
    (runs,) = view["spec"]["section"]["runSets"]
    assert [group["name"] for group in runs["grouping"]] == ["group"] and "toy" in str(runs["filters"])


def test_it_draws_nothing_that_no_run_shows(view: dict[str, Any], shown_by_runs: set[str]) -> None:
    assert keys(view) <= shown_by_runs


@pytest.fixture(scope="module")
def shown_by_runs(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that a search and an evaluation show."""
    from experiments.results.find_runs import find_runs
    from experiments.results.tables import arm_rows
    from experiments.tracking import NoTracker
    from experiments.tracking.of_evaluation import show_evaluation
    from experiments.tracking.of_search import show_search, trial_listener
    from selfspec.records.run_files import read_rows
    from selfspec.skipping.skip_set import SkipSet
    from selfspec.skipping.skip_set_files import save_skip_set

    names: set[str] = set()

    class Listening(NoTracker):
        def show(self, values: Any) -> None:
            names.update(values)

    outputs = tmp_path_factory.mktemp("outputs")
    searched = made_up.search_run(outputs)
    trials = read_rows(searched / "trials.jsonl")
    best = SkipSet.parse(max(trials, key=lambda row: float(row["value"]))["skip"], made_up.N_LAYERS)
    save_skip_set(searched / "skip_set.yaml", best, model="toy", value=1.0, objective="none", data="mini")
    listen = trial_listener(Listening(), made_up.N_LAYERS)
    for row in trials:
        listen(row)
    show_search(Listening(), searched, name="toy", model="toy", data="mini", objective="none", raced=[])
    evaluated = made_up.evaluate_run(outputs)
    arms = arm_rows(*find_runs(str(evaluated), outputs))
    show_evaluation(Listening(), arms, read_rows(evaluated / "records.jsonl"))
    return names
