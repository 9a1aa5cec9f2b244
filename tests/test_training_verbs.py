"""selfspec collect, train and evaluate drafter=RUN on a toy, from the command line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig

from experiments.builders import build_training
from search.costs.table import CostTable
from selfspec.records import run_files
from selfspec.training.batches import split
from selfspec.training.refining import CONTROL
from selfspec.training.store import Store, StoredText
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
    words = ("arm=tree", "stop=fixed", "tree=best_first", "max_new_tokens=8", "generate=false", *COSTS)
    words = (*words, "calibration.max_new_tokens=8")
    used = command("evaluate", *toy, f"drafter={ran.run.name}", *words, f"paths.outputs={outputs}")
    assert used.status == 0, used.err
    assert "| tree |" in used.out

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


def test_an_exported_run_is_evaluated_by_its_folder(toy: list[str], model_folder: Path, outputs: Path) -> None:
    """It drafts what the run drafts, and the prompts that the run has seen are left out."""
    there = f"paths.outputs={outputs}"
    short = (*SHORT, "train.epochs=1", "train.depths=2", "check_overfit=false")
    run = command("train", *toy, *short, *COSTS, "drafter=eagle3", there).run
    ran = command("export", run.name, "format=speculators", there)
    assert ran.status == 0, ran.err
    folder = run / "speculators"
    assert f"vllm serve {folder}" in ran.out
    body = json.loads((folder / "config.json").read_text())
    assert body["draft_vocab_size"] == 48
    assert body["speculators_config"]["verifier"]["name_or_path"] == str(model_folder.resolve())
    counts = []
    for draft in (run, folder):
        words = (
            f"drafter={draft}",
            "stop=fixed",
            "max_new_tokens=6",
            "generate=false",
            "data.calibration_fraction=0.25",
        )
        ran = command("evaluate", *toy, *words, there)
        assert ran.status == 0 and "2 of 6 evaluation prompts are left out" in ran.err, ran.err
        rows = [
            row
            for row in run_files.read_rows(ran.run / "records.jsonl")
            if row["arm"] not in ("plain", "nothing skipped")
        ]
        counts.append([(row["prompt_id"], row["drafted"], row["accepted"]) for row in rows])
    assert counts[0] == counts[1] and len(counts[0]) == 4

    for words, said in (
        ((run.name, "format=gguf"), "gguf"),
        ((run.name, "form=speculators"), "format"),
        (("20261128T000000Z-00000000",), "20261128T000000Z-00000000"),
        ((), "0 runs were named"),
        (("a1 m2",), "is no training"),
    ):
        ran = command("export", *words, there)
        assert ran.status == 2 and said in ran.err and ran.err.count("\n") == 1, ran.err


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
        (("drafter=eagle", "skip=a1"), "skip is for drafter=bridged"),
        (("drafter=bridged",), "set skip=RUN"),
        (("drafter=eagle3", "drafter.head.settings.layers=[3]"), "the store"),
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


def in_two_processes(*words: str) -> list[int]:
    """The exit statuses of a command in two processes, as `torchrun` starts them; forked, since starting is slow."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
            ran = command(*words)
            status = ran.status
            sys.stderr.write(ran.err if status else "")
            assert ran.out if rank == 0 else not ran.out, ran.out  # the first one alone speaks
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_two_processes_train_like_one(toy: list[str], outputs: Path, tmp_path: Path) -> None:
    """The curve of the same total batch, one run folder; and it goes on in two processes after a stop."""
    words = (*SHORT, *COSTS, "drafter=eagle", "check_overfit=false", "train.epochs=2", "train.patience=null")
    store = next((outputs / "store").iterdir())
    folders = [tmp_path / "one", tmp_path / "two"]
    train = [("train", *toy, *words, f"store={store}", f"paths.outputs={folder}") for folder in folders]
    assert command(*train[0]).status == 0
    assert in_two_processes(*train[1]) == [0, 0]
    runs = [run for folder in folders for run in folder.glob("train/*/*")]
    assert len(runs) == 2
    curves = [run_files.read_rows(run / "curve.jsonl") for run in runs]
    assert [row["step"] for row in curves[1]] == [*range(1, len(curves[0]) + 1)]
    for one, two in zip(*curves, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    weights = [torch.load(run / "checkpoint.pt", weights_only=True)["module"] for run in runs]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)

    (runs[1] / "summary.json").unlink()  # as after a kill behind the checkpoint of step 4
    checkpoint = torch.load(runs[1] / "checkpoint.pt", weights_only=True)
    checkpoint["progress"]["step"] = 4
    torch.save(checkpoint, runs[1] / "checkpoint.pt")
    assert in_two_processes("train", f"resume={runs[1]}") == [0, 0]
    again = run_files.read_rows(runs[1] / "curve.jsonl")
    assert [row["step"] for row in again] == [row["step"] for row in curves[0]]


