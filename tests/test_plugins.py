"""What a user adds from outside, by --config-dir, is chosen, checked, run, written down and found again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from experiments.config.composing import composing, config_dir, option, options, split_config_dir
from experiments.verbs.reproduce import PLAN
from selfspec.errors import InputError
from selfspec.records import run_files
from tests.commands import Ran, command
from tests.plugins import FILES, write_plugins

COSTS = {
    **{"contexts": [16], "attn_s": [1.0], "mlp_s": 2.0, "base_s": 3.0, "full_s": [24.0]},
    **{"verify_s": [24.0 + n for n in range(17)]},
}
RULE = {"_target_": "my_rules.Patient", "max_draft": 3, "least": 0.01}


@pytest.fixture
def mine(empty_folder: Path) -> Iterator[Path]:
    """The user's folder, in the current one; what was imported from it is forgotten afterwards."""
    yield write_plugins(empty_folder / "mine")
    for name in ("my_rules", "my_search", "my_data", "my_drafts", "my_control"):
        sys.modules.pop(name, None)


@pytest.fixture
def words(model_folder: Path, empty_folder: Path) -> list[str]:
    """Settings that make any verb run in a blink."""
    return ["model=local", f"model.path={model_folder}", "model.dtype=float64", "threads=1", "data=mine"]


@pytest.fixture
def searching(words: list[str], empty_folder: Path) -> list[str]:
    table = empty_folder / "costs.json"
    table.write_text(json.dumps({"costs": COSTS}))
    return [*words, f"costs.path={table}", "starts=[nothing]", "objective.n_prompts=2", "objective.max_new_tokens=6"]


SMALL = ("n=2", "max_new_tokens=6", "generate=false")
FINALS = ("finals.top=1", "finals.n_prompts=1")


def finished(ran: Ran) -> Ran:
    assert ran.status == 0, ran.err
    return ran


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"], ["-cd=mine"]])
def test_the_flag_is_read_in_every_form(flag: list[str], mine: Path) -> None:
    assert split_config_dir(["skip=a1", *flag, "-m"]) == (mine, ["skip=a1", "-m"])


class TestMistakes:
    @pytest.mark.parametrize(
        ("asked", "piece"),
        [
            (["stop=mine"], "unknown stop rule 'mine'"),
            (["--config-dir=mine", "stop=min"], "did you mean 'mine'?"),
            (["--config-dir=mine", "searcher=tpe"], "unknown setting 'searcher'"),
            (["--config-dir=mine", "stop=mine", "stop.leest=1"], "did you mean 'stop.least'?"),
            (["--config-dir=mine", "stop=mine", "stop.max_draft=many"], "a whole number"),
            (
                ["--config-dir=mine", "stop=mine", "stop.least=null"],
                "stop.least=null was asked for, but it must be a number",
            ),
            (["--config-dir=mine", "stop=mine", "+stop.other=1"], "unknown setting 'stop.other'"),
            (["--config-dir=yours"], "--config-dir yours: no such folder"),
            (["--config-dir"], "--config-dir: no such folder"),
            (["-m", "--config-dir=mine", "stop=mine,fixd"], "did you mean 'fixed'?"),
        ],
    )
    def test_is_one_line(self, asked: list[str], piece: str, mine: Path) -> None:
        ran = command("evaluate", *asked)
        assert (ran.status, len(ran.error_lines)) == (2, 1) and piece in ran.err, ran.err

    def test_a_name_that_the_package_has_is_told(self, mine: Path) -> None:
        (mine / "stop/fixed.yaml").write_text("_target_: my_rules.Patient\n")
        ran = command("evaluate", "--config-dir=mine")
        assert ran.status == 2 and "stop/fixed.yaml has the name of an option of selfspec" in ran.err

    def test_a_class_that_is_not_there_is_told(self, mine: Path, words: list[str]) -> None:
        (mine / "my_rules.py").unlink()
        ran = command("evaluate", "--config-dir=mine", *words, "stop=mine")
        assert ran.status == 2 and len(ran.error_lines) == 1 and "my_rules.Patient" in ran.err, ran.err


