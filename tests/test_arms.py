"""Arms with drafts of their own: each is the draft it names, all say what plain decoding says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.evaluation.arms import DraftArm, GenerateArm, generation
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Criterion, Ending, autoregress
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records import run_files
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.speculator import Speculator
from selfspec.stopping import RuleState, StopRule, StopState
from tests.commands import Ran, command
from tests.toys import toy as toy_model

SMALL = ("max_new_tokens=12", "n=2", "generate=false", "calibration.max_new_tokens=12", "calibration.n_tokens=64")
COSTS = {
    **{"contexts": [16], "attn_s": [1.0], "mlp_s": 2.0, "base_s": 3.0, "full_s": [15.0], "verify_s": [15.0, 16.0, 17.0]}
}


def evaluated(toy: list[str], folder: Path, arms: str, *words: str) -> Ran:
    return command("evaluate", *toy, f"paths.outputs={folder}", *SMALL, f"arms={arms}", *words)


def rows(ran: Ran) -> list[dict[str, Any]]:
    assert ran.status == 0, ran.err
    return run_files.read_rows(ran.run / run_files.RECORDS)


def drafts(ran: Ran) -> dict[str, Any]:
    """What each arm drafts with, as the provenance has it."""
    arms = json.loads((ran.run / run_files.PROVENANCE).read_text())["run"]["arms"]
    return {name: about.get("draft") for name, about in arms.items()}


@pytest.fixture(scope="module")
def ran(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    arms = {
        "nothing": "{skip: 'a1 m2', draft: skip}",
        "mean": "{skip: 'a1 m2', draft: mean, head: null}",
        "linear": "{skip: 'a1 m2', draft: linear, head: 40}",
        "whole": "{skip: 'a1 m2', draft: lowrank, head: full, precision: same}",
        "copy": "{lookup: only}",
        "front": "{skip: 'a1 m2', draft: mean, lookup: front, stop: fixed}",
    }
    text = ", ".join(f"{name}: {settings}" for name, settings in arms.items())
    return evaluated(toy, tmp_path_factory.mktemp("out"), f"{{{text}}}")


class TestDraftsOfTheirOwn:
    def test_each_says_what_plain_decoding_says(self, ran: Ran) -> None:
        verdicts = {(row["arm"], row["verdict"]) for row in rows(ran) if row["arm"] != "plain"}
        assert {verdict for _, verdict in verdicts} == {"identical"} and len(verdicts) == 7

    def test_each_drafts_with_what_it_names(self, ran: Ran) -> None:
        assert ran.status == 0, ran.err
        assert drafts(ran) == {
            "plain": None,
            "skip nothing, adaptive": "none",
            "nothing": "a1 m2",
            "mean": "a1 m2, mean at a1 m2",
            "linear": "a1 m2, linear at a1 m2, head of 40",
            "whole": "a1 m2, lowrank at a1 m2",
            "copy": None,
            "front": "a1 m2, mean at a1 m2",
        }

    def test_drafts_of_other_kinds_draft_other_tokens(self, ran: Ran) -> None:
        accepted = {arm: sum(r["accepted"] for r in rows(ran) if r["arm"] == arm) for arm in ("nothing", "linear")}
        drafted = {arm: sum(r["drafted"] for r in rows(ran) if r["arm"] == arm) for arm in ("nothing", "linear")}
        assert (accepted["nothing"], drafted["nothing"]) != (accepted["linear"], drafted["linear"])


def test_a_plan_keeps_what_an_arm_does_not_name(toy: list[str], tmp_path: Path) -> None:
    words = ("draft=linear", "head=trimmed", "head.n=40", "searcher=random", "searcher.n_trials=6", "finals.top=0")
    words += ("constraints.min_skipped=1",)  # where nothing is skipped, nothing is fitted
    small = ("starts=[nothing,uniform]", "objective.n_prompts=1", "objective.max_new_tokens=8", "costs.repeats=1")
    fit = ("calibration.max_new_tokens=12", "costs.contexts=[16]", "costs.max_tokens=4", "objective.batch_starts=64")
    found = command("search", *toy, f"paths.outputs={tmp_path}", *words, *small, *fit, "stop.max_draft=3", "prune=null")
    assert found.status == 0, found.err
    settings = {"own": "", "whole": ", head: full", "mean": ", draft: mean"}
    arms = ", ".join(f"{name}: {{skip: {found.run}{more}}}" for name, more in settings.items())
    told = drafts(evaluated(toy, tmp_path, f"{{{arms}}}"))
    assert ("linear" in told["own"], "head of 40" in told["own"]) == (True, True)
    assert ("linear" in told["whole"], "head of" in told["whole"]) == (True, False)
    assert ("mean" in told["mean"], "head of 40" in told["mean"]) == (True, True)


def test_an_unskipped_arm_keeps_all_of_a_plan_but_its_skip_set(toy: list[str], tmp_path: Path) -> None:
    words = ("searcher=random", "searcher.n_trials=3", "starts=[uniform]", "prune=null", "draft=mean", "precision=int8")
    small = ("objective.n_prompts=1", "objective.max_new_tokens=6", "finals.top=0", "calibration.max_new_tokens=6")
    costs = ("costs.contexts=[16]", "costs.max_tokens=4", "costs.repeats=1", f"paths.outputs={tmp_path}")
    found = command("search", *toy, *words, *small, *costs, "constraints.min_skipped=2")
    assert found.status == 0, found.err
    ran = evaluated(toy, tmp_path, f"{{whole: {{skip: {found.run}}}, control: {{skip: {found.run}, unskipped: true}}}}")
    assert ran.status == 0, ran.err
    whole, control = (next(row for row in rows(ran) if row["arm"] == name) for name in ("whole", "control"))
    assert whole["skip"] != "none" and control["skip"] == "none"
    assert "int8" in drafts(ran)["whole"] and "int8" in drafts(ran)["control"]
    assert "mean" in drafts(ran)["whole"] and "mean" not in drafts(ran)["control"]


def test_nothing_is_fitted_where_no_arm_asks(toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise AssertionError("calibration prompts were decoded")

    monkeypatch.setattr("experiments.builders.build_arms.continued", refuse)
    assert rows(evaluated(toy, tmp_path, "{a: {skip: a1, head: full, precision: same}, b: {skip: a1, draft: skip}}"))


def test_a_tuned_optimal_rule_takes_its_costs_from_the_clock(toy: list[str], tmp_path: Path) -> None:
    table = tmp_path / "costs.json"
    table.write_text(json.dumps({"costs": COSTS}))
    arms = "{tuned: {skip: a1, stop: optimal, tune_stop: true, lookup: front}}"
    ran = evaluated(toy, tmp_path, arms, f"costs.path={table}", "costs.repeats=1")
    assert {row["verdict"] for row in rows(ran) if row["arm"] == "tuned"} == {"identical"}
    assert "verify_cost 0.067" in ran.err


@pytest.mark.parametrize(
    ("arms", "piece"),
    [
        ("{a: {skip: a1, draft: liner}}", "did you mean 'linear'?"),
        (
            "{a: {skip: a1, stop: {fixed: {max_draft: x}}}}",
            "stop.fixed.max_draft=x was asked for, but it must be a whole",
        ),
        ("{a: {skip: a1, head: 0}}", "head=0"),
        ("{a: {skip: a1, head: whole}}", "head=whole"),
        ("{a: {skip: a1, precision: int5}}", "int5"),
        ("{a: {skip: a1, stop: fixed, tune_stop: true}}", "stop=fixed"),
        ("{a: {lookup: only, stop: optimal, tune_stop: true}}", "lookup=only"),
        ("{a: {generate: {prompt_lookup_num_tokens: 5}, skip: a1}}", "generate alone"),
        ("{a: {generate: {}}}", "generate alone"),
        ("{a: {skip: a1, accept_top: 2, accept_distance: 0.5}}", "give one of them"),
        ("{a: {generate: {prompt_lookup_tokens: 5}}}", "prompt_lookup_num_tokens"),
        ("{a: {generate: {max_new_tokens: 5}}}", "the run's"),
    ],
)
def test_an_arm_that_cannot_be_is_told_in_one_line(arms: str, piece: str, toy: list[str], tmp_path: Path) -> None:
    ran = evaluated(toy, tmp_path, arms)
    assert ran.status == 2 and len(ran.error_lines) == 1
    assert piece in ran.error_lines[0]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy_model("llama-tied"))


@dataclass(frozen=True)
class Following(StopRule):
    """Drafts one token, and remembers every state it went on from."""

    max_draft: int = 1

    def begin(self, after: StopState | None = None) -> StopState:
        return Follower(after)


@dataclass(eq=False)
class Follower(RuleState):
    after: StopState | None

    def more(self, n_drafted: int, confidence: float) -> bool:
        return False


class TestStateOfEachRow:
    """What a stop rule has learnt on a row goes on in that row, whatever the size of the batch."""

    def arm(self) -> DraftArm:
        decoder = Decoder(toy_model("llama"))
        common = (decoder, Ending(3), Sampling(), Stopwatch())
        spec = DraftSpec(DraftPlan.from_skip_set(SkipSet(decoder.n_layers)), Following())
        return DraftArm(*common, name="x", skip=None, stop=None, speculator=Speculator(decoder, spec))

    def test_each_row_goes_on_from_itself_and_a_new_one_from_the_last(self) -> None:
        arm, prompts = self.arm(), [[1, 2], [3, 4], [5, 6], [7, 8], [9, 1]]
        arm(prompts[:3])
        first = list(arm.speculator.states)
        assert [state.after for state in first] == [None] * 3
        arm(prompts[:2])
        second = list(arm.speculator.states)
        assert [state.after for state in second[:2]] == first[:2] and second[2] is first[2]
        arm(prompts)
        assert [state.after for state in arm.speculator.states] == [*second, second[2], second[2]]

    def test_one_after_another_each_goes_on_from_the_one_before(self) -> None:
        arm, seen = self.arm(), [None]
        for prompt in ([1, 2], [3, 4], [5, 6]):
            arm([prompt])
            (state,) = arm.speculator.states
            assert state.after is seen[-1]
            seen.append(state)


class TestGenerate:
    """transformers' own prompt lookup, which commits several tokens at once."""

    def both(self, decoder: Decoder, ending: Ending) -> tuple[Any, Any]:
        ids = [1, 2, 3, 1, 2, 3, 1, 2]
        (plain,) = autoregress(decoder, [ids], ending=ending)
        settings = generation("a", {"prompt_lookup_num_tokens": 5}, batch=1)
        (looked_up,) = GenerateArm(decoder, ending, Sampling(), Stopwatch(), settings=settings)([ids])
        return plain, looked_up

    def test_says_what_plain_decoding_says(self, decoder: Decoder) -> None:
        plain, looked_up = self.both(decoder, Ending(30))
        assert looked_up.tokens == plain.tokens

    @pytest.mark.parametrize("at", [3, 10, 17])
    def test_ends_at_a_stop_string_among_the_tokens_of_one_step(self, at: int, decoder: Decoder) -> None:
        n_prompt = 8
        is_over: Criterion = lambda ids: len(ids) == n_prompt + at  # noqa: E731
        plain, looked_up = self.both(decoder, Ending(30, criterion=is_over))
        assert (looked_up.tokens, looked_up.finish) == (plain.tokens, "stop")

    def test_takes_one_prompt_at_a_time(self) -> None:
        with pytest.raises(InputError, match="batch=1"):
            generation("a", {"prompt_lookup_num_tokens": 5}, batch=2)

    def test_is_an_arm_of_an_evaluation(self, toy: list[str], tmp_path: Path) -> None:
        ran = evaluated(toy, tmp_path, "{hf lookup: {generate: {prompt_lookup_num_tokens: 10}}}")
        assert [row["verdict"] for row in rows(ran) if row["arm"] == "hf lookup"] == ["identical"] * 2

    def test_is_not_compared_if_it_is_asked_for_other_tokens(self, toy: list[str], tmp_path: Path) -> None:
        ran = evaluated(toy, tmp_path, "{hf: {generate: {no_repeat_ngram_size: 1}}}")
        assert [row["verdict"] for row in rows(ran) if row["arm"] == "hf"] == ["not compared"] * 2


