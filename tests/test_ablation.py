"""The ablation adds one part of a draft after another, and its table and picture say what the rows say."""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.evaluation import ablation
from experiments.results.find_runs import find_runs
from selfspec.errors import InputError
from selfspec.heads.trained import TrainedHead
from selfspec.records import run_files
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from tests.commands import Ran, command
from tests.test_arms import COSTS

SKIP = SkipSet.parse("a1 m2", 4)
LINEAR = DraftPlan(SKIP, {("attn", 1): Bridge(torch.zeros(2), (torch.zeros(2, 2),))}, torch.arange(9), "linear")
CHAIN = ["identity", "mean", "linear", "+ head", "+ int8", "+ lookup", "+ optimal stop"]
RIVALS = ["lookup only", "transformers' lookup"]


class TestSteps:
    def test_each_changes_one_part_of_the_one_before(self) -> None:
        for plan in (LINEAR, DraftPlan.from_skip_set(SKIP)):
            found = ablation.steps("RUN", plan)
            assert list(found) == [*CHAIN, *RIVALS]
            chain = [_whole(found[name], plan) for name in CHAIN]
            changed = [{k for k in b if a[k] != b[k]} for a, b in pairwise(chain)]
            assert changed == [{"draft"}, {"draft"}, {"head"}, {"precision"}, {"lookup"}, {"stop", "tune_stop"}]

    def test_where_there_is_no_kernel_for_int8_nothing_is_rounded(self) -> None:
        found = ablation.steps("RUN", LINEAR, has_int8=False)
        assert list(found) == [name for name in [*CHAIN, *RIVALS] if name != "+ int8"]
        assert all(settings.get("precision", "same") == "same" for settings in found.values())

    def test_a_plan_in_int4_with_a_memory_has_a_step_for_each(self) -> None:
        plan = DraftPlan(SKIP, precision="int4", memory=torch.arange(9))
        found = ablation.steps("RUN", plan)
        chain = ["identity", "mean", "linear", "+ int8", "+ int4", "+ lookup", "+ memory", "+ optimal stop"]
        assert list(found) == [*chain, *ablation.RIVALS]
        assert found["+ int4"]["head"] == "full"
        assert [name for name, settings in found.items() if "memory" in settings] == ["+ lookup"]
        assert found["lookup and memory only"] == {"skip": "RUN", "lookup": "only"}

    def test_a_trained_head_is_tried_by_its_own_rule_and_taken_apart_never(self) -> None:
        found = ablation.steps("RUN", LINEAR, trained="train/RUN")
        assert list(found) == [*CHAIN, "trained head", "trained head + lookup", *RIVALS]
        assert found["trained head"] == {"skip": "train/RUN", "lookup": None, "stop": "searched"}
        with pytest.raises(InputError, match="no parts to take away"):
            ablation.steps("RUN", DraftPlan(SKIP, trained=TrainedHead("eagle")))

    def test_what_a_plan_has_is_its_own_and_what_it_lacks_is_fitted(self) -> None:
        own, fitted = (
            ablation.steps("RUN", LINEAR)["+ head"],
            ablation.steps("RUN", DraftPlan.from_skip_set(SKIP))["+ head"],
        )
        assert not {"draft", "head"} & set(own)
        assert (fitted["draft"], fitted["head"]) == ("linear", ablation.HEAD)


def _whole(settings: dict[str, Any], plan: DraftPlan) -> dict[str, Any]:
    """The settings with what is left to the plan written out."""
    head = "full" if plan.head is None else len(plan.head)
    rest = {"draft": plan.kind, "head": head, "precision": plan.precision, "stop": None, "tune_stop": False}
    return rest | settings


