"""Experiments: each composes and runs on a toy of its model's depth; what is finished is never done again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.config.composing import option, options
from experiments.config.resource_estimate import Size, seconds, size_of
from experiments.config.steps import is_own, merged, plan
from experiments.results.published import published_figures
from experiments.verbs.reproduce import STEPS
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.skip_set_files import load_skip_set
from tests.commands import N_LAYERS, Ran, command, write_model
from tests.toys import slow_unless

pytestmark = pytest.mark.usefixtures("empty_folder", "quick_processes")

EXPERIMENTS = [name for name in options("experiment") if name != "none"]
SMALL_ONE = "paper/smollm2-135m"
SMALL = f"experiment={SMALL_ONE}"
SHRUNK = ["samples=1", "max_new_tokens=3"]
SHRUNK_SEARCH = [
    *("searcher.n_trials=3", "objective.data=null", "objective.n_prompts=1", "objective.max_new_tokens=3"),
    *("finals.top=1", "finals.race=1", "finals.n_prompts=1", "calibration.n_tokens=16", "calibration.max_new_tokens=8"),
    *("costs.contexts=[8]", "costs.max_tokens=3", "costs.repeats=1"),
]


SYSTEMS = tuple(
    name for name in EXPERIMENTS if name.startswith("systems/")
)  # tests/test_systems_experiment.py runs them
SISTERS = ("paper/llama-2-13b", "paper/llama-2-13b-chat", "paper/llama-2-70b")  # of one file of steps
SIZES = (1, 2, 4, 8, 16)  # of batches in the experiment `control`
# Steps that another experiment runs too: `make test-all` runs them in every one.
RUN_ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SISTERS[1:], ("search", "cnndm", "xsum", "cnndm_sampled", "xsum_sampled", "stops")),
    "paper/codellama-13b": ("stops",),
    "paper/smollm2-135m": ("stops",),
    "stopping": ("collect", "predict", "speed"),  # a predictor needs more text than a toy's: `test_predictors`
    "control": (*(f"code_{n}" for n in (1, 4, 8, 16)), *(f"{text}_{n}" for text in ("math", "news") for n in SIZES)),
    "pearl": ("code_in_chat", "questions"),
}
# Few enough steps to be run again and again, of each kind of going on.
STEPS_LEFT = ["costs", "search", "humaneval", "report"]
DROPPED = [
    f"experiment.steps.{step}=null"
    for step in ("search_plain", "search_cnndm", "humaneval_sampled", "mini", "gsm8k", "cnndm", "stops")
]


def n_layers(experiment: str) -> int:
    """Of the model that the experiment is for, whose published skip set fits no other depth."""
    model = experiment.rpartition("/")[2]
    known = (Path(__file__).parents[1] / "selfspec" / "published" / model).is_dir()
    return load_skip_set(f"{model}/draft-and-verify").n_layers if known else N_LAYERS


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    depths = {n_layers(name) for name in EXPERIMENTS}
    return {n: write_model(tmp_path_factory.mktemp(f"layers{n}"), n_layers=n) for n in depths}


def small_of(toy: list[str]) -> list[str]:
    return [SMALL, *DROPPED, *toy, *SHRUNK, *SHRUNK_SEARCH, "n=2", "check=1", "arms=null", "preset=default"]


@pytest.fixture
def small(toy: list[str]) -> list[str]:
    return small_of(toy)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy: list[str]) -> Path:
    """The working folder of a finished experiment; not to be changed."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        folder_of(command("reproduce", *small_of(toy)))
    return place


def steps_of(folder: Path) -> list[str]:
    return [row["step"] for row in run_files.read_rows(folder / STEPS)]


@cache
def plan_of(experiment: str) -> Ran:
    return command("reproduce", f"experiment={experiment}", "dry_run=true", "data_folder=data")


