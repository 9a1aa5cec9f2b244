"""The steps of a batch are timed, fitted and kept, and an evaluation in batches is controlled by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from search.costs.batch import fitted, measure_steps
from selfspec.control import StepCosts
from selfspec.control.measured import measure_drafting
from selfspec.control.step_costs import terms
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import RECORDS, read_rows
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.commands import command
from tests.toys import toy

QUICK = "costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=1", "costs.rows=[1,2]"
POINTS = [(n, k, c) for c in (64, 512) for n in (1, 2, 4, 8) for k in (1, 2, 4, 8)]


class SlowModel:
    """A toy on a clock of its own: a forward takes 0.1 s, 0.01 for each row and 0.02 for each of their tokens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.decoder = Decoder(toy("llama"))
        self.stopwatch = Stopwatch(clock=lambda: self.now)

        def spend(_: object, args: tuple[Tensor], output: object) -> None:
            n_rows, n_tokens = args[0].shape[:2]
            self.now += 0.1 + 0.01 * n_rows + 0.02 * n_rows * n_tokens

        self.decoder.model.model.layers[0].mlp.register_forward_hook(spend)


def test_the_seconds_of_rows_and_tokens_are_found() -> None:
    model = SlowModel()
    costs = measure_steps(
        model.decoder, rows=[1, 2, 4], contexts=[8, 24], repeats=2, stopwatch=model.stopwatch, of={"device": "toy"}
    )
    assert costs.verify_s(4, 8, 24) == pytest.approx(0.1 + 0.04 + 0.64)
    assert costs.verify_s(3, 5, 8) == pytest.approx(0.1 + 0.03 + 0.3)
    assert costs.prefill_s(50, 8) == pytest.approx(0.11 + 1.0)
    assert costs.r2 == pytest.approx(1) and costs.of == {"device": "toy"}
    nothing = SkipSet(model.decoder.n_layers)
    drafter = build_drafter(DraftSpec(DraftPlan.from_skip_set(nothing), Fixed(4), lookup="front"), model.decoder)
    found = measure_drafting(model.decoder, drafter, n_rows=4, context=8, stopwatch=model.stopwatch)
    assert found == pytest.approx((0.1, 0.03))
    alone = build_drafter(DraftSpec(DraftPlan.from_skip_set(nothing), Fixed(4), lookup="only"), model.decoder)
    assert measure_drafting(model.decoder, alone, n_rows=4, context=8, stopwatch=model.stopwatch) is None


def test_the_fit_is_judged_by_sizes_that_it_has_not_seen() -> None:
    true = StepCosts((0.1, 0.01, 0.002, 0.02, 1e-5))
    rng = np.random.default_rng(0)
    good = fitted({p: true.verify_s(*p) * rng.normal(1, 0.02) for p in POINTS})
    assert good.r2 is not None and good.r2 > 0.98
    assert good.verify_s(3, 6, 200) == pytest.approx(true.verify_s(3, 6, 200), rel=0.05)
    bad = fitted({p: float(rng.uniform(0.1, 1)) for p in POINTS})
    assert bad.r2 is not None and bad.r2 < 0.5
    assert min(bad.verify) >= 0 and len(bad.verify) == len(terms(1, 1, 1))


def test_a_batch_is_controlled_by_the_costs_of_this_machine(toy: list[str], empty_folder: Path) -> None:
    batch = *toy, *QUICK, "max_new_tokens=6", "skip=a1", "stop=fixed", "generate=false", "controls=false"
    without = command("evaluate", *batch, "batch=2", "n=2")
    assert "`selfspec profile` measures what batches cost here" in without.err
    ran = command("profile", *toy, *QUICK, "check=0")
    assert ran.status == 0, ran.err
    assert "a step of rows x tokens, in plain tokens: 1 x 1: " in ran.out and "R² on held-out sizes" in ran.out
    costs = StepCosts.from_dict(json.loads((ran.run / "costs.json").read_text())["steps"])
    assert costs.of is not None and costs.of["device"] == "cpu"
    arms = "arms={short: {skip: a1, controller: fixed}, off: {lookup: only, controller: none}}"
    found = command("evaluate", *batch, "batch=2", "n=4", arms)
    assert found.status == 0, found.err
    about = json.loads((found.run / "provenance.json").read_text())["run"]["arms"]
    own, short, off = (about[name] for name in about if name != "plain")
    assert own["controller"]["name"] == "goodput" and short["controller"] == {"name": "fixed", "max_draft": 4}
    assert "controller" not in off
    assert {row["verdict"] for row in read_rows(found.run / RECORDS)} == {"baseline", "identical"}
    alone = command("evaluate", *batch, "n=1")
    about = json.loads((alone.run / "provenance.json").read_text())["run"]["arms"]
    assert not any("controller" in arm for arm in about.values())


def test_costs_of_elsewhere_are_refused_in_one_line(toy: list[str], empty_folder: Path) -> None:
    asked = *toy, "skip=a1", "max_new_tokens=4", "controller=goodput", "batch=2"
    ran = command("evaluate", *asked, "costs=h100/smollm2-135m")
    assert ran.status == 2 and len(ran.error_lines) == 1
    assert "costs=h100/smollm2-135m is of another device" in ran.err
    table = {"costs": {}, "steps": StepCosts((1.0, 0, 0, 0, 0), of={"device": "cuda"}).to_dict()}
    Path("there.json").write_text(json.dumps(table), encoding="utf-8")
    ran = command("evaluate", *asked, "costs.path=there.json")
    assert ran.status == 2 and "were measured with device=cuda, and here it is cpu" in ran.error_lines[-1]
    Path("there.json").write_text('{"costs": {}}', encoding="utf-8")
    ran = command("evaluate", *asked, "costs.path=there.json")
    assert ran.status == 2 and "there.json holds no costs of batches" in ran.error_lines[-1]
