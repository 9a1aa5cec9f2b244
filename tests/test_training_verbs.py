"""selfspec collect, train and evaluate drafter=RUN on a toy, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from search.costs.table import CostTable
from selfspec.training.store import Store
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


def test_a_trained_draft_is_evaluated_by_its_folder(toy: list[str], outputs: Path, tmp_path: Path) -> None:
    outputs = Path(shutil.copytree(outputs, tmp_path / "outputs"))
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

    (store,) = (outputs / "store").iterdir()
    listed = {one["verb"]: one for one in json.loads(command("runs", "list", str(outputs), "--json").out)}
    assert listed.keys() == {"evaluate", "train", "store"}
    assert listed["train"]["training"]["expected_speedup"] == summary["expected_speedup"]
    n_tokens = Store(store).n_tokens
    assert (listed["store"]["n_tokens"], listed["store"]["state"]) == (n_tokens, "finished")
    shown = command("runs", "show", store.name, f"paths.outputs={outputs}")
    assert f"{n_tokens} answer tokens" in shown.out, shown.err
    shown = command("runs", "show", ran.run.name, f"paths.outputs={outputs}")
    assert "accepted by depth" in shown.out and "Training" in shown.out
    told = command("report", f"runs={ran.run}", f"paths.outputs={outputs}")
    assert "## Trainings" in told.out and list(Path(outputs, "report").rglob("training-*.png")), told.err
    (store / "store.json").write_text("{", encoding="utf-8")
    broken = command("runs", "list", store.name, f"paths.outputs={outputs}")
    assert "unreadable" in broken.out and broken.status == 0, broken.err


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


def test_a_search_tries_a_trained_draft_on_prompts_it_has_not_seen(
    toy: list[str], outputs: Path, tmp_path: Path
) -> None:
    here = f"paths.outputs={tmp_path}"
    assert command("collect", *toy, *STORE, "n=3", here).status == 0
    trained = command("train", *toy, *SHORT, *COSTS, "drafter=eagle", "check_overfit=false", here)
    assert trained.status == 0, trained.err
    dear = CostTable((8,), (5.0,), 5.0, 5.0, (1.0,), (1.0,) * 6)  # the model's own layers are too dear to draft with
    (tmp_path / "costs.json").write_text(json.dumps({"costs": dear.to_dict()}))
    words = ("draft=skip", "starts=[nothing]", "stop=fixed", "searcher.n_trials=2", "finals.top=0", here)
    words += ("objective.n_prompts=1", "objective.max_new_tokens=6", f"costs.path={tmp_path / 'costs.json'}")
    ran = command("search", *toy, *words, f"drafter={trained.run}")
    assert ran.status == 0, ran.err
    facts = json.loads((ran.run / "provenance.json").read_text())["run"]
    seen = json.loads((trained.run / "provenance.json").read_text())["run"]["seen"]
    assert len(set(facts["seen"]) - set(seen)) == 1 and set(seen) < set(facts["seen"])
    rung = json.loads((ran.run / "summary.json").read_text())["ladder"][-1]
    assert rung["added"] == {"trained": trained.run.name} and rung["stays"]
    plan = yaml.safe_load((ran.run / "plan.yaml").read_text())
    assert plan["trained"]["kind"] == "eagle" and plan["stop"]["name"] == "optimal"
    assert yaml.safe_load((ran.run / "config.yaml").read_text())["trained"] == str(trained.run)
    used = command("evaluate", *toy, f"skip={ran.run}", "stop=searched", "max_new_tokens=6", "generate=false", here)
    assert used.status == 0 and "trained eagle" in used.out and ": predicted" in used.out, used.err

    all_seen = f"paths.outputs={outputs}"
    made = command("train", *toy, *SHORT, *COSTS, "drafter=eagle", "check_overfit=false", all_seen)
    named = command("search", *toy, *words, all_seen, f"trained={made.run}")
    assert named.status == 2 and "those that it was trained on" in named.err