class TestOptions:
    def test_are_those_of_the_package_and_the_user_s(self, mine: Path) -> None:
        alone = options("stop")
        with composing(mine):
            assert options("stop") == sorted([*alone, "mine"]) and config_dir() == mine
            assert option("stop", "mine") == RULE
            with composing():
                assert "mine" in options("data")
        assert options("stop") == alone and config_dir() is None

    def test_an_option_may_start_from_one_of_the_package(self, mine: Path) -> None:
        (mine / "stop/short.yaml").write_text("defaults: [fixed, _self_]\nmax_draft: 2\n")
        with composing(mine):
            assert option("stop", "short") == {"_target_": "selfspec.stopping.Fixed", "max_draft": 2}

    def test_nothing_of_a_command_stays_behind(self, mine: Path) -> None:
        before = sys.path[:]
        command("evaluate", "--config-dir=mine", "stop=nothing")
        assert not GlobalHydra.instance().is_initialized() and sys.path == before
        assert "mine" not in options("stop")

    def test_help_shows_them(self, mine: Path) -> None:
        assert "mine, optimal" in finished(command("evaluate", "--config-dir=mine", "--help")).out

    def test_files_of_the_folder_take_the_place_of_nothing_installed(self, mine: Path, words: list[str]) -> None:
        (mine / "yaml.py").write_text("raise AssertionError('imported')\n")
        (mine / "selfspec.py").write_text("raise AssertionError('imported')\n")
        finished(command("evaluate", "--config-dir=mine", *words, *SMALL, "skip=a1", "stop=mine"))


class TestEvaluate:
    def test_a_rule_and_a_data_set_and_arms_with_it(self, mine: Path, words: list[str]) -> None:
        arms = "arms={other: {skip: a2, stop: mine}, short: {skip: a2, stop: {mine: {max_draft: 1}}}}"
        ran = finished(
            command("evaluate", "--config-dir", "mine", *words, *SMALL, "skip=a1", "stop=mine", "controls=false", arms)
        )
        rows = run_files.read_rows(ran.run / run_files.RECORDS)
        assert {row["verdict"] for row in rows} == {"baseline", "identical"}
        assert {row["prompt_id"] for row in rows} == {"evaluation-0", "evaluation-5"} or len(rows) == 8
        assert max(max(r["round_drafted"]) for r in rows if r["arm"] == "short") == 1
        assert max(max(r["round_drafted"]) for r in rows if r["arm"] == "other") > 1

    def test_a_rule_in_the_current_folder_needs_no_flag(self, mine: Path, toy: list[str]) -> None:
        (mine / "my_rules.py").rename("my_rules.py")
        asked = ["stop._target_=my_rules.Patient", "+stop.least=0.5"]
        finished(command("evaluate", *toy, *SMALL, "skip=a1", "stop=fixed", *asked))


