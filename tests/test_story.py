"""A search, an evaluation, a report and an answer in a row: what is left behind is whole and fits together."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from selfspec.records import run_files
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set_files import read_skip_set
from tests.commands import N_LAYERS, PROMPTS, Ran, command


class Story(NamedTuple):
    """A search, an evaluation of what it found, a report of both, and an answer."""

    search: Ran
    evaluate: Ran
    report: Ran
    decode: Ran
    folder: Path


@pytest.fixture(scope="module")
def story(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = ["objective.n_prompts=2", "objective.max_new_tokens=6"]
        search = command("search", "draft=skip", *toy, *small, "searcher.n_trials=3", "name=a tiny one")
        assert search.status == 0, search.err
        arms = 'arms={odd: {skip: "a1,3 m2", stop: fixed}}'
        words = (f"skip={search.run}", "max_new_tokens=12", "arm=found", arms, "controls=false")
        evaluate = command("evaluate", *toy, *words)
        report = command("report", f"runs={evaluate.run},{search.run}")
        decode = command("decode", *toy, "prompt=what, [is] this?", "skip=a1,3 m2", "max_new_tokens=12")
    return Story(search, evaluate, report, decode, folder)


class TestStory:
    def test_every_step_succeeds(self, story: Story) -> None:
        assert [(ran.status, ran.error_lines[-1:]) for ran in story[:4] if ran.status] == []

    def test_what_was_decided_for_the_user_is_told_with_its_reason(self, story: Story) -> None:
        for ran in (story.search, story.evaluate, story.decode):
            assert "dtype float64 (asked for), device cpu, 1 threads" in ran.err

    @pytest.mark.parametrize("verb", ["search", "evaluate"])
    def test_the_run_folder_is_whole(self, verb: str, story: Story) -> None:
        ran: Ran = getattr(story, verb)
        folder = story.folder / ran.run
        rows = run_files.TRIALS if verb == "search" else run_files.RECORDS
        files = {run_files.CONFIG, run_files.OVERRIDES, run_files.PROVENANCE, run_files.SUMMARY, run_files.LOG, rows}
        assert files <= {path.name for path in folder.iterdir()}
        assert folder.parent.parent == story.folder / "outputs" / verb
        assert json.loads((folder / run_files.SUMMARY).read_text())["verb"] == verb

    @pytest.mark.parametrize("verb", ["search", "evaluate"])
    def test_the_overrides_compose_to_the_configuration_that_ran(self, verb: str, story: Story) -> None:
        folder = story.folder / getattr(story, verb).run
        overrides = (folder / run_files.OVERRIDES).read_text().splitlines()
        with initialize_config_module("conf", version_base="1.3"):
            cfg = compose(verb, overrides=overrides)
        assert OmegaConf.to_yaml(cfg, resolve=True) == (folder / run_files.CONFIG).read_text()

    @pytest.mark.parametrize("verb", ["search", "evaluate"])
    def test_provenance_says_what_ran_on_what(self, verb: str, story: Story) -> None:
        run = json.loads((story.folder / getattr(story, verb).run / run_files.PROVENANCE).read_text())["run"]
        assert (run["model"], run["data"], run["n_layers"], run["threads"]) == ("local", "jsonl", N_LAYERS, 1)
        assert (run["dtype"], run["device"], run["weights"]["origin"]) == ("float64", "cpu", "path")
        assert run["task_version"] and run["vocabulary"] and run["chat_template"]

    def test_the_search_runs_its_budget_and_saves_the_winner_of_its_race(self, story: Story) -> None:
        folder = story.folder / story.search.run
        rows = read_rows(folder / run_files.TRIALS)
        summary = json.loads((folder / run_files.SUMMARY).read_text())
        best, winner = summary["best"], summary["winner"]
        assert [row["number"] for row in rows] == [0, 1, 2]
        assert best["value"] == max(row["value"] for row in rows)
        assert best["skip"] == rows[best["number"]]["skip"]
        # which of the raced sets is the fastest is the clock's to say: on a toy that may be another one
        assert str(read_skip_set(folder, n_layers=N_LAYERS)) == winner["skip"] in {row["skip"] for row in rows}
        log = (folder / run_files.LOG).read_text()
        assert [f"trial {n}: " in log for n in range(3)] == [True] * 3

    def test_the_search_and_the_evaluation_share_no_prompt(self, story: Story) -> None:
        searched = json.loads((story.folder / story.search.run / run_files.PROVENANCE).read_text())["run"]["prompt_ids"]
        evaluated = {row["prompt_id"] for row in read_rows(story.folder / story.evaluate.run / run_files.RECORDS)}
        assert len(searched) == 2 and len(evaluated) == len(PROMPTS) // 2
        assert not set(searched) & evaluated

    def test_every_arm_decodes_every_prompt_once_and_they_take_turns(self, story: Story) -> None:
        rows = read_rows(story.folder / story.evaluate.run / run_files.RECORDS)
        arms = {"plain", "generate", "found", "odd"}
        assert Counter((row["prompt_id"], row["arm"]) for row in rows) == {
            (prompt, arm): 1 for prompt in {row["prompt_id"] for row in rows} for arm in arms
        }
        assert {row["arm"] for row in rows if row["order"] == 0} == arms

    def test_every_output_is_the_baselines(self, story: Story) -> None:
        rows = read_rows(story.folder / story.evaluate.run / run_files.RECORDS)
        tokens = {row["prompt_id"]: row["tokens"] for row in rows if row["arm"] == "plain"}
        assert [row["arm"] for row in rows if row["tokens"] != tokens[row["prompt_id"]]] == []
        assert {row["verdict"] for row in rows if row["arm"] != "plain"} == {"identical"}
        summary = json.loads((story.folder / story.evaluate.run / run_files.SUMMARY).read_text())
        assert summary["verdicts"] == Counter(row["verdict"] for row in rows)

    def test_the_counts_of_each_row_fit_together(self, story: Story) -> None:
        for row in read_rows(story.folder / story.evaluate.run / run_files.RECORDS):
            assert len(row["tokens"]) == row["n_tokens"]
            if row["arm"] == "generate":
                continue
            assert row["committed"] + 1 == row["n_tokens"]
            assert 0 <= row["accepted"] <= row["drafted"]
            assert row["accepted"] + row["n_rounds"] >= row["committed"]
            assert sum(row["round_drafted"]) == row["drafted"] and sum(row["round_accepted"]) == row["accepted"]
            parts = row["prefill_s"] + row["draft_s"] + row["verify_s"] + row["other_s"]
            assert parts == pytest.approx(row["total_s"]) and min(row["prefill_s"], row["total_s"]) > 0

    def test_the_odd_arm_skips_what_was_written(self, story: Story) -> None:
        rows = read_rows(story.folder / story.evaluate.run / run_files.RECORDS)
        assert {(row["skip"], row["stop"]) for row in rows if row["arm"] == "odd"} == {("a1,3 m2", "fixed")}

    def test_the_report_names_the_runs_and_every_arm(self, story: Story) -> None:
        written = [p for p in (story.folder / "outputs" / "report").rglob("*") if p.suffix in (".md", ".html")]
        text = "".join(p.read_text() for p in written)
        assert [piece for piece in ("plain", "found", "odd", story.evaluate.run.name) if piece not in text] == []

    def test_an_answer_is_compared_with_plain_decoding(self, story: Story) -> None:
        assert "output identical" in story.decode.out
        assert "skip=a1,3 m2, stop=adaptive" in story.decode.out
        assert "draft and verify: " in story.decode.out and "plain decoding: " in story.decode.out


class TestResume:
    @pytest.fixture
    def run(self, story: Story, empty_folder: Path) -> Path:
        """A copy of the finished search, to go on with."""
        return Path(shutil.copytree(story.folder / story.search.run, empty_folder / "run"))

    def test_goes_on_to_the_larger_budget_and_keeps_what_was_run(self, run: Path) -> None:
        before = read_rows(run / run_files.TRIALS)
        ran = command("search", f"resume={run}", "searcher.n_trials=5")
        assert (ran.status, ran.run) == (0, run), ran.err
        rows = read_rows(run / run_files.TRIALS)
        assert rows[:3] == before and [row["number"] for row in rows] == list(range(5))
        assert json.loads((run / run_files.SUMMARY).read_text())["n_trials"] == 5
        assert not Path("outputs/search").exists()

    def test_a_finished_search_is_finished_again_without_a_trial(self, run: Path) -> None:
        before = (run / run_files.TRIALS).read_bytes()
        (run / run_files.SUMMARY).unlink()  # killed right before the end
        assert command("search", f"resume={run}").status == 0
        assert (run / run_files.TRIALS).read_bytes() == before
        assert run_files.is_finished(run)

    @pytest.mark.parametrize("word", ["searcher.seed=1", "searcher=gp", "stop=fixed", "threads=2"])
    def test_no_other_setting_can_change(self, word: str, run: Path) -> None:
        before = (run / run_files.SUMMARY).read_bytes()
        ran = command("search", f"resume={run}", word)
        assert (ran.status, len(ran.error_lines)) == (2, 1)
        assert word in ran.err and "cannot change" in ran.err
        assert (run / run_files.SUMMARY).read_bytes() == before

    def test_an_edited_configuration_is_another_search(self, run: Path) -> None:
        config = (run / run_files.CONFIG).read_text()
        (run / run_files.CONFIG).write_text(config.replace("max_new_tokens: 6", "max_new_tokens: 7"))
        ran = command("search", f"resume={run}")
        assert ran.status == 2 and "belongs to a search with objective" in ran.err
