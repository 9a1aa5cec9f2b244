"""What search and evaluate show of themselves with tracker=wandb, read back from the files of wandb."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.builders import build
from experiments.tracking import NoTracker
from experiments.tracking.of_evaluation import positions
from experiments.tracking.of_search import is_best_of_its_kind
from selfspec.measure.metrics import tokens_per_round
from selfspec.records import run_files
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import read_skip_set, save_skip_set
from tests.commands import N_LAYERS, Ran, command
from tests.tracked import Tracked, own_home, tracked

pytestmark = pytest.mark.slow

WANDB = "tracker=wandb"
SMALL = [
    *("objective.n_prompts=1", "objective.max_new_tokens=8", "finals.n_prompts=1", "finals.top=2", "finals.race=1"),
    *(
        "costs.contexts=[8,24]",
        "costs.max_tokens=6",
        "costs.repeats=2",
        "starts=[uniform]",
        "constraints.min_skipped=2",
    ),
]
N_TRIALS = 4


def chart(run: Tracked, name: str) -> dict[str, Any]:
    """A figure of plotly, as the files of wandb hold it."""
    (path,) = run.series(f"chart/{name}.path")
    body: dict[str, Any] = json.loads((run.folder / "files" / path).read_text())
    return body


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_home(tmp_path_factory.mktemp("home")):
        yield


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def search(toy: list[str], outputs: Path) -> Ran:
    """A search with bridges, so that it leaves a plan with tensors."""
    words = (f"searcher.n_trials={N_TRIALS}", "draft=mean", "calibration.n_tokens=64", "calibration.max_new_tokens=8")
    ran = command("search", *toy, *SMALL, *words, WANDB, f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    return ran


@pytest.fixture(scope="module")
def searched(search: Ran) -> Tracked:
    return tracked(search.run)


@pytest.fixture(scope="module")
def evaluate(toy: list[str], outputs: Path) -> Ran:
    """Two jobs of a sweep; the last line of each tells its own folder."""
    words = ("skip=a1", "controls=false", "n=2", "max_new_tokens=8", "stop=fixed", "generate=false", "name=swept,also")
    ran = command("evaluate", "-m", *toy, *words, WANDB, f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    return ran


@pytest.fixture(scope="module")
def evaluated(evaluate: Ran, outputs: Path) -> list[tuple[Path, Tracked]]:
    runs = [folder for name in ("swept", "also") for folder in (outputs / "evaluate" / name).iterdir()]
    return [(run, tracked(run)) for run in runs]


class TestSearch:
    def test_its_last_line_says_how_to_upload_it(self, search: Ran, searched: Tracked) -> None:
        assert search.out.splitlines()[-1] == f"wandb sync {searched.folder}"

    def test_every_trial_shows_its_numbers(self, search: Ran, searched: Tracked) -> None:
        rows = read_rows(search.run / run_files.TRIALS)
        values = [row["value"] for row in rows]
        assert searched.series("trial/number") == list(range(N_TRIALS))
        assert searched.series("trial/value") == values
        assert searched.series("trial/best") == [max(values[: n + 1]) for n in range(N_TRIALS)]
        assert searched.series("trial/fraction_skipped") == [len(s) / (2 * N_LAYERS) for s in map(skip_of, rows)]
        drafting = [row for row in rows if row["drafted"]]
        for name in ("acceptance", "draft_cost"):
            assert searched.series(f"trial/{name}") == [row[name] for row in rows if row[name] is not None]
        shown = [tokens_per_round(row["accepted"], row["n_rounds"]) for row in drafting]
        assert searched.series("trial/tokens_per_round") == shown

    def test_its_sets_are_rows_with_their_sublayers_as_columns(self, search: Ran, searched: Tracked) -> None:
        sets = searched.table("skip_sets")
        assert {row["skip"] for row in sets} == {row["skip"] for row in read_rows(search.run / run_files.TRIALS)}
        for row in sets:
            assert row["run"] == search.run.name and row["model"] == "local"
            bits = [bool(row[f"{kind}{i}"]) for i in range(N_LAYERS) for kind in "am"]
            assert SkipSet.from_bits(bits) == skip_of(row)
        (chosen,) = (row for row in sets if row["is_chosen"])
        assert skip_of(chosen) == read_skip_set(search.run)
        assert searched.series("draft/skip") == [chosen["skip"]]
        assert searched.series("draft/speedup") == [chosen["speedup"]]

    def test_its_pictures_are_there(self, searched: Tracked) -> None:
        for picture in ("skip_map", "search"):
            (path,) = searched.series(f"{picture}.path")
            assert (searched.folder / "files" / path).is_file()  # drawn, and rendered elsewhere

    def test_its_charts_are_the_dashboards(self, searched: Tracked) -> None:
        for name, axis in (("best_so_far", "trials"), ("trade_off", "draft cost"), ("importance", "layer")):
            assert axis in str(chart(searched, name)["layout"]).lower()

    def test_its_files_are_kept_as_the_best_and_latest(self, searched: Tracked) -> None:
        kept = {artifact["kind"]: artifact for artifact in searched.artifacts.values()}
        assert kept["skip_set"]["files"] == ["skip_set.yaml"] and kept["trials"]["files"] == ["trials.jsonl"]
        assert sorted(kept["plan"]["files"]) == ["plan.safetensors", "plan.yaml"]
        assert all(artifact["aliases"] == {"latest", "best"} for artifact in kept.values())

    def test_going_on_shows_it_whole_again_under_its_id(self, search: Ran, searched: Tracked, tmp_path: Path) -> None:
        copy = tmp_path / search.run.name
        shutil.copytree(search.run, copy, ignore=shutil.ignore_patterns("wandb"))
        ran = command("search", f"resume={copy}", f"searcher.n_trials={N_TRIALS + 1}")
        assert ran.status == 0, ran.err
        resumed = tracked(copy)
        assert resumed.about["run_id"] == searched.about["run_id"]
        assert resumed.series("trial/number") == list(range(N_TRIALS + 1))


class TestEvaluate:
    def test_the_jobs_of_a_sweep_are_a_group_with_what_was_run(self, evaluated: list[tuple[Path, Tracked]]) -> None:
        groups = {run.about["run_group"] for _, run in evaluated}
        assert len(evaluated) == 2 and len(groups) == 1 and groups.pop().startswith("sweep 20")
        assert {run.about["job_type"] for _, run in evaluated} == {"evaluate"}

    def test_every_job_says_how_to_upload_it(self, evaluate: Ran, evaluated: list[tuple[Path, Tracked]]) -> None:
        lines = [line for line in evaluate.out.splitlines() if line.startswith("wandb sync ")]
        assert sorted(lines) == sorted(f"wandb sync {run.folder}" for _, run in evaluated)

    def test_its_arms_and_their_sets_are_tables(self, evaluated: list[tuple[Path, Tracked]]) -> None:
        for folder, run in evaluated:
            plain, arm = run.table("arms")
            assert plain["arm"] == "plain" and arm["skip"] == "a1" and arm["n_identical"] == arm["n"] == 2
            (row,) = run.table("skip_sets")
            assert (row["run"], row["value"], row["a1"], row["m1"]) == (folder.name, arm["speedup"], 1, 0)
            assert run.series("draft/speedup") == [arm["speedup"]]
            assert run.series("draft/acceptance") == [arm["acceptance"]]

    def test_seconds_of_drafting_and_verifying_are_those_of_its_rows(
        self, evaluated: list[tuple[Path, Tracked]]
    ) -> None:
        for folder, run in evaluated:
            rows = [row for row in read_rows(folder / run_files.RECORDS) if row["arm"] != "plain"]
            _, split = run.table("time_split")
            for part in ("draft_s", "verify_s", "other_s"):
                assert split[part] == pytest.approx(sum(row[part] for row in rows))
                assert run.series(f"time/{part}") == [pytest.approx(split[part])]

    def test_its_charts_have_a_line_or_a_bar_for_each_arm(self, evaluated: list[tuple[Path, Tracked]]) -> None:
        for _, run in evaluated:
            assert len(chart(run, "positions")["data"]) == 1  # plain decoding drafts nothing
            assert {len(bars["y"]) for bars in chart(run, "time_split")["data"]} == {2}

    def test_acceptance_by_position_is_a_curve(self, evaluated: list[tuple[Path, Tracked]]) -> None:
        for _, run in evaluated:
            table = run.table("positions")
            assert run.series("position/number") == [row["number"] for row in table] == list(range(1, len(table) + 1))
            assert all(row["accepted"] <= row["judged"] for row in table)


class TestTraining:
    @pytest.fixture
    def run(self, toy: list[str], outputs: Path) -> Path:
        words = ("samples=2", "temperatures=[0.0,1.0]", "max_new_tokens=10", "batch=4", WANDB)
        made = command("collect", *toy, *words, f"paths.outputs={outputs}")
        assert made.status == 0, made.err
        (store,) = (outputs / "store").iterdir()
        text = tracked(store)
        assert text.about["job_type"] == "collect" and text.series("collect/texts") == [8]
        small = ("train.epochs=4", "train.slots=64", "train.check_every=4", "train.bf16=false", "vocabulary=48")
        costs = ("costs.contexts=[8]", "costs.max_tokens=6", "costs.repeats=2", "check_overfit=false")
        ran = command("train", *toy, *small, *costs, WANDB, f"paths.outputs={outputs}")
        assert ran.status == 0, ran.err
        assert ran.out.splitlines()[-1] == f"wandb sync {tracked(ran.run).folder}"
        return ran.run

    def test_its_steps_result_and_draft_are_shown_and_kept(self, run: Path) -> None:
        shown, rows = tracked(run), read_rows(run / run_files.CURVE)
        end = json.loads((run / run_files.SUMMARY).read_text())
        assert shown.series("train/loss") == [row["loss"] for row in rows]
        assert shown.series("draft/expected_speedup") == [end["expected_speedup"]]
        looks = [row for row in rows if "conditional" in row]
        assert [row["accepted_1"] for row in shown.table("looks")] == [row["conditional"][0] for row in looks]
        assert len(chart(shown, "training")["data"]) == 1 + len(end["conditional"])
        (plan,) = shown.artifacts.values()
        assert plan["kind"] == "plan" and {"latest", "best"} <= set(plan["aliases"])
        assert set(plan["files"]) == {"plan.yaml", "plan.safetensors"}


def test_a_tracker_that_fails_on_the_way_costs_no_result_and_says_so_once(
    toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(NoTracker):
        def show(self, values: Any) -> None:
            raise ConnectionError("the server is gone")

    monkeypatch.setattr(build, "WandbTracker", lambda **settings: Failing())
    words = (f"searcher.n_trials={N_TRIALS}", WANDB, f"paths.outputs={tmp_path}")
    ran = command("search", "draft=skip", *toy, *SMALL, *words)
    assert ran.status == 0 and ran.err.count("the server is gone") == 1
    assert len(read_rows(ran.run / run_files.TRIALS)) == N_TRIALS and run_files.is_finished(ran.run)


def test_acceptance_at_a_position_counts_the_tokens_that_were_judged_there() -> None:
    rows: list[dict[str, Any]] = [
        {"round_drafted": [3, 3], "round_accepted": [3, 0]},
        {"round_drafted": [2], "round_accepted": [1]},
    ]
    found = [(place["judged"], place["accepted"]) for place in positions(rows)]
    assert found == [(3, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize(
    ("other", "is_best"),
    [
        ({"value": 1.5}, False),
        ({"value": 0.5}, True),
        ({"value": 1.5, "objective": "acceptance"}, True),
        ({"value": 1.5, "data": "gsm8k"}, True),
        ({"value": "broken"}, True),
    ],
)
def test_the_best_is_the_best_of_the_searches_that_can_be_compared(
    tmp_path: Path, other: dict[str, Any], is_best: bool
) -> None:
    told: dict[str, Any] = {"objective": "expected_speedup", "data": "mini", "value": 1.0}
    for name, facts in (("mine", told), ("other", told | other)):
        (tmp_path / name).mkdir()
        save_skip_set(tmp_path / name / "skip_set.yaml", SkipSet(2), model="toy", **facts)
    (tmp_path / "unfinished").mkdir()
    assert is_best_of_its_kind(tmp_path / "mine") is is_best


def skip_of(row: dict[str, Any]) -> SkipSet:
    return SkipSet.parse(row["skip"], N_LAYERS)
