"""An evaluation that was stopped goes on; trouble becomes a row with its reason, and speeds say what they are worth."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from experiments.evaluation.conversations import Asked, Conversations, why_none
from experiments.evaluation.interleave import alternate, latest
from experiments.results.named_drafts import predicted_value
from selfspec.data.task import Example
from selfspec.drafters.spec_files import find_draft
from selfspec.engine.trace import DecodeResult, Round
from selfspec.errors import InputError
from selfspec.records import provenance, run_files
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import save_skip_set
from tests.commands import CONTEXT, N_LAYERS, PROMPTS, Ran, command, write_prompts

ARMS = ("plain", "generate", "odd")
SMALL = ("skip=a1,3 m2", "arm=odd", "stop=fixed", "max_new_tokens=6", "model.dtype=float64", "controls=false")
N_PROMPTS = len(PROMPTS) // 2


def rows_of(run: Path) -> list[dict[str, Any]]:
    return read_rows(run / run_files.RECORDS)


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / run_files.SUMMARY).read_text())
    return found


def tokens(run: Path) -> dict[tuple[str, int, int, str], list[int]]:
    return {key: row["tokens"] for key, row in latest(rows_of(run)).items()}


@pytest.fixture(scope="module")
def whole(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("whole")
    ran = command("evaluate", *toy, *SMALL, f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    return ran.run


def test_a_run_that_ends_while_it_fits_its_drafts_goes_on(
    whole: Path, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("experiments.verbs.evaluate.build_arms", ctrl_c)
        assert command("evaluate", *toy, *SMALL, f"paths.outputs={tmp_path}").status == 130
    (run,) = (tmp_path / "evaluate").glob("*/*")
    ran = command("evaluate", f"resume={run}")
    assert ran.status == 0, ran.err
    facts = [json.loads((path / run_files.PROVENANCE).read_text())["run"] for path in (run, whole)]
    assert facts[0] == facts[1] and tokens(run) == tokens(whole)
    refused = command("evaluate", *toy, "skip=a99", f"paths.outputs={tmp_path}")
    assert refused.status == 2 and list((tmp_path / "evaluate").glob("*/*")) == [run]


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole run, without its end."""
    path = tmp_path / "stopped"
    shutil.copytree(whole, path)
    (path / run_files.SUMMARY).unlink()
    return path


def cut(run: Path, *, n_rows: int, n_bytes: int = 0) -> list[bytes]:
    """Leave that many rows and bytes of the next one, as a kill does; returns the rows."""
    lines = (run / run_files.RECORDS).read_bytes().splitlines(keepends=True)
    (run / run_files.RECORDS).write_bytes(b"".join(lines[:n_rows]) + lines[n_rows][:n_bytes])
    return lines[:n_rows]