class TestEvery:
    @pytest.mark.parametrize(
        "experiment", [slow_unless(name, in_every_run=(SMALL_ONE, SISTERS[2])) for name in EXPERIMENTS]
    )
    def test_tells_its_plan_and_leaves_nothing_behind(self, experiment: str) -> None:
        ran = plan_of(experiment)
        assert ran.status == 0, ran.err
        needed = ("selfspec search", "selfspec evaluate", "model: ", "memory: ", "time: ")
        assert [word for word in needed if word not in ran.out] == []
        assert "left out" not in ran.out and list(Path().iterdir()) == []

    # of the sisters, which differ in their model alone, one stands for all
    @pytest.mark.parametrize(
        "experiment",
        [
            slow_unless(name, in_every_run={*EXPERIMENTS} - {*SISTERS} | {SISTERS[2]})
            for name in EXPERIMENTS
            if name not in SYSTEMS
        ],
    )
    def test_runs_on_a_toy(self, experiment: str, toys: dict[int, Path], toy: list[str]) -> None:
        dropped = RUN_ELSEWHERE.get(experiment, ())
        left_out = [f"experiment.steps.{step}=null" for step in dropped]
        if "search" in dropped:
            assert run_on_toy(experiment, toys, toy, *left_out) == {"evaluate", "report"}
        else:
            verbs = run_on_toy(experiment, toys, toy, *left_out, *SHRUNK_SEARCH)
            assert verbs >= {"search", "evaluate", "report"}

    @pytest.mark.slow
    @pytest.mark.parametrize("experiment", [name for name in RUN_ELSEWHERE if name != "stopping"])
    def test_runs_every_step_on_a_toy(self, experiment: str, toys: dict[int, Path], toy: list[str]) -> None:
        assert run_on_toy(experiment, toys, toy, *SHRUNK_SEARCH) >= {"search", "evaluate", "report"}

    def test_sisters_differ_in_their_model_alone(self) -> None:
        def without_model(name: str) -> str:
            steps = OmegaConf.to_yaml(option("experiment", name).steps, resolve=True)
            return steps.replace(name.removeprefix("paper/") + "/", "MODEL/")

        first, *others = map(without_model, SISTERS)
        assert "MODEL/" in first and others == [first, first]


def run_on_toy(experiment: str, toys: dict[int, Path], toy: list[str], *more: str) -> set[str]:
    """Run an experiment on a model of noise and check what it left; the verbs of its steps."""
    words = [w for w in toy if not w.startswith("model.path=")]
    words += [f"model.path={toys[n_layers(experiment)]}", *SHRUNK, "n=1", *more]
    words += ["schedule.measure_s=0.02"] if experiment == "pearl" else []
    folder = folder_of(command("reproduce", f"experiment={experiment}", *words))
    rows = run_files.read_rows(folder / STEPS)
    assert all(run_files.is_finished(Path(row["run"])) for row in rows) and run_files.is_finished(folder)
    evaluations = [Path(row["run"]) for row in rows if row["verb"] == "evaluate"]
    verdicts = [r["verdict"] for run in evaluations for r in run_files.read_rows(run / run_files.RECORDS)]
    assert verdicts and "mismatch" not in verdicts
    return {row["verb"] for row in rows}