def test_an_approximate_arm_is_called_so_and_never_identical(toy: list[str], tmp_path: Path) -> None:
    ran = evaluated(toy, tmp_path, "{loose: {skip: a1, accept_top: 999}}")
    loose = [row for row in rows(ran) if row["arm"] == "loose (approximate: top 999)"]
    assert {row["verdict"] for row in loose} == {"not compared"}
    assert all(row["accepted"] == row["drafted"] > 0 for row in loose)  # any token stands
    (line,) = (line for line in ran.out.splitlines() if line.startswith("|") and "(approximate: top 999)" in line)
    assert "| approximate | – | – |" in line and "loose (" not in "".join(
        x for x in ran.out.split("\n") if x[:1] == ">"
    )


@pytest.mark.parametrize(
    ("words", "controls"),
    [
        (("skip=a1", "lookup=front"), {"nothing skipped": "none", "lookup alone": None}),
        (("skip=a1", "lookup=front", "controls=false"), {}),
        (("skip=a1", "arms={bare: {skip: a1, unskipped: true}}"), {"bare": "none"}),
        (("skip=none",), {}),
    ],
)
def test_a_draft_is_evaluated_beside_its_controls(
    words: tuple[str, ...], controls: dict[str, str | None], toy: list[str], tmp_path: Path
) -> None:
    quick = ("max_new_tokens=4", "n=1", "generate=false", "arm=mine", f"paths.outputs={tmp_path}")
    found = drafts(command("evaluate", *toy, *quick, *words))
    assert {name: draft for name, draft in found.items() if name not in ("plain", "mine")} == controls
