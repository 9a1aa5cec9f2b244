"""`selfspec evaluate schedule=pearl` as typed: the arms, the rates of the machine, the prediction and the verdict."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.evaluation.overlapped import Overlap, overlap, overlap_sentences
from selfspec.overlapped.rates import Rates
from selfspec.records import run_files
from tests.commands import command, write_model

QUICK = ["max_new_tokens=6", "n=2", "generate=false", "controls=false", "quality=false"]
RATES = Rates(2, 4, 1.0, 1.0, 0.25, 1.6, 2.0, 2.0, 0.4)  # gamma 4; r = .5


def arm(rates: Rates = RATES) -> Any:
    partner = SimpleNamespace(is_there=True)
    return SimpleNamespace(name="pearl", rates=rates, partner=partner)


def rows(accepted: list[int], drafted: list[int]) -> list[dict[str, Any]]:
    return [{"arm": "pearl", "round_accepted": accepted, "round_drafted": drafted, "error": None}]


@pytest.mark.usefixtures("empty_folder")
def test_a_run_measures_predicts_and_judges_both_schedules(toy: list[str], model_folder: Path, tmp_path: Path) -> None:
    small = write_model(tmp_path / "small", n_layers=2)
    words = ["schedule=pearl", "schedule.gamma=2", "schedule.measure_s=0.02", f"model.draft_path={small}", *QUICK]
    ran = command("evaluate", *toy, *words)
    assert ran.status == 0, ran.err
    assert "by these rates PEARL needs r >= " in ran.out and "pearl: gamma 2, acceptance " in ran.out
    summary = json.loads((ran.run / run_files.SUMMARY).read_text())
    assert summary["overlapped"]["pearl"]["r"] > 0 and not summary["overlapped"]["pearl"]["is_alone"]
    answers = run_files.read_rows(ran.run / run_files.RECORDS)
    assert {row["arm"] for row in answers} == {"plain", "SmallModel, adaptive", "pearl"}
    assert {row["verdict"] for row in answers} == {"baseline", "identical"}


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["schedule=pearl", "batch=2"], "use batch=1"),
        (["schedule=pearl", "sampling=sample", "sampling.by_block=true"], "by_block=false"),
        (["schedule=pearl", "lookup=only"], "drafts copies of the text"),
        (["schedule=pearl", "schedule.gamma=17"], "1 to 16 tokens"),
        (["schedule=sequential", "schedule.gamma=2"], "schedule.gamma has no effect"),
    ],
)
def test_what_cannot_overlap_is_refused_before_a_process_starts(
    toy: list[str], words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.builders.build_overlapped.ChildPartner", lambda *a, **k: pytest.fail("started"))
    ran = command("evaluate", *toy, "skip=m2", *QUICK, *words)
    assert ran.status and message in ran.err


def test_the_prediction_is_that_of_the_closed_form() -> None:
    # 8 of 10 tested tokens stand; a rejected round leaves 3 tokens behind the rejected one untested
    found = overlap(arm(), rows([4, 4, 0, 0], [4, 4, 1, 4]))
    assert found.acceptance == 0.8 and found.n_in_a_row == 4
    assert found.predicted == pytest.approx(2.12 / 2, abs=0.005), "T is 2 for a verification of 1 alone"
    assert found.has_r == 0.5 and found.needs_r == pytest.approx(0.794, abs=0.001), "in turn 3 tokens are best: 1.69"
    lines = overlap_sentences(arm(), found, {"pearl": (1.0, 0.9, 1.1)})
    assert lines[-1] == "pearl: by these rates PEARL needs r >= 0.79 on this machine and has 0.50: it does not pay"
    fast = replace(RATES, verify_pair=1.1, draft_pair=0.25)
    pays = overlap(arm(fast), rows([4, 0], [4, 1]))
    assert overlap_sentences(arm(fast), pays, {"pearl": (pays.predicted, 1.0, 9.0)})[-1].endswith(": it pays")
    doubted = overlap_sentences(arm(fast), pays, {"pearl": (0.5, 0.4, 0.6)})[-1]
    assert "it pays; in doubt: " in doubted and "outside the measured interval" in doubted


def test_a_lost_process_and_an_untested_draft_are_told() -> None:
    nothing = overlap(arm(), rows([], []))
    assert math.isnan(nothing.acceptance) and "nothing to predict" in overlap_sentences(arm(), nothing, {})[-1]
    alone = Overlap(4, 0.8, 4.0, 1.0, 1.7, 0.8, 0.5, True)
    assert "its speed is not that of PEARL" in overlap_sentences(arm(), alone, {})[-1]