class TestWords:
    """What a step is told: what all are told, its own, and the user's, the last of which holds."""

    KNOWN = {"search": {"searcher", "data", "n"}, "report": {"runs"}}  # noqa: RUF012

    def plan(self, commands: dict[str, str | None], **kwargs: Any) -> tuple[dict[str, str], dict[str, str]]:
        given: dict[str, Any] = {"settings": "", "words": (), "known": self.KNOWN, "data_folder": None, **kwargs}
        steps, left_out = plan(commands, **given)
        last = " name={} 'paths.outputs={{runs}}' 'paths.cache={{cache}}'"
        return {step.name: step.command().removesuffix(last.format(step.name)) for step in steps}, left_out

    def test_the_later_word_holds(self) -> None:
        assert merged(["n=1", "a=1"], ["n=2"], ["n=3"]) == ["a=1", "n=3"]

    def test_another_choice_drops_the_settings_of_the_former(self) -> None:
        assert merged(["data=a", "data.path=x", "database=1"], ["data=b"]) == ["database=1", "data=b"]

    def test_a_step_gets_the_words_that_its_verb_knows(self) -> None:
        steps, _ = self.plan({"find": "search n=1", "tell": "report"}, settings="data=a", words=["n=2", "runs=x"])
        assert steps == {"find": "selfspec search data=a n=2", "tell": "selfspec report runs=x"}

    def test_a_word_that_no_step_knows_is_refused(self) -> None:
        with pytest.raises(InputError, match="colour=red was asked for"):
            self.plan({"tell": "report"}, words=["colour=red"])

    def test_a_step_without_its_data_is_left_out_and_so_is_what_needs_it(self) -> None:
        commands = {"a": "search data={data}/x", "b": "report runs={a}", "c": "search n=1"}
        assert self.plan(commands) == (
            {"c": "selfspec search n=1"},
            {"a": "needs data_folder=FOLDER", "b": "needs a"},
        )
        assert list(self.plan(commands, data_folder="d")[0]) == ["a", "b", "c"]

    def test_a_place_that_is_no_step_before_is_refused(self) -> None:
        with pytest.raises(InputError, match="unknown place 'later'"):
            self.plan({"tell": "report runs={later}", "later": "search"})

    def test_a_step_set_to_null_is_gone(self) -> None:
        assert list(self.plan({"a": None, "b": "search"})[0]) == ["b"]

    def test_the_words_of_reproduce_itself_are_not_passed_on(self) -> None:
        own = ["experiment=x", "dry_run=true", "paths.outputs=o", "-m", "hydra.verbose=true", "resume=r"]
        assert all(map(is_own, own)) and not any(map(is_own, ["n=2", "model.path=x", "+data.n=3"]))

    def test_a_printed_command_is_one_that_can_be_typed(self, small: list[str]) -> None:
        out = command("reproduce", *small, "dry_run=true").out
        shown = [shlex.split(line) for line in out.splitlines() if line.startswith("   selfspec ")]
        assert len(shown) == 4 and all("n=2" in words for _, verb, *words in shown if verb == "evaluate")


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "pieces"),
        [
            (["experiment=paper/lama"], ["unknown experiment 'paper/lama'", "paper/llama-2-13b"]),
            ([], ["reproduce needs experiment=NAME"]),
            (["-m", "experiment=ablation_drafts"], ["one experiment"]),
            ([SMALL, "colour=red"], ["colour=red", "no step"]),
            ([SMALL, "searcher.n_trails=3"], ["'searcher.n_trails'", "did you mean 'searcher.n_trials'?"]),
            ([SMALL, "model=smol"], ["unknown model 'smol'"]),
            (["resume=nowhere"], ["resume=nowhere", "no experiment there"]),
            (["resume=nowhere", "n=3"], ["n=3 cannot change"]),
        ],
    )
    def test_is_told_in_one_line_before_anything_runs(self, words: list[str], pieces: list[str]) -> None:
        ran = command("reproduce", *words)
        assert ran.status == 2 and len(ran.error_lines) == 1, ran.err
        assert [piece for piece in pieces if piece not in ran.err] == [], ran.err
        assert list(Path().iterdir()) == []

    def test_a_step_that_fails_says_which_command_and_how_to_go_on(self, small: list[str]) -> None:
        ran = command("reproduce", *small, "constraints.n_skipped=99")
        (line,) = ran.error_lines[-1:]
        assert ran.status == 2 and "step search failed: " in line, ran.err
        assert "it was `selfspec search " in line and "selfspec reproduce resume=" in line
        (folder,) = Path("outputs/reproduce").glob("*/*")
        assert steps_of(folder) == ["costs"] and not run_files.is_finished(folder)


def resumed(folder: Path) -> Ran:
    return command("reproduce", f"resume={folder}")


def folder_of(ran: Ran) -> Path:
    assert ran.status == 0, ran.err
    return Path(ran.out.splitlines()[-1].removeprefix("run: "))


def assert_whole(folder: Path) -> None:
    """Every prompt has every arm once, every trial is there once."""
    for row in run_files.read_rows(folder / STEPS):
        run = Path(row["run"])
        if row["verb"] == "evaluate":
            cells = [(r["prompt_id"], r["arm"]) for r in run_files.read_rows(run / run_files.RECORDS)]
            assert len(set(cells)) == 2 * len({arm for _, arm in cells}), row["step"]  # a prompt begun is decoded anew
        if row["verb"] == "search":
            assert [r["number"] for r in run_files.read_rows(run / run_files.TRIALS)] == [0, 1, 2]


class Killed(BaseException):
    """As sudden as a kill: nothing catches it."""


