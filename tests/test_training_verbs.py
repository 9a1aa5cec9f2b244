"""selfspec collect, train and evaluate drafter=RUN on a toy, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from selfspec.training.refining import CONTROL
from tests.commands import command

STORE = ("samples=2", "temperatures=[0.0,1.0]", "max_new_tokens=10", "batch=4")
SHORT = ("train.epochs=4", "train.slots=64", "train.check_every=4", "train.bf16=false", "vocabulary=48")
COSTS = ("costs.repeats=2", "costs.contexts=[8]", "costs.max_tokens=6")


@pytest.fixture(scope="module")
def outputs(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs with a store of the toy's text."""
    found = tmp_path_factory.mktemp("outputs")
    ran = command("collect", *toy, *STORE, f"paths.outputs={found}")
    assert ran.status == 0, ran.err
    again = command("collect", *toy, *STORE, f"paths.outputs={found}")
    assert "found again" in again.out and len(list((found / "store").iterdir())) == 1
    return found


def test_a_trained_draft_is_evaluated_by_its_folder(toy: list[str], outputs: Path) -> None:
    ran = command("train", *toy, *SHORT, *COSTS, "drafter=eagle", "check_overfit=false", f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    summary = json.loads((ran.run / "summary.json").read_text())
    plan = yaml.safe_load((ran.run / "plan.yaml").read_text())
    assert summary["verb"] == "train" and plan["trained"]["kind"] == "eagle" and plan["head_size"] == 48
    assert len((ran.run / "curve.jsonl").read_text().splitlines()) == summary["steps"] > 4

    fixed = command("train", f"resume={ran.run}", "train.lr=1.0")
    assert fixed.status == 2 and "train.lr=1.0 cannot change: leave it out" in fixed.err
    used = command(
        *("evaluate", *toy, f"drafter={ran.run}", "arm=eagle", "stop=fixed", "max_new_tokens=8"),
        *("model.dtype=float32", f"paths.outputs={outputs}"),
    )
    assert used.status == 2 and "float32" in used.err  # trained for another dtype
    assert plan["stop"]["draft_cost"] == summary["draft_cost"]  # the rule's costs are this head's
    words = ("arm=eagle", "stop=searched", "lookup=front", "max_new_tokens=8", "generate=false")
    used = command("evaluate", *toy, f"drafter={ran.run.name}", *words, f"paths.outputs={outputs}")
    assert used.status == 0, used.err
    assert "| eagle |" in used.out
    words = ("arm=tree", "stop=fixed", "tree=best_first", "max_new_tokens=8", "generate=false", *COSTS)
    words = (*words, "calibration.max_new_tokens=8")
    used = command("evaluate", *toy, f"drafter={ran.run.name}", *words, f"paths.outputs={outputs}")
    assert used.status == 0, used.err
    assert "| tree |" in used.out
    assert command("runs", "list", str(outputs)).status == 0


def test_refined_heads_are_trained_judged_and_evaluated(toy: list[str], outputs: Path) -> None:
    words = ("drafter=refine", "check_overfit=false", "drafter.head.settings.k=2", f"paths.outputs={outputs}")
    ran = command("train", *toy, *SHORT, *COSTS, *words)
    assert ran.status == 0, ran.err
    found = json.loads((ran.run / "summary.json").read_text())["refined"]
    assert set(found["modes"]) == {"none", "local", "global", "p_best", "neural", CONTROL}
    assert all(sum(one["accepted"]) == found["n"] > 0 and len(one["accepted"]) == 3 for one in found["modes"].values())
    # the mode may be changed afterwards: all parts are saved
    plan = (ran.run / "plan.yaml").read_text()
    assert f"weight: {found['weight']}" in plan and "mode: neural" in plan
    (ran.run / "plan.yaml").write_text(plan.replace("mode: neural", "mode: p_best"))
    words = ("arm=paths", "stop=searched", "max_new_tokens=8", "generate=false", "controls=false")
    used = command("evaluate", *toy, f"drafter={ran.run.name}", *words, f"paths.outputs={outputs}")
    assert used.status == 0, used.err
    assert "| paths |" in used.out


def test_what_cannot_be_trained_is_one_line(toy: list[str], outputs: Path, tmp_path: Path) -> None:
    for words, said in (
        (("drafter=layer_skip",), "not trained"),
        (("drafter=eagle", f"paths.outputs={tmp_path}"), "selfspec collect"),
        (("drafter=eagel",), "eagle"),
        (("drafter=eagle", "train.losses={hope: 1.0}"), "hope"),
        (("drafter=eagle", f"store={tmp_path}"), "no store"),
    ):
        ran = command("train", *toy, f"paths.outputs={outputs}", *words)
        assert ran.status == 2 and said in ran.err and ran.err.count("\n") <= 3, ran.err
    ran = command("evaluate", *toy, "drafter=eagle", f"paths.outputs={outputs}")
    assert ran.status == 2 and "selfspec train drafter=eagle" in ran.err