class TestResume:
    @pytest.mark.parametrize("n_rows, n_bytes", [(0, 0), (4, 0), (6, 30)])
    def test_ends_with_the_outputs_of_the_run_that_was_not_stopped(
        self, n_rows: int, n_bytes: int, stopped: Path, whole: Path
    ) -> None:
        kept = cut(stopped, n_rows=n_rows, n_bytes=n_bytes)
        ran = command("evaluate", f"resume={stopped}")
        assert ran.status == 0, ran.err
        assert tokens(stopped) == tokens(whole)
        assert (stopped / run_files.RECORDS).read_bytes().startswith(b"".join(kept))
        assert summary(stopped)["verdicts"] == summary(whole)["verdicts"]
        assert ("was cut off" in ran.err) == bool(n_bytes)

    def test_decodes_a_prompt_again_whole_whose_arms_are_not_all_there(self, stopped: Path) -> None:
        cut(stopped, n_rows=4)  # a prompt, and one arm of the next
        command("evaluate", f"resume={stopped}")
        written = [(row["prompt_id"], row["arm"]) for row in rows_of(stopped)]
        first, second = written[0][0], written[3][0]
        assert len(written) == 4 + (N_PROMPTS - 1) * len(ARMS)
        assert sorted(arm for prompt, arm in written if prompt == first) == sorted(ARMS)
        assert sorted(arm for prompt, arm in written[4:] if prompt == second) == sorted(ARMS)

    def test_of_a_finished_run_decodes_nothing(self, stopped: Path, whole: Path) -> None:
        ran = command("evaluate", f"resume={stopped}")
        assert ran.status == 0 and rows_of(stopped) == rows_of(whole), ran.err
        assert len(json.loads((stopped / run_files.PROVENANCE).read_text())["resumed"]) == 1

    def test_keeps_to_the_settings_of_the_run(self, stopped: Path) -> None:
        ran = command("evaluate", f"resume={stopped}", "max_new_tokens=7")
        assert ran.status == 2 and "max_new_tokens=7 cannot change" in ran.err

    @pytest.mark.parametrize("fact, value", [("weights", {"sha256": "another"}), ("prompts", "others")])
    def test_is_refused_where_model_or_data_are_others(self, fact: str, value: object, stopped: Path) -> None:
        began = json.loads((stopped / run_files.PROVENANCE).read_text())
        began["run"][fact] = value
        run_files.write_json(stopped / run_files.PROVENANCE, began)
        rows = rows_of(stopped)
        ran = command("evaluate", f"resume={stopped}")
        assert ran.status == 2 and f"began with {fact}=" in ran.err
        assert rows_of(stopped) == rows

    @pytest.mark.parametrize("field", ["prompt_id", "arm"])
    def test_is_refused_where_the_answers_are_of_another_run(self, field: str, stopped: Path) -> None:
        rows = rows_of(stopped)
        run_files.write_text(stopped / run_files.RECORDS, json.dumps(rows[0] | {field: "another"}) + "\n")
        ran = command("evaluate", f"resume={stopped}")
        assert ran.status == 2 and "'another'" in ran.err and "it is of another run" in ran.err
        assert [row[field] for row in rows_of(stopped)] == ["another"]

    def test_names_a_folder_that_holds_no_run(self, tmp_path: Path) -> None:
        ran = command("evaluate", f"resume={tmp_path}")
        assert ran.status == 2 and "no run of evaluate there" in ran.err

    def test_after_a_kill_by_the_system(self, toy: list[str], whole: Path, tmp_path: Path) -> None:
        words = [*toy, *SMALL, f"paths.outputs={tmp_path}"]
        code = "import sys; from experiments.cli import main; main()"
        with subprocess.Popen([sys.executable, "-c", code, "evaluate", *words], stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not (found := list(tmp_path.rglob(run_files.RECORDS))):
                assert process.poll() is None and time.monotonic() < deadline, "it ended before it was killed"
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        run = found[0].parent
        assert not run_files.is_finished(run)
        assert command("evaluate", f"resume={run}").status == 0
        assert tokens(run) == tokens(whole)


class TestTrouble:
    LONG = tuple(letter * CONTEXT for letter in "pqrs")

    def test_a_prompt_without_room_is_a_row_with_its_reason(self, toy: list[str], tmp_path: Path) -> None:
        ran = self.evaluate(toy, tmp_path, [*PROMPTS[:4], *self.LONG])
        assert ran.status == 0, ran.err
        rows = rows_of(ran.run)
        failed = {(row["prompt_id"], row["arm"]) for row in rows if row["error"]}
        whole = {(row["prompt_id"], row["arm"]) for row in rows if not row["error"]}
        assert failed and whole and len(failed) == 2 * len({prompt for prompt, _ in failed})
        assert not {prompt for prompt, _ in failed} & {prompt for prompt, _ in whole}
        assert all("there is no room" in row["error"] for row in rows if row["error"])
        assert summary(ran.run)["verdicts"]["failed"] == len(failed)

    def test_data_whose_prompts_have_no_room_is_refused_before_the_run(self, toy: list[str], tmp_path: Path) -> None:
        ran = self.evaluate(toy, tmp_path, self.LONG)
        assert ran.status == 2 and "there is no room" in ran.err
        assert not list(tmp_path.rglob(run_files.CONFIG))

    def test_a_run_in_which_nothing_could_be_decoded_says_why(
        self, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr("experiments.evaluation.arms.speculate", full)
        ran = self.evaluate(toy, tmp_path, PROMPTS)
        assert ran.status == 2 and "no prompt could be decoded" in ran.err and "out of memory" in ran.err

    def evaluate(self, toy: list[str], folder: Path, prompts: Sequence[str]) -> Ran:
        file = write_prompts(folder / "prompts.jsonl", prompts)
        data = [f"data.path={file}", "data.calibration_fraction=0.25", "generate=false", f"paths.outputs={folder}"]
        return command("evaluate", *toy, *SMALL, *data)


class TestHonesty:
    @pytest.mark.parametrize("load, is_busy", [(1.5, False), (1.6, True)])
    def test_a_run_on_a_busy_machine_is_marked(
        self, load: float, is_busy: bool, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(provenance, "load_average", lambda: load)
        ran = command("evaluate", *toy, *SMALL, "n=1", "generate=false", f"paths.outputs={tmp_path}")
        told = summary(ran.run)
        assert (told["busy"], told["load_before"], told["load_after"]) == (is_busy, load, load)
        assert sum(line.startswith("busy machine: load average 1.6") for line in ran.err.splitlines()) == is_busy

    def test_a_run_that_began_on_a_busy_machine_stays_marked_when_it_goes_on(
        self, stopped: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began = json.loads((stopped / run_files.PROVENANCE).read_text())
        run_files.write_json(stopped / run_files.PROVENANCE, began | {"load_before": 9.0})
        monkeypatch.setattr(provenance, "load_average", lambda: 0.0)
        ran = command("evaluate", f"resume={stopped}")
        assert summary(stopped)["busy"] and "busy machine" not in ran.err

    def test_the_predicted_speedup_stands_beside_the_measured(self, toy: list[str], tmp_path: Path) -> None:
        skip = SkipSet.parse("a1,3 m2", N_LAYERS)
        save_skip_set(tmp_path / "skip_set.yaml", skip, model="toy", value=1.25, unit="x plain decoding")
        words = [f"skip={tmp_path}", "arm=found", "n=1", "generate=false", f"paths.outputs={tmp_path}"]
        ran = command("evaluate", *toy, *words, "max_new_tokens=6")
        assert summary(ran.run)["predicted"] == {"found": 1.25}
        assert "found: predicted 1.25x, measured " in ran.out

    def test_no_speedup_is_predicted_for_another_rule_than_the_search_had(self, toy: list[str], tmp_path: Path) -> None:
        skip, stop = SkipSet.parse("a1,3 m2", N_LAYERS), {"name": "fixed", "max_draft": 3}
        facts = {"stop": {"name": "paying", "rule": stop, "draft_cost": 0.5, "verify_cost": 0.0}, "lookup": None}
        save_skip_set(tmp_path / "skip_set.yaml", skip, model="toy", value=1.25, unit="x plain decoding", **facts)
        words = [f"skip={tmp_path}", "arm=found", "n=1", "generate=false", f"paths.outputs={tmp_path}", "stop=searched"]
        arms = {
            "bare": f"{{skip: {tmp_path}, stop: {{fixed: {{max_draft: 3}}}}}}",
            "longer": f"{{skip: {tmp_path}, stop: {{fixed: {{max_draft: 4}}}}}}",
            "behind": f"{{skip: {tmp_path}, lookup: front}}",
            "whole": f"{{skip: {tmp_path}, unskipped: true}}",
        }
        words.append("arms={" + ", ".join(f"{name}: {arm}" for name, arm in arms.items()) + "}")
        ran = command("evaluate", *toy, *words, "max_new_tokens=6")
        assert ran.status == 0, ran.err
        assert summary(ran.run)["predicted"] == {"found": 1.25, "bare": 1.25}

    def test_a_search_is_named_by_its_id_as_by_its_folder(self, toy: list[str], tmp_path: Path) -> None:
        run = tmp_path / "search" / "mine" / "20260101T000000Z-00000001"
        run.mkdir(parents=True)
        run_files.write_json(run / run_files.PROVENANCE, {"run": {"model": "toy"}})
        rule = {"stop": {"name": "fixed", "max_draft": 3}, "lookup": None}
        skip = SkipSet.parse("a1,3 m2", N_LAYERS)
        save_skip_set(run / "skip_set.yaml", skip, model="toy", value=1.25, unit="x plain decoding", **rule)
        words = ["stop=searched", "max_new_tokens=6", f"paths.outputs={tmp_path}"]
        ran = command("evaluate", *toy, *words, f"skip={run.name}", "arm=found", "n=1", "generate=false")
        assert ran.status == 0, ran.err
        assert {row["skip"] for row in rows_of(ran.run) if row["arm"] == "found"} == {str(skip)}
        assert summary(ran.run)["predicted"] == {"found": 1.25}
        decoded = command("decode", *toy, *words, f"skip={run.name}", "prompt=hi")
        assert decoded.status == 0 and f"skip={skip}" in decoded.out, decoded
        wrong = command("evaluate", *toy, *words, f"skip={run.name[:-1]}", "n=1")
        assert wrong.status == 2 and f"did you mean '{run.name}'" in wrong.err

    @pytest.mark.parametrize("unit", ["tokens per second", None])
    def test_another_score_is_no_predicted_speedup(self, unit: str | None, tmp_path: Path) -> None:
        save_skip_set(tmp_path / "skip_set.yaml", SkipSet(N_LAYERS), model="toy", value=20.0, unit=unit)
        assert predicted_value(find_draft(tmp_path).settings) is None
        assert predicted_value(find_draft("a1,3 m2").settings) is None

    def test_acceptance_by_position_can_be_counted_from_the_rows(self, toy: list[str], tmp_path: Path) -> None:
        words = ["skip=none", "arm=same", "stop=fixed", "max_new_tokens=12", "n=2", "generate=false"]
        ran = command("evaluate", *toy, *words, f"paths.outputs={tmp_path}")
        rounds = [
            pair
            for row in rows_of(ran.run)
            if row["arm"] == "same"
            for pair in zip(row["round_drafted"], row["round_accepted"], strict=True)
        ]
        by_position = {
            k: sum(accepted > k for _, accepted in rounds) / sum(drafted > k for drafted, _ in rounds)
            for k in range(max(drafted for drafted, _ in rounds))
        }
        assert by_position and set(by_position.values()) == {1.0}  # a draft that skips nothing is always right


class TestSamples:
    def test_each_is_drawn_from_streams_of_its_own(self, toy: list[str], tmp_path: Path) -> None:
        words = ["samples=3", "sampling=sample", "n=1", f"paths.outputs={tmp_path}"]
        ran = command("evaluate", *toy, *SMALL, *words)
        assert ran.status == 0, ran.err
        rows = [row for row in rows_of(ran.run) if row["arm"] == "plain"]
        assert [row["sample"] for row in rows] == [0, 1, 2]
        assert len({tuple(row["tokens"]) for row in rows}) == 3

    def test_of_greedy_decoding_are_refused(self, toy: list[str]) -> None:
        ran = command("evaluate", *toy, *SMALL, "samples=2")
        assert ran.status == 2 and "sampling=sample" in ran.err


class Scripted:
    """An arm that answers the last id with ids one or more above it; of what is too large it makes nothing."""

    is_lossless: ClassVar[bool] = True

    def __init__(self, name: str, *, step: int = 1) -> None:
        self.name, self.step = name, step
        self.skip: SkipSet | None = None
        self.stop: str | None = None
        self.asked: list[tuple[list[int], int]] = []

    @property
    def about(self) -> dict[str, Any]:
        return {"skip": None, "stop": None}

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        self.asked += [(ids, first_row + i) for i, ids in enumerate(prompts)]
        if any(ids[-1] > 50 for ids in prompts):
            raise RuntimeError("out of memory\nand much more")
        return [DecodeResult([ids[-1] + self.step], [Round(0, 0, 1, 0.0, 0.0)]) for ids in prompts]


def numbers(name: str, texts: Sequence[str]) -> list[int]:
    if len(texts) > 5:
        raise InputError("too long")
    return [int(text) for text in texts]


def text(prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


class TestTurns:
    TWO = Asked(Example("two", "10", turns=("20",)))
    ONE = Asked(Example("one", "30"))

    def ask(self, arm: Scripted, *group: Asked) -> list[list[Any]]:
        talk = Conversations(group, first_row=0, n_rows=len(group), encode=numbers, to_text=text)
        for turn in talk.turns():
            try:
                talk.take(turn, arm(turn.prompts, first_row=turn.first_row))
            except RuntimeError as error:
                talk.take(turn, why_none(error, turn.prompts))
        return [[a.result if isinstance(a.result, str) else a.result.tokens for a in t] for t in talk.answers]

    def test_a_second_turn_follows_the_arms_own_answer(self) -> None:
        arm = Scripted("odd", step=3)
        assert self.ask(arm, self.TWO, self.ONE) == [[[13], [23]], [[33]]]
        assert [ids for ids, _ in arm.asked] == [[10], [30], [10, 13, 20]]

    def test_no_two_answers_draw_from_the_same_streams(self) -> None:
        arm = Scripted("odd")
        self.ask(arm, self.TWO, self.ONE)
        assert len({row for _, row in arm.asked}) == len(arm.asked)

    def test_a_turn_that_fails_takes_those_behind_it_along_and_no_others(self) -> None:
        three = Asked(Example("three", "10", turns=("60", "10")))
        failed = "out of memory"
        assert self.ask(Scripted("odd"), three, self.ONE) == [[[11], failed, failed], [[31]]]

    def test_a_conversation_that_does_not_fit_is_told(self) -> None:
        long = Asked(Example("long", "1", turns=("1", "1", "1")))
        assert self.ask(Scripted("odd"), long) == [[[2], [2], [2], "too long"]]

    def test_rows_name_their_turn_and_a_parted_conversation_keeps_its_verdict(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parted = SimpleNamespace(verdict="near_tie", first_divergence=0, gap=0.0, tolerance=1.0)
        monkeypatch.setattr("experiments.evaluation.interleave.compare", lambda *args: parted)
        decoder: Any = SimpleNamespace(n_layers=2)
        alternate(
            decoder,
            [Scripted("plain"), Scripted("odd", step=2)],
            [self.TWO],
            batch=1,
            warm_up=[1],
            encode=numbers,
            to_text=text,
            is_greedy=True,
            rows_path=tmp_path / run_files.RECORDS,
        )
        rows = latest(rows_of(tmp_path))
        assert sorted(rows) == sorted(("two", 0, turn, arm) for turn in (0, 1) for arm in ("plain", "odd"))
        assert [rows["two", 0, turn, "odd"]["verdict"] for turn in (0, 1)] == ["near_tie", "near_tie"]
        assert rows["two", 0, 1, "odd"]["first_divergence"] is None