class TestKilled:
    """Anywhere: what is finished stays as it is, what was begun goes on in its own folder."""

    @pytest.mark.parametrize("n_writes", [slow_unless(n, in_every_run=(5, 36)) for n in (5, 13, 36, 57)])
    def test_at_any_write_it_goes_on(self, n_writes: int, small: list[str]) -> None:
        left = iter(range(n_writes))
        fsync = os.fsync

        def dies(handle: int) -> None:
            if next(left, None) is None:
                raise Killed
            fsync(handle)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "fsync", dies)
            command("reproduce", *small)
        (folder,) = Path("outputs/reproduce").glob("*/*")
        done = steps_of(folder) if (folder / STEPS).is_file() else []
        finished = [file.parent for file in (folder / "runs").glob(f"*/*/*/{run_files.SUMMARY}")]
        before = {path: path.read_bytes() for run in finished for path in run.rglob("*.jsonl")}
        ran = resumed(folder)
        assert ran.status == 0, ran.err
        assert {path: path.read_bytes() for path in before} == before
        steps = steps_of(folder)
        assert steps[: len(done)] == done and steps == STEPS_LEFT
        begun = [path for verb in ("search", "evaluate") for path in (folder / "runs" / verb).glob("*/*")]
        assert len(begun) == 2, begun
        assert_whole(folder)

    @pytest.fixture
    def folder(self, finished: Path) -> Path:
        """A copy of it, below the working folder."""
        shutil.copytree(finished, Path(), dirs_exist_ok=True)
        (found,) = Path("outputs/reproduce").glob("*/*")
        return found

    def test_an_evaluation_refused_for_what_it_found_is_told(self, folder: Path) -> None:
        rows = [row for row in run_files.read_rows(folder / STEPS) if row["verb"] != "report"]
        (run,) = [Path(row["run"]) for row in rows if row["verb"] == "evaluate"]
        summary = json.loads((run / run_files.SUMMARY).read_text())
        run_files.write_json(run / run_files.SUMMARY, summary | {"verdicts": {"mismatch": 3}})
        (folder / STEPS).write_text("".join(json.dumps(row) + "\n" for row in rows if row["verb"] != "evaluate"))
        ran = resumed(folder)
        assert ran.status == 0 and "3 outputs are not plain decoding's" in ran.err + ran.out, ran

    def test_a_finished_experiment_has_nothing_left_to_do(self, folder: Path) -> None:
        before = sorted(folder.rglob("*"))
        ran = resumed(folder)
        assert ran.out.count("finished before") == 4 and sorted(folder.rglob("*")) == before


class TestExpected:
    def test_the_size_of_a_folder_is_that_of_its_tensors(self, model_folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(model_folder)
        size = size_of(OmegaConf.create({"path": str(model_folder)}))
        n = sum(p.numel() for p in model.parameters())
        assert size == Size(n, N_LAYERS, model.model.layers[0].self_attn.k_proj.out_features, 96)

    def test_a_stated_size_has_the_layers_of_the_published_skip_set(self) -> None:
        conf = Path(__file__).parents[1] / "conf" / "model"
        for name in ("llama-2-13b", "llama-2-13b-chat", "codellama-13b", "llama-2-70b"):
            stated = OmegaConf.load(conf / f"{name}.yaml").size
            assert stated.n_layers == load_skip_set(f"{name}/draft-and-verify").n_layers

    def test_memory_is_weights_and_keys_and_values(self) -> None:
        size = Size(parameters=1_000_000_000, n_layers=10, kv_width=100, context=1000)
        assert size.weights(2) == 2.0 and size.cache(2, 3) == pytest.approx(2 * 10 * 100 * 1000 * 3 * 2 / 1e9)

    def test_an_evaluation_takes_its_arms_times_its_prompts_times_its_tokens(self) -> None:
        cfg = OmegaConf.create({"n": 10, "max_new_tokens": 50, "generate": True, "arms": {"a": {}}, "samples": 2})
        assert seconds("evaluate", cfg, 25.0) == 10 * 50 * 4 * 2 / 25
        assert seconds("evaluate", cfg, None) is None
        assert seconds("evaluate", OmegaConf.create({"n": None}), 25.0) is None

    def test_the_laptop_preset_is_expected_within_the_hour(self) -> None:
        out = plan_of(SMALL_ONE).out
        (line,) = (line for line in out.splitlines() if line.startswith("time: "))
        minutes, unit = line.split()[1:3]
        assert unit.startswith("min") and float(minutes) < 45, line

    def test_another_model_has_no_known_speed(self, small: list[str]) -> None:
        assert "\ntime: unknown" in command("reproduce", *small, "dry_run=true").out


class TestPublished:
    def test_every_figure_says_what_it_is_and_where_it_stands(self) -> None:
        rows = published_figures()
        needed = {"system", "model", "data", "temperature", "metric", "value", "source"}
        assert [row for row in rows if needed - set(row) or not row["source"] or type(row["value"]) is bool] == []
        assert all(
            0 <= row["value"] <= 1 for row in rows if row["metric"] in ("acceptance", "rouge1", "rouge2", "rougeL")
        )

    def test_the_first_figure_of_a_cell_is_the_one_of_the_first_table(self) -> None:
        rows = published_figures("draft-and-verify")
        cell = {"model": "llama-2-13b", "data": "cnndm", "temperature": 0, "metric": "speedup"}
        assert next(row for row in rows if cell.items() <= row.items())["value"] == 1.5766

    def test_an_unknown_work_is_told(self) -> None:
        with pytest.raises(InputError, match="did you mean 'swift'"):
            published_figures("swft")
