"""Quality of whole runs: judged after decoding, told at the end, of drafts by themselves too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.evaluation.draft_only import DraftOnlyArm, alone
from experiments.quality.judge import FILE, quality_rows
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.sampling import Sampling
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import RECORDS, read_rows
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from tests import toys
from tests.commands import PROMPTS, command

pytestmark = pytest.mark.usefixtures("empty_folder")

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def answered(tmp_path: Path, toy: list[str]) -> list[str]:
    """The toy's settings, with prompts that have references."""
    file = tmp_path / "answered.jsonl"
    rows = ({"prompt": prompt, "answer": f"{prompt} so it is"} for prompt in PROMPTS)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*toy, f"data.path={file}", "data.reference_field=answer", "max_new_tokens=6", "generate=false"]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toys.toy("llama"))


class TestTheDraftAlone:
    PLAN = DraftPlan.from_skip_set(SkipSet.parse("a1 m2", 3))

    def test_writes_what_a_loop_over_its_forward_writes(self, decoder: Decoder) -> None:
        arm = DraftOnlyArm(decoder, Ending(8), Sampling(), Stopwatch(), "draft alone", self.PLAN)
        (result,) = arm([PROMPT])
        assert result.tokens == looped(decoder, self.PLAN, 8)
        (plain,) = autoregress(decoder, [PROMPT], ending=Ending(8))
        assert plain.tokens == looped(decoder, DraftPlan.from_skip_set(SkipSet(3)), 8) != result.tokens

    def test_that_skips_nothing_is_the_model(self, decoder: Decoder) -> None:
        assert alone(decoder, DraftPlan.from_skip_set(SkipSet(3))).full is decoder.full

    def test_leaves_the_model_as_it_was(self, decoder: Decoder) -> None:
        before = decoder.full
        assert alone(decoder, self.PLAN).full is not before and decoder.full is before


def looped(decoder: Decoder, plan: DraftPlan, n: int) -> list[int]:
    """Greedy tokens, each from the whole text anew."""
    ids, forward = list(PROMPT), decoder.bind(plan)
    with torch.inference_mode():
        for _ in range(n):
            cache = decoder.new_cache(n_rows=1, capacity=len(ids))
            ids.append(int(forward(torch.tensor([ids]), starts=[0], cache=cache)[0, -1].argmax()))
    return ids[len(PROMPT) :]


def test_a_run_is_judged_arm_by_arm_and_the_draft_alone_is_no_mismatch(answered: list[str]) -> None:
    arms = "arms={draft alone: {skip: 'a1,2 m1', draft_only: true}}"
    ran = command("evaluate", *answered, "data.metric=rouge", "skip=a1,2 m1", "arm=drafted", arms)
    assert ran.status == 0, ran
    rows = {(row["arm"], row["prompt_id"]): row for row in read_rows(ran.run / RECORDS)}
    alone = [row for (arm, _), row in rows.items() if arm == "draft alone"]
    assert {row["verdict"] for row in alone} == {"not compared"} and {row["skip"] for row in alone} == {None}
    assert any(row["tokens"] != rows["plain", row["prompt_id"]]["tokens"] for row in alone)
    assert {row["verdict"] for (arm, _), row in rows.items() if arm == "drafted"} == {"identical"}
    assert {r["metric"] for r in quality_rows(ran.run) if r["arm"] == "plain"} == {"rouge1", "rouge2", "rougeL"}
    same = [[(r["prompt_id"], r["metric"], r["value"]) for r in quality_rows(ran.run) if r["arm"] == arm]
            for arm in ("plain", "drafted")]  # fmt: skip
    assert sorted(same[0]) == sorted(same[1]) and len(same[0]) == 3 * 4
    (line,) = (line for line in ran.out.splitlines() if "| draft alone |" in line and "| local |" in line)
    assert "| – | – | not compared |" in line and "draft alone, which" not in ran.out, ran.out
    assert "| plain | rouge1 |" in ran.out and "| draft alone | rouge1 |" in ran.out


def test_no_metric_no_quality(answered: list[str]) -> None:
    ran = command("evaluate", *answered)
    assert ran.status == 0 and not (ran.run / FILE).exists() and "rouge" not in ran.out


def test_a_draft_alone_has_nothing_that_verifies(answered: list[str]) -> None:
    ran = command("evaluate", *answered, "arms={x: {skip: a1, draft_only: true, stop: fixed}}")
    assert ran.status == 2 and "arms.x has draft_only" in ran.err and "leave out its stop" in ran.err, ran


def test_a_missing_reference_is_told_before_anything_is_decoded(toy: list[str]) -> None:
    ran = command("evaluate", *toy, "data.metric=rouge")
    assert ran.status == 2 and "has no reference" in ran.error_lines[-1], ran
    assert not list(Path().rglob(RECORDS))