def row(arm: str, prompt: str, *, total_s: float, draft_s: float = 0.0, drafted: int = 0) -> dict[str, Any]:
    """Of 11 tokens: one of the prefill, which takes a second, and ten more; all but one drafted token accepted."""
    return {
        **{"arm": arm, "prompt_id": prompt, "n_tokens": 11, "drafted": drafted, "accepted": max(0, drafted - 1)},
        **{"n_rounds": 4, "prefill_s": 1.0, "draft_s": draft_s, "total_s": total_s, "error": None},
        **{"verdict": "baseline" if arm == "plain" else "identical", "skip": None, "stop": None, "n_layers": 4},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two prompts, plainly 1 s a token; `mean` drafts 8 tokens a prompt in 4 s; transformers' own tells no rounds."""
    folder = tmp_path / "evaluate" / "name" / "20260101T000000Z-abc"
    folder.mkdir(parents=True)
    for prompt in ("p", "q"):
        run_files.append_row(folder / run_files.RECORDS, row("plain", prompt, total_s=11.0))
        run_files.append_row(folder / run_files.RECORDS, row("mean", prompt, total_s=6.0, draft_s=4.0, drafted=8))
        rival = row(ablation.RIVALS[1], prompt, total_s=11.0) | {"n_rounds": 0}
        run_files.append_row(folder / run_files.RECORDS, rival)
    run_files.write_json(folder / run_files.PROVENANCE, {"run": {"model": "toy", "data": "mini"}})
    return folder


class TestTable:
    def test_says_what_the_rows_say(self, run: Path) -> None:
        ablation.write(*find_runs(str(run), run))
        mean, rival = csv.DictReader((run / "ablation.csv").read_text().splitlines())
        assert mean["arm"] == "mean"
        numbers = {key: float(value) for key, value in mean.items() if key != "arm"}
        assert numbers == {
            **{"acceptance": 7 / 8, "draft_cost": 0.5, "tokens_per_round": (14 + 8) / 8, "speedup": 2.0},
            **{"low": 2.0, "high": 2.0, "n": 2, "n_mismatches": 0},
        }
        assert (math.isnan(float(rival["draft_cost"])), float(rival["speedup"])) == (True, 1.0)

    def test_is_readable_and_has_its_picture(self, run: Path) -> None:
        paths = ablation.write(*find_runs(str(run), run))
        assert {p.name for p in paths} == {f"ablation.{suffix}" for suffix in ("md", "csv", "png", "svg")}
        text = (run / "ablation.md").read_text()
        assert "| mean | 0.875 | 0.50 | 2.75 | 2.00 [2.00, 2.00] | 2 | 0 |" in text
        assert "| transformers' lookup | – | – | – | 1.00 [1.00, 1.00] | 2 | 0 |" in text

    def test_the_picture_names_every_step_from_above(self, run: Path) -> None:
        found = [ablation.Step(name, 0.5, 0.5, 2.0, 1.1, 1.0, 1.2, 3, 0) for name in CHAIN]
        axes = ablation.picture(found).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == CHAIN
        bottom, top = axes.get_ylim()
        assert bottom > top


class TestCommand:
    @pytest.fixture
    def ran(self, toy: list[str], tmp_path: Path) -> Ran:
        table = tmp_path / "costs.json"
        table.write_text(json.dumps({"costs": COSTS}))
        small = ("max_new_tokens=12", "n=2", "generate=false", "stop=fixed", "stop.max_draft=3", "costs.repeats=1")
        fit = ("calibration.max_new_tokens=12", "calibration.n_tokens=64", f"costs.path={table}")
        return command("evaluate", *toy, f"paths.outputs={tmp_path}", "ablation=a1 m2", *small, *fit)

    def test_makes_every_step_lossless_and_writes_it_all(self, ran: Ran) -> None:
        assert ran.status == 0, ran.err
        rows = run_files.read_rows(ran.run / run_files.RECORDS)
        assert {r["arm"] for r in rows} == {"plain", *CHAIN, *RIVALS}
        assert {r["verdict"] for r in rows} == {"baseline", "identical"}
        table = list(csv.DictReader((ran.run / "ablation.csv").read_text().splitlines()))
        assert {r["arm"] for r in table} == {*CHAIN, *RIVALS}
        assert (ran.run / "ablation.png").stat().st_size > 0