class TestSearch:
    @pytest.fixture
    def found(self, mine: Path, searching: list[str]) -> Ran:
        asked = ["searcher=mine", "stop=mine", "objective.tune_stop=true", *FINALS]
        return finished(command("search", "draft=skip", "--config-dir=mine", *searching, *asked))

    def test_proposes_what_the_searcher_says_and_tunes_what_the_rule_says(self, found: Ran) -> None:
        trials = run_files.read_rows(found.run / run_files.TRIALS)
        assert [row["skip"] for row in trials] == ["none", "m3", "a3", "m2"]
        assert {row["stop"]["_target_"] for row in trials} == {"my_rules.Patient"}

    def test_is_evaluated_with_its_rule_and_with_another(self, found: Ran, words: list[str]) -> None:
        saved = yaml.safe_load((found.run / "skip_set.yaml").read_text())["stop"]
        assert saved["name"] == "pause_when_unprofitable" and saved["rule"]["_target_"] == "my_rules.Patient"
        for stop, predicted in (("searched", True), ("fixed", False)):
            ran = finished(
                command("evaluate", "--config-dir=mine", *words, *SMALL, f"skip={found.run}", f"stop={stop}")
            )
            assert bool(json.loads((ran.run / run_files.SUMMARY).read_text())["predicted"]) == predicted

    def test_without_its_file_another_rule_can_still_be_evaluated(
        self, found: Ran, words: list[str], mine: Path, toy: list[str]
    ) -> None:
        (mine / "my_rules.py").unlink()
        sys.modules.pop("my_rules")
        finished(command("evaluate", *toy, *SMALL, f"skip={found.run}", "stop=fixed"))
        ran = command("evaluate", *toy, *SMALL, f"skip={found.run}", "stop=searched")
        assert ran.status == 2 and "'my_rules.Patient' cannot be imported" in ran.err

    def test_goes_on_with_the_folder_given_again(self, found: Ran) -> None:
        more = command("search", "--config-dir=mine", f"resume={found.run}", "searcher.n_trials=6")
        assert len(run_files.read_rows(finished(more).run / run_files.TRIALS)) == 6

    def test_a_computed_searcher_gets_costs_if_it_takes_them(self, mine: Path, searching: list[str]) -> None:
        asked = ["searcher=priced", "finals.top=0"]
        ran = finished(command("search", "draft=skip", "--config-dir=mine", *searching, *asked))
        assert [row["skip"] for row in run_files.read_rows(ran.run / run_files.TRIALS)] == ["none", "a1-2 m2"]
        refused = command("search", "draft=skip", "--config-dir=mine", *searching, *asked, "objective=matchness")
        assert refused.status == 2 and "objective=expected_speedup" in refused.error_lines[-1]

    def test_several_data_sets_may_be_the_user_s(self, mine: Path, searching: list[str]) -> None:
        (mine / "data/other.yaml").write_text("defaults: [mine, _self_]\nname: other\ntask: {n: 4}\n")
        asked = ["objective.data=[mine,other]", "searcher=mine", "finals.top=0"]
        ran = finished(command("search", "draft=skip", "--config-dir=mine", *searching, *asked))
        assert yaml.safe_load((ran.run / "skip_set.yaml").read_text())["data"] == "mine,other"

    def test_a_rule_that_proposes_nothing_cannot_be_tuned(self, mine: Path, searching: list[str]) -> None:
        rules = mine / "my_rules.py"
        rules.write_text(rules.read_text().replace("def variants", "def others"))
        ran = command("search", "draft=skip", "--config-dir=mine", *searching, "stop=mine", "objective.tune_stop=true")
        assert ran.status == 2 and "Patient proposes no other settings" in ran.err and ran.out == ""


def test_a_sweep_has_them_in_each_job(mine: Path, words: list[str]) -> None:
    ran = finished(command("evaluate", "-m", "--config-dir=mine", *words, *SMALL, "skip=a1", "stop=mine,fixed"))
    stops = {yaml.safe_load(file.read_text())["stop"]["_target_"] for file in Path("outputs").rglob("config.yaml")}
    assert stops == {"my_rules.Patient", "selfspec.stopping.Fixed"}, ran.err


