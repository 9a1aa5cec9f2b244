"""How long measuring a cost table takes: no longer than its budget, and less where the spread is small."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search.costs.head_costs import measure_head, round_costs
from search.costs.interleaved_timer import MIN_REPEATS, InterleavedTimer
from search.costs.measure import check, measure, measure_drafts
from search.replay.objectives import cost_of
from search.replay.references import Reference
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, speculate
from selfspec.heads.eagle import Eagle
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.test_heads import copying
from tests.toys import toy

CONTEXTS, MAX_TOKENS, REPEATS = [40, 90], 21, 15


class SlowModel:
    """A toy on a clock of its own: `token_s` for a forward, of which each layer is a part, and more for more tokens."""

    def __init__(self, token_s: float) -> None:
        self.now = 0.0
        self.decoder = Decoder(toy("llama"))
        n = 2 * self.decoder.n_layers + 1
        model = self.decoder.model
        parts = [m for x in model.model.layers for m in (x.self_attn.q_proj, x.mlp.up_proj)]

        def spend(_: object, args: tuple[Tensor], output: object) -> None:
            self.now += token_s / n * (1 + args[0].shape[1] / 16)  # 16 tokens take twice as long as one

        for module in (*parts, model.lm_head):
            module.register_forward_hook(spend)
        self.stopwatch = Stopwatch(clock=lambda: self.now)


def test_a_table_of_a_model_of_5_tokens_a_second_takes_90_s() -> None:
    model = SlowModel(0.2)
    how = {"repeats": REPEATS, "stopwatch": model.stopwatch, "max_s": 90.0}
    table = measure(model.decoder, contexts=CONTEXTS, max_tokens=MAX_TOKENS, **how)  # type: ignore[arg-type]
    assert model.now <= 90
    assert table.plain_s(40) == pytest.approx(0.2 * 17 / 16)
    for k in range(1, MAX_TOKENS + 1):
        assert table.verification_s(k, 90) == pytest.approx(0.2 * (1 + k / 16))
    began, head = model.now, torch.arange(8)
    measure_drafts(model.decoder, table, has_maps=True, head=head, **how)  # type: ignore[arg-type]
    assert model.now - began <= 30
    sets = [SkipSet(model.decoder.n_layers, frozenset([i % 3])) for i in range(20)]
    began = model.now
    check(model.decoder, table, sets, **how)  # type: ignore[arg-type]
    assert model.now - began <= 90


def test_a_decode_takes_what_the_costs_of_its_head_say(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SlowModel(0.2)

    def taking(seconds: float, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*args: Any) -> Tensor:
            model.now += seconds
            return call(*args)

        return timed

    monkeypatch.setattr(Eagle, "extend", taking(0.03, Eagle.extend))  # the first depth reads the accepted tokens
    monkeypatch.setattr(Eagle, "step", taking(0.004, Eagle.step))
    how: dict[str, Any] = {"repeats": REPEATS, "stopwatch": model.stopwatch, "max_s": 90.0}
    table = measure(model.decoder, contexts=[40], max_tokens=MAX_TOKENS, **how)
    plan, began = copying(model.decoder), model.now
    found = measure_head(model.decoder, table, plan, **how)
    assert model.now - began <= 0.15 * 90
    drafter = build_drafter(DraftSpec(plan, Fixed(3)), model.decoder)
    stops, ending = [Fixed(3).begin()], Ending(20)
    (result,) = speculate(
        model.decoder, [[5] * 40], drafter=drafter, stops=stops, ending=ending, stopwatch=model.stopwatch
    )
    said = cost_of(result.rounds, Reference([5] * 40, result.tokens, 20), plan, found)
    assert said.draft_s + said.verify_s == pytest.approx(result.total_s - result.prefill_s)
    costs, plain_s = round_costs(found, plan), table.plain_s(40)
    one = costs.verify[3] + 3 * costs.draft + costs.overhead
    assert one * plain_s == pytest.approx(max(r.draft_s + r.verify_s for r in result.rounds if r.drafted == 3))


def test_a_budget_shortens_nothing_where_it_is_not_needed() -> None:
    tables = []
    for max_s in (90.0, 1e9):
        model = SlowModel(0.001)
        how = {"repeats": 3, "stopwatch": model.stopwatch, "max_s": max_s}
        tables.append((measure(model.decoder, contexts=CONTEXTS, max_tokens=4, **how), model.now))  # type: ignore[arg-type]
    assert tables[0] == tables[1]


def test_a_call_is_repeated_until_its_median_is_settled() -> None:
    now, counts, noise = [0.0], Counter[str](), np.random.default_rng(0)

    def call(name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def spend() -> None:
            counts[name] += 1
            now[0] += seconds()

        return spend

    calls = {"quiet": call("quiet", lambda: 2.0), "noisy": call("noisy", lambda: noise.uniform(2.0, 4.0))}
    steps = []
    timer = InterleavedTimer(
        call("unit", lambda: 1.0), 12, Stopwatch(clock=lambda: now[0]), step=lambda n=1: steps.append(n)
    )
    units = timer.units(calls)
    assert units["quiet"] == pytest.approx(2.0) and 2 < units["noisy"] < 4
    assert counts["quiet"] == MIN_REPEATS + 1 and counts["noisy"] == 12 + 1  # and a warm-up each
    assert sum(steps) == 2 * 12


@pytest.mark.parametrize("max_s", [0.0, 40.0])
def test_the_time_limit_leaves_one_turn_at_least(max_s: float) -> None:
    ticks = itertools.count()
    timer = InterleavedTimer(lambda: None, 9, Stopwatch(clock=lambda: float(next(ticks))), max_s=max_s)
    assert timer.units({"a": lambda: None, "b": lambda: None}) == {"a": 1.0, "b": 1.0}
    assert next(ticks) < 40 + 12
