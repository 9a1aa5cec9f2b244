"""selfspec search and selfspec profile as they are typed: what they leave behind, refuse, and go on with."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from experiments.builders.build_search import _shares
from experiments.config.composing import options
from experiments.results.run_folder import open_run
from search.draft_of_point import Drafts, fitted
from search.replay.objectives import ReplayObjective
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.records import run_files
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import read_skip_set
from selfspec.stopping import Fixed
from tests.commands import N_LAYERS, Ran, command
from tests.test_arms import COSTS
from tests.toys import slow_unless

SMALL = [
    *("objective.n_prompts=2", "objective.max_new_tokens=8", "finals.n_prompts=2"),
    *("costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=2"),
]
# Searchers that are built in different ways: of bits, of numbers, with sets made from hidden states, from a list.
WIRED = ("tpe", "cmaes", "knapsack", "uniform")
EVERY_PLAN = list(itertools.product([d for d in options("draft") if d not in ("skip", "auto")], options("head")))
PLANS = ("linear", "trimmed"), ("lowrank", "full")
SHORT = "costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=2"
REPLAYED = "value", "acceptance", "drafted", "accepted", "n_rounds", "skip", "origin", "state"


@pytest.fixture
def here(empty_folder: Path) -> Path:
    return empty_folder


def search(toy: list[str], *words: str) -> Ran:
    own = () if any(word.startswith("draft=") for word in words) else ("draft=skip",)
    ran = command("search", *toy, *SMALL, *own, *words)
    assert ran.status == 0, ran.err
    return ran


def trials(ran: Ran) -> list[dict[str, Any]]:
    return read_rows(ran.run / run_files.TRIALS)


def summary(ran: Ran) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((ran.run / run_files.SUMMARY).read_text())
    return body


class TestSearch:
    def test_a_whole_search_leaves_all_that_it_promises(self, here: Path, toy: list[str]) -> None:
        ran = search(toy, "searcher.n_trials=24", "force=true")
        names = {path.name for path in ran.run.iterdir()}
        pictures = {
            f"{name}.{kind}" for name in ("search", "skip_map", "pareto", "importance") for kind in ("png", "svg")
        }
        assert pictures | {"costs.json", "pareto.yaml", "finals.jsonl", "skip_set.yaml", "study.journal"} <= names
        rows = trials(ran)
        assert len(rows) == 24 == summary(ran)["n_trials"]
        assert sum(len(SkipSet.parse(r["skip"], N_LAYERS)) == 1 for r in rows if r["origin"] == "start") == 2 * N_LAYERS
        raced = read_rows(ran.run / "finals.jsonl")
        assert len(raced) in (3, 4) and any(row["skip"] == "none" for row in raced)  # a control, if not a finalist
        winner = summary(ran)["winner"]
        assert (
            winner | {"schema": run_files.SCHEMA} == raced[0] and winner["low"] <= winner["speedup"] <= winner["high"]
        )
        assert str(read_skip_set(ran.run)) == winner["skip"]
        saved = yaml.safe_load((ran.run / "skip_set.yaml").read_text())
        assert saved["speedup"] == pytest.approx(winner["speedup"], abs=1e-3)
        assert {r["skip"] for r in yaml.safe_load((ran.run / "pareto.yaml").read_text())["sets"]} <= {
            r["skip"] for r in rows
        }
        assert "raced on 2 prompts against plain decoding" in ran.out
        facts = json.loads((ran.run / run_files.PROVENANCE).read_text(encoding="utf-8"))["run"]
        assert len(facts["seen"]) == len(facts["prompt_ids"]) + len(facts["fresh_ids"])

    def test_finalists_are_scored_on_more_prompts_than_race(self, here: Path, toy: list[str]) -> None:
        ran = search(toy, "searcher.n_trials=2", "starts=[nothing]", "objective.n_prompts=1", "finals.n_prompts=1")
        facts = json.loads((ran.run / run_files.PROVENANCE).read_text(encoding="utf-8"))["run"]
        assert "raced on 1 prompts" in ran.out and len(facts["fresh_ids"]) == 3, "all that the search left"

    def test_a_search_that_cannot_pay_ends_with_the_reason_unless_forced(self, here: Path, toy: list[str]) -> None:
        ran = search(toy, "searcher.n_trials=30", "stop=fixed")
        verdict = summary(ran)["verdict"]
        assert verdict["bound"] < 1.02, "the toy's sublayers are all needed"
        assert "plain skipping will not pay" in ran.out and "force=true goes on" in ran.out
        assert len(trials(ran)) < 30
        forced = command("search", f"resume={ran.run}", "force=true")
        assert forced.status == 0, forced.err
        assert len(trials(ran)) == 30

    @pytest.mark.parametrize(
        "searcher", [slow_unless(s, in_every_run=WIRED) for s in options("searcher") if s != "paper"]
    )
    def test_every_searcher_runs(self, searcher: str, here: Path, toy: list[str]) -> None:
        ran = search(toy, f"searcher={searcher}", "searcher.n_trials=7", "starts=[nothing]", "finals.top=0")
        rows = trials(ran)
        assert rows[0]["skip"] == "none" and 2 <= len(rows) <= 7
        assert len({r["skip"] for r in rows if r["origin"] == "searcher"}) > 0

    @pytest.mark.parametrize("objective", options("objective"))
    def test_every_objective_runs(self, objective: str, here: Path, toy: list[str]) -> None:
        ran = search(toy, f"objective={objective}", "searcher.n_trials=5")
        assert {r["state"] for r in trials(ran)} <= {"complete", "pruned"}
        assert summary(ran)["winner"] is not None

    def test_two_searches_by_expected_speedup_are_equal(self, here: Path, toy: list[str]) -> None:
        first = search(toy, "searcher.n_trials=12", "finals.top=0")
        second = search(toy, "searcher.n_trials=12", "finals.top=0")
        same = [[{k: r[k] for k in REPLAYED} for r in trials(ran)] for ran in (first, second)]
        assert same[0] == same[1]

    def test_resume_goes_on_as_if_uninterrupted(
        self, here: Path, toy: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = search(toy, "searcher.n_trials=12", "finals.top=0", "searcher=tpe")
        score, calls = ReplayObjective.__call__, 0

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 8:
                raise KeyboardInterrupt
            return score(*args, **kwargs)

        monkeypatch.setattr(ReplayObjective, "__call__", interrupted)
        cut = command("search", *toy, *SMALL, "draft=skip", "searcher.n_trials=12", "finals.top=0", "searcher=tpe")
        assert cut.status == 130 and cut.err.endswith(f"interrupted; what was finished is in {cut.run}\n"), cut.err
        assert open_run(cut.run, here).state == "interrupted" and not run_files.is_finished(cut.run)
        assert summary(cut)["ended"] == "interrupted" and len(trials(cut)) == 6
        assert "interrupted; resume=RUN goes on" in cut.out
        resumed = command("search", f"resume={cut.run}")
        assert resumed.status == 0, resumed.err
        same = [[{k: r[k] for k in REPLAYED} for r in trials(ran)] for ran in (whole, cut)]
        assert same[0] == same[1]
        assert summary(cut)["ended"] == "trials"

    def test_constraints_hold_for_every_trial(self, here: Path, toy: list[str]) -> None:
        ran = search(toy, "constraints={n_skipped: 3, keep_first: 1}", "searcher.n_trials=8", "finals.top=0")
        sets = [SkipSet.parse(r["skip"], N_LAYERS) for r in trials(ran)]
        assert all(len(skip) == 3 and 0 not in skip.attn | skip.mlp for skip in sets)

    def test_a_cost_cap_holds(self, here: Path, toy: list[str]) -> None:
        (here / "costs.json").write_text(
            json.dumps({"costs": COSTS})
        )  # a busy machine might measure none below the cap
        words = "costs.path=costs.json", "constraints.max_cost=0.9", "searcher.n_trials=8", "finals.top=0"
        ran = search(toy, *words)
        assert all(len(SkipSet.parse(r["skip"], N_LAYERS)) for r in trials(ran))

    def test_a_memory_cap_holds(self, here: Path, toy: list[str]) -> None:
        ran = search(toy, "constraints.max_memory=0.9", "searcher.n_trials=8", "finals.top=0")
        assert all(len(SkipSet.parse(r["skip"], N_LAYERS)) for r in trials(ran))

    def test_a_cap_is_on_the_draft_not_on_the_skip_set_alone(self, here: Path, toy: list[str]) -> None:
        """Weights of four bits keep it with nothing skipped, where the model's own do not."""
        settings = [
            "constraints.max_memory=0.7",
            "searcher.n_trials=2",
            "finals.top=0",
            "starts=[nothing]",
            "force=true",
        ]
        assert trials(search(toy, *settings, "precision=int4"))[0]["skip"] == "none"
        assert trials(search(toy, *settings))[0]["skip"] != "none"

    def test_a_tuned_stop_rule_is_saved_with_the_set(self, here: Path, toy: list[str]) -> None:
        ran = search(toy, "objective.tune_stop=true", "searcher.n_trials=6", "stop=threshold")
        saved = yaml.safe_load((ran.run / "skip_set.yaml").read_text())
        assert saved["stop"]["name"] == "pause_when_unprofitable" and saved["stop"]["rule"]["name"] == "threshold"
        assert all(r["stop"]["name"] == "threshold" for r in trials(ran))

    def test_without_pauses_the_rule_is_saved_as_it_is(self, here: Path, toy: list[str]) -> None:
        ran = search(toy, "searcher.n_trials=3", "stop=threshold", "pause=false")
        assert yaml.safe_load((ran.run / "skip_set.yaml").read_text())["stop"]["name"] == "threshold"

    @pytest.mark.parametrize("combine", ["mean", "worst"])
    def test_several_data_sets_are_scored_together(
        self, combine: str, here: Path, toy: list[str], model_folder: Path
    ) -> None:
        longer = shutil.copytree(model_folder, here / "longer")  # the shipped prompts need more than the toy's context
        config = json.loads((longer / "config.json").read_text())
        (longer / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
        words = f"model.path={longer}", "objective.data=[jsonl,mini]", f"objective.combine={combine}", "finals.top=0"
        ran = search(toy, *words, "searcher.n_trials=3", "objective.n_prompts=1", "objective.max_new_tokens=4")
        for row in trials(ran):
            each = row["values"]
            assert len(each) == 2
            assert row["value"] == pytest.approx(min(each) if combine == "worst" else sum(each) / 2)

    def test_starts_come_from_earlier_runs(self, here: Path, toy: list[str]) -> None:
        first = search(toy, "searcher.n_trials=6", "finals.top=0")
        second = search(toy, f"start={first.run}", "starts=[]", "searcher.n_trials=5", "finals.top=0")
        best = sorted(trials(first), key=lambda r: -r["value"])
        assert trials(second)[0]["skip"] == best[0]["skip"]

    def test_workers_share_one_search(self, here: Path, toy: list[str]) -> None:
        words = "storage=shared.journal", "searcher.n_trials=6", "name=together"
        other = search(toy, *words, "worker=1")
        assert len(trials(other)) == 6 and summary(other)["winner"] is None
        first = search(toy, *words, "worker=0")
        assert [r["skip"] for r in trials(first)] == [r["skip"] for r in trials(other)]
        assert summary(first)["winner"] is not None

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ("searcher.max_s=0", "searcher.max_s=0"),
            ("searcher.patience=0", "searcher.patience=0"),
            ("prune.p=0.7", "p=0.7"),
            ("finals.race=0", "finals.race=0"),
            ("objective.combine=best", "mean, worst"),
            ("worker=2", "storage names no place"),
            ("starts=[nohing]", "unknown kind of start 'nohing'"),
            ("start=nowhere", "nowhere"),
            ("constraints.n_skipped=99", "99"),
            ("constraints.max_cost=0.5 objective=tokens_per_second", "needs a cost table"),
            ("objective.data=[minni]", "did you mean 'mini'?"),
            ("costs.path=nowhere.json", "nowhere.json"),
            ("storage=mysql://x/y", "sqlite:///FILE"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, words: str, told: str, here: Path, toy: list[str]) -> None:
        ran = command("search", "draft=skip", *toy, *SMALL, "searcher.n_trials=3", *words.split())
        assert ran.status == 2
        (line,) = [li for li in ran.error_lines if not li.startswith(("measuring", "costs:", "no importance"))]
        assert told in line
        assert not list(here.glob("outputs/search/*/*")), "a run that never began looks as if it went on"

    def test_a_missing_package_is_told_before_anything_looks_begun(
        self, here: Path, toy: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "bayes_opt", None)
        ran = command("search", "draft=skip", *toy, *SMALL, "searcher=paper")
        assert ran.status == 2 and "pip install 'selfspec[paper]'" in ran.err
        assert not list(here.glob("outputs/search/*/*"))


class TestProfile:
    def test_costs_are_measured_once_checked_and_refreshed_by_a_flag(self, here: Path, toy: list[str]) -> None:
        first = command("profile", *toy, *SHORT, "check=3")
        assert first.status == 0, first.err
        assert "measured now" in first.out and "of 3 random skip sets" in first.out
        assert len(read_rows(first.run / "checks.jsonl")) == 3
        (table,) = (here / "outputs" / "cache" / "costs").glob("*.json")
        body = json.loads(table.read_text())
        assert body["of"]["dtype"] == "float64" and body["provenance"]["cpu"]
        assert body["costs"]["contexts"] == [8, 24]
        again = command("profile", *toy, *SHORT, "check=0")
        assert "measured before" in again.out
        assert json.loads(table.read_text()) == body
        refreshed = command("profile", *toy, *SHORT, "check=0", "costs.refresh=true")
        assert "measured now" in refreshed.out
        assert json.loads(table.read_text()) != body

    def test_contexts_stay_inside_the_models(self, here: Path, toy: list[str]) -> None:
        ran = command("profile", *toy, "costs.repeats=1", "costs.max_tokens=4", "check=0")
        assert ran.status == 0, ran.err
        (table,) = (here / "outputs" / "cache" / "costs").glob("*.json")
        assert max(json.loads(table.read_text())["costs"]["contexts"]) < 96

    def test_a_negative_check_is_refused(self, here: Path, toy: list[str]) -> None:
        assert "check=-1" in command("profile", *toy, "check=-1").err


@pytest.mark.slow
def test_hydra_starts_the_workers_through_submitit(here: Path, toy: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    words = [
        *toy,
        *SMALL,
        "draft=skip",
        "searcher.n_trials=6",
        "starts=[nothing]",
        f"storage={here / 'shared.journal'}",
        "name=together",
    ]
    launcher = ["-m", "worker=0,1", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    code = "import sys; from experiments.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code, "search", *launcher, *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    runs = sorted((here / "outputs" / "search" / "together").iterdir())
    assert len(runs) == 2
    first, second = ([r["skip"] for r in read_rows(run / run_files.TRIALS)] for run in runs)
    assert sorted(first) == sorted(second) and len(first) == 6
    assert sum((run / "finals.jsonl").exists() for run in runs) == 1


class TestPlans:
    @pytest.mark.parametrize(("draft", "head"), [slow_unless(pair, in_every_run=PLANS) for pair in EVERY_PLAN])
    def test_a_plan_is_searched_saved_evaluated_and_decoded_with(
        self, draft: str, head: str, here: Path, toy: list[str]
    ) -> None:
        rank = ["draft.rank=4"] if draft == "lowrank" else []
        trimmed = ["head.n=40", "head.others=[20]"] if head == "trimmed" else []
        small = ["objective.n_prompts=1", "finals.n_prompts=1", "calibration.max_new_tokens=12", *rank, *trimmed]
        ran = search(toy, f"draft={draft}", f"head={head}", "searcher.n_trials=8", "starts=[nothing,uniform]", *small)
        assert (ran.run / "plan.yaml").is_file()
        plan = yaml.safe_load((ran.run / "plan.yaml").read_text())
        assert plan["skip"] == summary(ran)["winner"]["skip"]
        finals = read_rows(ran.run / "finals.jsonl")
        assert plan["head_size"] == summary(ran)["winner"]["head"]
        assert {row["head"] for row in finals} <= ({40, 20} if head == "trimmed" else {None})
        evaluated = command("evaluate", *toy, f"skip={ran.run}", "max_new_tokens=8", "n=2")
        assert evaluated.status == 0, evaluated.err
        arms = "arms={both: {lookup: front, skip: a1}, copy: {lookup: only}}"
        behind = command(
            "evaluate", *toy, f"skip={ran.run}", "lookup=front", "arm=mine", arms, "max_new_tokens=8", "n=2"
        )
        assert behind.status == 0, behind.err
        decoded = command("decode", *toy, "prompt=one two", f"skip={ran.run}", "max_new_tokens=8")
        assert decoded.status == 0, decoded.err

    def test_evaluate_and_decode_take_the_rule_and_lookup_of_the_search(self, here: Path, toy: list[str]) -> None:
        asked = "stop=threshold", "stop.max_draft=3", "stop.threshold=0.4", "lookup=front"
        ran = search(toy, "precision=int8", *asked, "searcher.n_trials=4", "starts=[nothing]", "finals.n_prompts=1")
        words = f"skip={ran.run}", "stop=searched", "lookup=searched", "max_new_tokens=8"
        evaluated = command("evaluate", *toy, *words, "n=1", "arms={odd: {skip: a1, stop: fixed, lookup: null}}")
        assert evaluated.status == 0, evaluated.err
        arms = json.loads((evaluated.run / run_files.PROVENANCE).read_text())["run"]["arms"]
        mine = next(about for name, about in arms.items() if name not in ("plain", "generate", "odd"))
        assert (mine["stop"], mine["lookup"]) == ("threshold, paying", "front")
        assert max(max(r["round_drafted"]) for r in read_rows(evaluated.run / run_files.RECORDS) if r["drafted"]) <= 10
        decoded = command("decode", *toy, "prompt=one two", *words)
        assert decoded.status == 0 and "stop=threshold" in decoded.out, decoded.err
        refused = command("evaluate", *toy, "skip=a1", "stop=searched")
        assert refused.status == 2 and "not the folder of a search" in refused.err

    def test_without_prompts_to_fit_on_the_search_and_its_finals_take_fewer(self, here: Path, toy: list[str]) -> None:
        words = "draft=linear", "objective.n_prompts=4", "calibration.max_new_tokens=8", "searcher.n_trials=2"
        ran = command("search", *toy, *SMALL, *words, "starts=[nothing]")
        assert ran.status == 0 and "they get 1, 1 and 2" in ran.err, ran.err
        told = json.loads((ran.run / run_files.PROVENANCE).read_text())["run"]
        assert (len(told["prompt_ids"]), len(told["fresh_ids"])) == (1, 1) and told["calibration_tokens"] > 8

    @pytest.mark.parametrize(
        ("found", "asked", "expected"),
        [
            (12, (8, 8), (4, 4)),
            (12, (8, 0), (8, 0)),
            (8, (8, 0), (4, 0)),
            (17, (8, 8), (8, 8)),
            (16, (2, 14), (2, 5)),
            (2, (8, 8), (8, 8)),
        ],
    )
    def test_prompts_are_shared_out_only_where_none_would_be_left(
        self, found: int, asked: tuple[int, int], expected: tuple[int, int]
    ) -> None:
        """`mini` has 12. Of two, none can be left: drafts that are made of texts are refused then."""
        assert _shares("mini", found, *asked) == expected

    def test_drafts_that_are_made_of_texts_are_refused_where_there_are_none(self) -> None:
        drafts = Drafts(Fixed(2), "linear")
        with pytest.raises(InputError, match="none are left; give data with more of them"):
            fitted(drafts, cast(Decoder, None), [], n_tokens=8, max_new_tokens=8)