def test_an_experiment_hands_the_folder_on_to_its_steps(
    mine: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine / "experiment").mkdir()
    steps = {"first": "evaluate skip=a1 stop=mine", "second": "evaluate skip=a2 stop=mine"}
    body = {"defaults": ["_base", "_self_"], "name": "own", "settings": " ".join([*words, *SMALL]), "steps": steps}
    (mine / "experiment/own.yaml").write_text("# Own steps.\n" + yaml.safe_dump(body))
    told = finished(command("reproduce", "--config-dir=mine", "experiment=own", "dry_run=true"))
    assert told.out.count(f"--config-dir={mine}") == 2
    ran = finished(command("reproduce", "--config-dir=mine", "experiment=own"))
    folder = Path(ran.out.splitlines()[-1].removeprefix("run: "))
    assert [step["words"][0] for step in json.loads((folder / PLAN).read_text())["steps"]] == [
        f"--config-dir={mine}"
    ] * 2
    steps_file = folder / "steps.jsonl"
    steps_file.write_text(steps_file.read_text().splitlines()[0] + "\n")
    for run in (folder / "runs/evaluate/second").iterdir():
        (run / run_files.SUMMARY).unlink()
    sys.modules.pop("my_rules")
    finished(command("reproduce", f"resume={folder}"))
    assert len(run_files.read_rows(steps_file)) == 2


@pytest.mark.parametrize(("batch", "drafts"), [(2, True), (3, False)])
def test_a_controller_says_how_far_a_batch_drafts(batch: int, drafts: bool, mine: Path, words: list[str]) -> None:
    asked = ["n=3", "max_new_tokens=6", "generate=false", "controls=false", "skip=a1", "controller=mine"]
    ran = finished(command("evaluate", "--config-dir=mine", *words, *asked, f"batch={batch}"))
    rows = [row for row in run_files.read_rows(ran.run / run_files.RECORDS) if row["arm"] != "plain"]
    assert {row["verdict"] for row in rows} == {"identical"}
    assert any(row["drafted"] for row in rows) is drafts


def test_every_file_of_the_example_is_short() -> None:
    assert {name: n for name, text in FILES.items() if (n := len(text.strip().splitlines())) > 40} == {}


def test_a_folder_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="no such folder"):
        split_config_dir(["--config-dir=/nowhere/at/all"])


class TestDrafter:
    """A drafter of thirty lines: a tree by the draft of a skip set, evaluated and searched like the built-in one."""

    def test_is_evaluated_beside_the_built_in_one(self, words: list[str], mine: Path) -> None:
        arms = "arms={chain: {skip: m2, drafter: layer_skip}}"
        ran = finished(
            command("evaluate", "--config-dir=mine", *words, *SMALL, "skip=m2", "drafter=pairs", "arm=own", arms)
        )
        (run,) = Path("outputs/evaluate").glob("*/*")
        rows = [row for row in run_files.read_rows(run / run_files.RECORDS) if row["arm"] == "own"]
        assert rows and {row["verdict"] for row in rows} == {"identical"}
        assert sum(row["drafted"] for row in rows) > sum(row["accepted"] for row in rows) > 0
        assert max(drafted for row in rows for drafted in row["round_drafted"]) == 4
        assert "own" in ran.out

    @pytest.mark.parametrize("objective", ["expected_speedup", "tokens_per_second"])
    def test_is_searched_and_raced(self, objective: str, searching: list[str], mine: Path) -> None:
        asked = ["--config-dir=mine", *searching, "searcher=tpe", "searcher.n_trials=4", f"objective={objective}"]
        finished(command("search", *asked, "drafter=pairs", "force=true", *FINALS))
        (run,) = Path("outputs/search").glob("*/*")
        rows = run_files.read_rows(run / run_files.TRIALS)
        assert len(rows) == 4 and {row["state"] for row in rows} == {"complete"}
        finals = run_files.read_rows(run / run_files.FINALS)
        assert finals[0]["n_prompts"] == 1
        ran = finished(command("evaluate", "--config-dir=mine", *searching[:5], *SMALL, f"skip={run}", "stop=searched"))
        assert "Pairs" in json.dumps(
            json.loads((next(Path("outputs/evaluate").glob("*/*")) / run_files.PROVENANCE).read_text())
        )
        assert ran.status == 0

    def test_one_that_breaks_the_rules_fails_its_trials_with_the_reason(self, searching: list[str], mine: Path) -> None:
        file = mine / "my_drafts.py"
        text = file.read_text().replace(
            "return drafts", "drafts[0].tokens = [9999] * len(drafts[0].tokens)\n        return drafts"
        )
        file.write_text(text)
        asked = ["--config-dir=mine", *searching, "searcher=tpe", "searcher.n_trials=3", "force=true", *FINALS]
        ran = command("search", *asked, "drafter=pairs")
        assert ran.status == 2 and "drafter Pairs proposed token 9999" in ran.error_lines[-1]
        (run,) = Path("outputs/search").glob("*/*")
        rows = run_files.read_rows(run / run_files.TRIALS)
        assert [row["state"] for row in rows] == ["failed"] * 3
        assert all("Pairs" in row["reason"] for row in rows)