def test_a_resumed_training_has_each_step_once(toy: list[str], outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after step 6 leaves the checkpoint of step 4; steps 5 and 6 are taken again."""
    append = run_files.append_row

    def killed(path: Path, row: dict[str, object]) -> None:
        append(path, row)
        if row.get("step") == 6:
            raise KeyboardInterrupt

    words = ("train", *toy, *SHORT, *COSTS, "drafter=eagle", "check_overfit=false", f"paths.outputs={outputs}")
    with monkeypatch.context() as patch:
        patch.setattr("experiments.verbs.train.run_files.append_row", killed)
        assert command(*words).status == 130
    folder = max((outputs / "train").glob("*/*"))
    assert [row["step"] for row in run_files.read_rows(folder / "curve.jsonl")] == [1, 2, 3, 4, 5, 6]
    again = command("train", f"resume={folder}")
    assert again.status == 0, again.err
    rows = run_files.read_rows(folder / "curve.jsonl")
    assert [row["step"] for row in rows] == [*range(1, len(rows) + 1)] and len(rows) > 6


def test_a_full_disk_ends_collection_and_training_in_one_line(
    toy: list[str], outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

    monkeypatch.setattr("selfspec.training.store.write_bytes", full)
    monkeypatch.setattr("selfspec.training.trainer.torch.save", full)
    train = (*SHORT, *COSTS, "drafter=eagle", "check_overfit=false", f"paths.outputs={outputs}")
    for words in (("collect", *toy, *STORE, f"paths.outputs={tmp_path}"), ("train", *toy, *train)):
        ran = command(*words)
        assert ran.status == 2 and "No space left" in ran.error_lines[-1] and "Traceback" not in ran.err
    assert not [*tmp_path.glob("store/*/*.safetensors")] and not [*outputs.glob("train/*/*/.checkpoint*")]


def made_up(folder: Path, name: str, answers: dict[int, list[int]]) -> Store:
    """A store of one answer to each prompt of one token."""
    store = Store.create(folder, name, {"layers": []})
    texts = [
        StoredText(torch.tensor([prompt, *answer]), 1, {}, *torch.zeros(2, len(answer) + 1, 1))
        for prompt, answer in answers.items()
    ]
    store.write(0, texts)
    return store


def test_the_vocabulary_is_of_the_texts_that_are_trained_on(tmp_path: Path) -> None:
    store = made_up(tmp_path, "a", {prompt: [30 + prompt] * 4 for prompt in range(20)})
    train, held = split([store])
    decoder: Any = SimpleNamespace(n_vocab=60, eos_ids=())
    found = build_training.vocabulary(len(train), decoder, [store]).tolist()
    said = {side: {store.text(i, ()).tokens[0] for _, i in texts} for side, texts in (("train", train), ("held", held))}
    assert set(found) == said["train"] and not said["held"] & set(found)


def test_stores_of_other_weights_and_of_nothing_are_one_line(toy: list[str], outputs: Path, tmp_path: Path) -> None:
    (store,) = (outputs / "store").iterdir()
    other, nothing = tmp_path / "other", tmp_path / "nothing"
    for folder in (other, nothing):
        folder.mkdir()
        (folder / "store.json").write_text((store / "store.json").read_text(encoding="utf-8"), encoding="utf-8")
    about = json.loads((store / "store.json").read_text(encoding="utf-8"))
    about["content"]["weights"]["sha256"] = "0" * 64
    (other / "store.json").write_text(json.dumps(about), encoding="utf-8")
    for stores, said in ((f"[{store},{other}]", "is of other weights"), (f"[{nothing}]", "collect")):
        ran = command("train", *toy, "drafter=eagle", f"store={stores}", f"paths.outputs={tmp_path}")
        assert ran.status == 2 and said in ran.error_lines[-1] and "Traceback" not in ran.err, ran.err


def test_a_memory_of_several_stores_holds_text_of_each(tmp_path: Path) -> None:
    stores = [
        made_up(tmp_path, name, {prompt: [first + prompt] * 4 for prompt in range(n)})
        for name, first, n in (("a", 20, 9), ("b", 40, 2))
    ]
    found = build_training.memory(DictConfig({"memory": 23}), stores)
    assert found is not None and {s for s, _ in split(stores)[0]} == {0, 1}  # and training draws from both
    tokens = [token for token in found.tolist() if token >= 0]
    assert tokens == [20] * 4 + [40] * 4 + [21] * 4 + [41] * 4 + [22] * 4 + [23] * 3


@pytest.mark.parametrize("words", [("drafter=bridged", "skip=a1-2 m1-2", "width=4"), ("drafter=kangaroo",)])
def test_trained_parts_stand_in_for_skipped_sublayers(toy: list[str], outputs: Path, words: tuple[str, ...]) -> None:
    ran = command("train", *toy, *SHORT, *COSTS, *words, "check_overfit=false", f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    plan = yaml.safe_load((ran.run / "plan.yaml").read_text())
    is_layer = "drafter=kangaroo" in words
    assert (plan["kind"], plan["skip"]) == ("bridged", "a3 m3" if is_layer else "a1-2 m1-2")
    assert set(plan.get("tuned", {})) == ({"a2", "m2"} if is_layer else set())
    if is_layer:
        used = command(
            *("evaluate", *toy, f"drafter={ran.run}", "arm=own", "stop=searched", "max_new_tokens=8"),
            *("generate=false", "calibration.max_new_tokens=8", f"paths.outputs={outputs}"),
        )
        assert used.status == 0, used.err
        assert all(f"| {arm} |" in used.out for arm in ("own", "nothing skipped", "untrained linear maps"))
