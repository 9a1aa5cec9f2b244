"""A search over trained drafts: trainings that fall behind end early, a stopped one goes on, finals have controls."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from experiments.builders import build_trained_search
from search.dimensions import dimensions
from search.samplers.optuna_samplers import gp, random, tpe
from search.trained.objective import Outcome
from search.trained.study import Rungs, TrainedStudy
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.training.heldout import HeldOut, RoundCosts
from tests.commands import command

SPACE = {
    "drafter": ["eagle", "bridged"],
    "width": {"values": [4, 8, 16], "when": {"drafter": ["bridged"]}},
    "rate": {"low": 0.0, "high": 1.0},
}
EVERY, STEPS = 2, 18


class Planted:
    """Trainings without a model: the value of a point rises with its steps, and one kind is best."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.stop_at, self.n_looks = stop_at, 0

    def __call__(self, settings: Mapping[str, Any], *, should_continue: Any, **changed: Any) -> Outcome:
        if settings.get("width") == 4:
            raise InputError("no such draft")
        quality = settings["rate"] * (0.9 if settings["drafter"] == "bridged" else 0.5)
        done, pruned = 0, False
        while done < changed["max_steps"] and not pruned:
            done += changed["check_every"]
            self.n_looks += 1
            if self.n_looks == self.stop_at:
                raise KeyboardInterrupt
            pruned = not should_continue(done, 1 + quality * done / STEPS)
        self.steps.append(done)
        held = HeldOut(10, (min(1.0, quality * done / STEPS),))
        return Outcome(DraftPlan(SkipSet(2)), RoundCosts(0.0, (1.0, 1.0)), held, None, done, 1.0, pruned)


def study(folder: Path | None = None, make: Any = tpe, pruner: Any = "halving") -> TrainedStudy:
    more = {} if make is random else {"n_startup_trials": 6}
    rungs = Rungs(STEPS, EVERY, 3, pruner)
    return TrainedStudy(dimensions(SPACE), lambda seed: make(seed=seed, **more), rungs, seed=0, folder=folder)


def go(found: TrainedStudy, planted: Planted, n_trials: int = 30) -> list[dict[str, Any]]:
    found.run(
        planted,  # type: ignore[arg-type]
        n_trials=n_trials,
        max_s=None,
        stopwatch=Stopwatch(clock=itertools.count().__next__),
        listener=lambda row: None,
    )
    return found.rows


@pytest.mark.parametrize(("make", "pruner"), [(tpe, "halving"), (gp, "halving"), (tpe, "hyperband"), (random, "none")])
def test_the_best_kind_is_found_and_the_others_end_early(make: Any, pruner: str) -> None:
    found, planted = study(None, make, pruner), Planted()
    rows = go(found, planted, 14 if make is gp else 30)
    (settings, value), *_ = found.top(2)
    assert settings["drafter"] == "bridged" and value > 1.4
    assert {row["state"] for row in rows} >= ({"complete"} if pruner == "none" else {"complete", "pruned"})
    assert all("no such draft" in row["reason"] for row in rows if row["state"] == "failed")
    assert all("width" not in row["settings"] for row in rows if row["settings"]["drafter"] == "eagle")
    assert (sum(planted.steps) < 0.7 * STEPS * len(rows)) == (pruner != "none")


@pytest.mark.filterwarnings("ignore:The reported value is ignored")  # a planted training begins anew
def test_a_stopped_search_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = go(study(tmp_path / "a"), Planted(), 6)
    with pytest.raises(KeyboardInterrupt):
        go(study(tmp_path / "b"), Planted(stop_at=8), 6)
    again = go(study(tmp_path / "b"), Planted(), 6)
    assert 0 < len(again) == len(whole)
    told = [[{k: v for k, v in row.items() if k != "elapsed_s"} for row in rows] for rows in (whole, again)]
    assert told[0] == told[1]
    with pytest.raises(InputError, match="belongs to a search with"):
        TrainedStudy(
            dimensions(SPACE), lambda seed: tpe(seed=seed, n_startup_trials=1), Rungs(), seed=0, folder=tmp_path / "a"
        )