class TestTree:
    """Trees of the built-in drafter, chosen by name."""

    def test_has_a_looked_up_branch_beside_it(self, searching: list[str], mine: Path) -> None:
        asked = ["--config-dir=mine", *searching, "searcher=tpe", "searcher.n_trials=3", "force=true", *FINALS]
        finished(command("search", "draft=skip", *asked, "lookup=beside"))
        (run,) = Path("outputs/search").glob("*/*")
        assert {row["state"] for row in run_files.read_rows(run / run_files.TRIALS)} == {"complete"}
        searched = ["stop=searched", "lookup=searched"]
        finished(command("evaluate", "--config-dir=mine", *searching[:5], *SMALL, f"skip={run}", *searched))
        (evaluated,) = Path("outputs/evaluate").glob("*/*")
        assert '"lookup": "beside"' in (evaluated / run_files.PROVENANCE).read_text()

    @pytest.mark.parametrize("tree", ["best_first", "expand_rerank", "static"])
    def test_is_searched_by_replay_raced_and_evaluated(self, tree: str, searching: list[str], mine: Path) -> None:
        asked = ["--config-dir=mine", *searching, "searcher=tpe", "searcher.n_trials=3", "force=true", *FINALS]
        finished(command("search", "draft=skip", *asked, f"tree={tree}"))
        (run,) = Path("outputs/search").glob("*/*")
        assert {row["state"] for row in run_files.read_rows(run / run_files.TRIALS)} == {"complete"}
        finished(command("evaluate", "--config-dir=mine", *searching[:5], *SMALL, f"skip={run}", "stop=searched"))
        (evaluated,) = Path("outputs/evaluate").glob("*/*")
        facts = json.loads((evaluated / run_files.PROVENANCE).read_text())["run"]["arms"]
        assert tree in json.dumps(facts)
        verdicts = {row["verdict"] for row in run_files.read_rows(evaluated / run_files.RECORDS)}
        assert verdicts == {"baseline", "identical"}

    def test_a_shape_without_costs_is_measured_or_refused_in_a_line(self, searching: list[str], mine: Path) -> None:
        ran = command(
            "search", "draft=skip", "--config-dir=mine", *searching, "tree=best_first", "objective=tokens_per_second"
        )
        assert ran.status == 2 and "give tree.draft_cost and tree.verify_cost" in ran.error_lines[-1]
        ran = command("decode", *searching[:4], "prompt=hello", "tree=best_first", "max_new_tokens=4")
        assert ran.status == 2 and "has no costs yet" in ran.error_lines[-1]

    @pytest.mark.parametrize("tree", ["chain", "static", "best_first"])
    def test_samples_by_the_command_line(self, tree: str, words: list[str], mine: Path) -> None:
        costs = ["tree.draft_cost=0.4", "tree.verify_cost=0.05"] if tree == "best_first" else []
        how = ["sampling=sample", "sampling.by_block=true", f"tree={tree}", *costs]
        finished(command("evaluate", "--config-dir=mine", *words, *SMALL, "skip=m2", "stop=fixed", *how))
        (run,) = Path("outputs/evaluate").glob("*/*")
        rows = [row for row in run_files.read_rows(run / run_files.RECORDS) if row["arm"] != "plain"]
        assert sum(row["drafted"] for row in rows) > 0