def test_impossible_rungs_are_one_line() -> None:
    for wrong in ({"steps": 3, "check_every": 4}, {"reduction": 1}, {"pruner": "axe"}):
        with pytest.raises(InputError):
            Rungs(**wrong)  # type: ignore[arg-type]


def test_from_space_to_race_with_controls(toy: list[str], tmp_path: Path) -> None:
    words = [*toy, f"paths.outputs={tmp_path}"]
    store = ("samples=2", "temperatures=[0.0,1.0]", "max_new_tokens=10", "batch=4", "n=2")
    assert command("collect", *words, *store).status == 0
    short = (
        "training.steps=4",
        "training.check_every=2",
        "training.train={slots: 64, bf16: false}",
        "training.full={epochs: 1}",
    )
    costs = ("costs.repeats=2", "costs.contexts=[8]", "costs.max_tokens=6", "training.max_new_tokens=8")
    space = "space={drafter: [bridged, blockwise], adapter: {values: [low_rank, none], when: {drafter: bridged}}, "
    space += "skip: {values: [a1 m1], when: {drafter: bridged}}, vocabulary: [full]}"
    ran = command(
        "search",
        "recipe=trained",
        *words,
        *short,
        *costs,
        space,
        "searcher.n_trials=4",
        "finals.top=1",
        "finals.race=1",
        "training.trees=[chain, best_first]",
        "training.stops=[optimal, svip]",
    )
    assert ran.status == 0, ran.err
    rows = [json.loads(line) for line in (ran.run / "trials.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["state"] in ("complete", "pruned") for row in rows)
    finals = [json.loads(line) for line in (ran.run / "finals.jsonl").read_text().splitlines()]
    forms = [(row["settings"].get("tree"), row["settings"].get("stop")) for row in finals]
    assert {(t, s) for t in ("chain", "best_first") for s in ("optimal", "svip")} == set(forms) - {(None, None)}
    controls = {row["settings"].get("control") for row in finals}
    assert {None, "nothing skipped"} <= controls
    assert ("untrained linear maps" in controls) == any(row["settings"]["drafter"] == "bridged" for row in finals)
    saved = yaml.safe_load((ran.run / "plan.yaml").read_text())
    assert saved["stop"].get("draft_cost", 1) > 0 and saved["stop"]["name"] == finals[0]["stop"]["name"]
    assert ("tree" in saved) == (forms[0][0] == "best_first")
    assert command("runs", "list", str(tmp_path)).status == 0
    again = command("search", f"resume={ran.run}", "searcher.n_trials=5")
    assert again.status == 0 and len((ran.run / "trials.jsonl").read_text().splitlines()) == 5, again.err


def test_what_has_no_effect_on_a_trained_search_is_refused() -> None:
    for word, said in (
        ("precision=int4", "space.precision"),
        ("force=true", "no effect"),
        ("+draft.rank=3", "no effect"),
    ):
        with pytest.raises(InputError, match=said):
            build_trained_search.check_words(["recipe=trained", word])
    for space, said in (({"drafter": ["layer_skip"]}, "not trained"), ({"hope": [1, 2]}, "hope")):
        with pytest.raises(InputError, match=said):
            build_trained_search.space(DictConfig({"space": space}))


def test_choices_of_kinds_that_are_not_searched_fall_away() -> None:
    space = {
        "drafter": ["eagle", "blockwise"],
        "features": {"values": ["last", "three"], "when": {"drafter": ["eagle", "eagle3"]}},
        "adapter": {"values": ["none", "layer"], "when": {"drafter": ["bridged"]}},
        "width": {"values": [4, 8], "when": {"adapter": ["layer"]}},
    }
    found = build_trained_search.space(DictConfig({"space": space}))
    assert [(d.name, dict(d.when)) for d in found] == [("drafter", {}), ("features", {"drafter": ("eagle",)})]
