"""What a search tells: the worth of each sublayer, the most that skipping could bring, and the sets worth keeping."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from search.costs.table import CostTable
from search.importance import Importance, Tried, fixed_speedup, per_token, predict, singles
from search.pareto import front, write_front
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

Row = dict[str, Any]

N_LAYERS, K, CONTEXT = 3, 5, 100
COSTS = CostTable((50, 150), (0.8, 1.2), 0.5, 0.4, (4.3, 5.5), (4.3, 4.4, 4.5, 4.6, 4.7, 4.8))
EVERY = [SkipSet.from_bits(bits) for bits in itertools.product((False, True), repeat=2 * N_LAYERS)]


def row(skip: SkipSet | str, value: float = 1.0, *, state: str = "complete", **more: Any) -> Row:
    """A row of a trial, of 100 rounds that drafted `K` tokens each."""
    counts = {"accepted": 400, "drafted": 100 * K, "n_rounds": 100}
    return {"number": 0, "skip": str(skip), "value": value, "state": state, **counts, **more}


def failed(skip: SkipSet | str) -> Row:
    numbers = dict.fromkeys(("value", "accepted", "drafted", "n_rounds"))
    return row(skip, state="failed") | numbers


def drafted(chance: float, lengths: Sequence[int], rng: np.random.Generator) -> Row:
    """The counts of rounds of these lengths, each of whose tokens is accepted with that chance."""
    runs = [int(rng.geometric(1 - chance)) - 1 if chance < 1 else k for k in lengths]
    accepted = sum(min(run, k) for run, k in zip(runs, lengths, strict=True))
    return {"accepted": accepted, "drafted": sum(lengths), "n_rounds": len(lengths)}


def map_rows(chances: dict[SkipSet, float], counts: Callable[[float], Row]) -> list[Row]:
    """Skip nothing, and each sublayer alone."""
    return [row(SkipSet(N_LAYERS), **counts(1.0)), *(row(skip, **counts(a)) for skip, a in chances.items())]


def chances(rng: np.random.Generator) -> dict[SkipSet, float]:
    """Of each sublayer, what is left of acceptance when it alone is skipped."""
    return {skip: float(rng.choice([rng.uniform(0.97, 1), rng.uniform(0.5, 1)])) for skip in singles(N_LAYERS)}


def together(chances: dict[SkipSet, float], skip: SkipSet) -> float:
    """Acceptance of one token if sublayers do not interact."""
    return math.prod(a for s, a in chances.items() if s.attn <= skip.attn and s.mlp <= skip.mlp)


def optimum(chance: Callable[[SkipSet], float], costs: CostTable) -> float:
    """The best speedup of all 64 sets and lengths."""
    return max(fixed_speedup(chance(skip), skip, costs, context=CONTEXT, max_draft=K)[0] for skip in EVERY)


def some_costs(rng: np.random.Generator) -> CostTable:
    """A device where verification costs more or less, and attention or the MLP dominates."""
    attn_s, mlp_s, base_s = rng.uniform(0.1, 2, 3)
    full_s = base_s + N_LAYERS * (attn_s + mlp_s)
    verify_s = full_s * (1 + rng.uniform(0, 0.3) * np.arange(K + 1))
    return CostTable((CONTEXT,), (attn_s,), mlp_s, base_s, (full_s,), tuple(verify_s.tolist()))


class TestImportance:
    def test_knows_each_sublayer_that_was_skipped_alone_and_which_were_not(self) -> None:
        alone = Importance.from_rows([row("a1-2 m0", 9.0), row("none", 1.0), row("a1", 2.0), row("m2", 3.0)], N_LAYERS)
        assert {str(skip): tried.value for skip, tried in alone.alone.items()} == {"a1": 2.0, "m2": 3.0}
        assert alone.nothing.value == 1.0
        assert [str(skip) for skip in alone.missing] == ["a0", "m0", "m1", "a2"]

    def test_a_failed_trial_tells_nothing_and_its_repetition_does(self) -> None:
        alone = Importance.from_rows(
            [row("none"), failed("a1"), failed("m1"), row("m1", 2.0), row("m1", 5.0)], N_LAYERS
        )
        assert {str(skip): tried.value for skip, tried in alone.alone.items()} == {"m1": 2.0}

    def test_a_pruned_trial_tells_its_counts_but_no_value(self) -> None:
        tried = Importance.from_rows([row("none"), row("a1", 0.3, state="pruned")], N_LAYERS).alone[
            SkipSet.parse("a1", N_LAYERS)
        ]
        assert (tried.value, tried.acceptance) == (None, 0.8)

    def test_a_trial_that_was_scored_to_its_end_counts_before_one_that_was_not(self) -> None:
        rows = [row("none"), row("a1", 0.3, state="pruned"), row("a1", 0.9)]
        assert Importance.from_rows(rows, N_LAYERS).alone[SkipSet.parse("a1", N_LAYERS)].value == 0.9

    @pytest.mark.parametrize("rows", [[], [row("a1")], [failed("none"), row("a1")]])
    def test_without_the_empty_skip_set_there_is_nothing_to_compare(self, rows: list[Row]) -> None:
        with pytest.raises(InputError, match=f"none of {len(rows)} trials skips nothing"):
            Importance.from_rows(rows, N_LAYERS)


class TestPerToken:
    @pytest.mark.parametrize("chance", [0.0, 0.3, 0.9, 0.99, 1.0])
    def test_is_the_chance_that_made_the_counts(self, chance: float) -> None:
        n_rounds = 10**12  # so that rounding the expected count to whole tokens is not seen
        accepted = round(n_rounds * sum(chance**k for k in range(1, K + 1)))
        tried = Tried(None, accepted, K * n_rounds, n_rounds)
        assert per_token(tried, max_draft=K) == pytest.approx(chance, abs=1e-9)

    @pytest.mark.parametrize("chance", [0.5, 0.9, 0.98])
    def test_is_no_less_than_that_if_rounds_were_shorter(self, chance: float) -> None:
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, K + 1, size=20_000).tolist()
        tried = Tried(None, *drafted(chance, lengths, rng).values())
        assert chance < per_token(tried, max_draft=K) < 1

    @pytest.mark.parametrize("accepted", [0, 1, 250, 400, 499, 500])
    def test_predicts_at_every_length_no_less_than_any_rule_got(self, accepted: int) -> None:
        chance = per_token(Tried(None, accepted, 500, 200), max_draft=K)  # 2.5 tokens a round, whyever
        for k in range(1, K + 1):
            assert sum(chance**i for i in range(1, k + 1)) >= k * accepted / 500 - 1e-12

    def test_a_rule_that_was_chosen_for_the_set_tells_its_own_limit(self) -> None:
        chosen = row("a1", stop={"name": "fixed", "max_draft": K})
        assert per_token(Tried.from_row(chosen), max_draft=20) == per_token(Tried.from_row(row("a1")), max_draft=K)

    def test_refuses_a_limit_that_the_trials_exceeded(self) -> None:
        with pytest.raises(InputError, match=r"max_draft=4, but the trials drafted 5\.0 tokens a round"):
            per_token(Tried.from_row(row("a1")), max_draft=4)


class TestPredict:
    @pytest.mark.parametrize("seed", range(8))
    def test_is_the_optimum_if_sublayers_do_not_interact(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        alone, costs = chances(rng), some_costs(rng)
        rows = map_rows(alone, lambda a: {"accepted": sum(a**k for k in range(1, K + 1)), "drafted": K, "n_rounds": 1})
        verdict = predict(Importance.from_rows(rows, N_LAYERS), costs, context=CONTEXT, max_draft=K)
        assert verdict.bound == pytest.approx(optimum(lambda skip: together(alone, skip), costs)), str(verdict.skip)
        assert verdict.acceptance == pytest.approx(together(alone, verdict.skip))

    @pytest.mark.parametrize("seed", range(4))
    def test_is_no_less_than_the_optimum_for_any_rounds_and_counts(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        alone, costs = chances(rng), some_costs(rng)
        rows = map_rows(alone, lambda a: drafted(a, rng.integers(1, K + 1, size=4_000).tolist(), rng))
        verdict = predict(Importance.from_rows(rows, N_LAYERS), costs, context=CONTEXT, max_draft=K)
        assert verdict.bound >= optimum(lambda skip: together(alone, skip), costs), str(verdict.skip)

    def test_is_no_less_than_the_optimum_of_sublayers_that_harm_each_other(self) -> None:
        rng = np.random.default_rng(0)
        alone, costs = chances(rng), some_costs(rng)
        rows = map_rows(alone, lambda a: {"accepted": sum(a**k for k in range(1, K + 1)), "drafted": K, "n_rounds": 1})
        harmed = optimum(lambda skip: together(alone, skip) * 0.9 ** max(0, len(skip) - 1), costs)
        assert predict(Importance.from_rows(rows, N_LAYERS), costs, context=CONTEXT, max_draft=K).bound > harmed

    def test_a_sublayer_of_which_nothing_is_known_counts_as_harmless(self) -> None:
        verdict = predict(Importance.from_rows([row("none"), row("a1")], N_LAYERS), COSTS, context=CONTEXT, max_draft=K)
        assert {0, 2} <= verdict.skip.attn and {0, 1, 2} <= verdict.skip.mlp
        assert verdict.n_missing == 5 and "1 of 6 sublayers" in verdict.text()

    def test_acceptance_above_that_of_skipping_nothing_counts_as_equal(self) -> None:
        rows = [row("none", accepted=400), *(row(skip, accepted=450) for skip in singles(N_LAYERS))]
        verdict = predict(Importance.from_rows(rows, N_LAYERS), COSTS, context=CONTEXT, max_draft=K)
        assert verdict.acceptance == 1

    def test_says_in_one_sentence_that_skipping_will_not_pay(self) -> None:
        rows = [row("none", accepted=500), *(row(skip, accepted=100) for skip in singles(N_LAYERS))]
        verdict = predict(Importance.from_rows(rows, N_LAYERS), COSTS, context=CONTEXT, max_draft=K)
        assert not verdict.pays()
        assert verdict.text() == (
            f"plain skipping will not pay on this model and device: at best {verdict.bound:.2f}x of plain decoding "
            "(predicted from all 6 sublayers skipped alone, as if they did not make each other's losses worse)"
        )

    def test_says_that_it_may_pay_where_the_bound_reaches_the_threshold(self) -> None:
        rows = [row("none", accepted=500), *(row(skip, accepted=490) for skip in singles(N_LAYERS))]
        verdict = predict(Importance.from_rows(rows, N_LAYERS), COSTS, context=CONTEXT, max_draft=K)
        assert verdict.pays() and "may pay" in verdict.text()
        assert verdict.pays(verdict.bound) and not verdict.pays(verdict.bound + 1e-9)
        assert verdict.draft_cost == COSTS.draft_s(verdict.skip, CONTEXT) / COSTS.plain_s(CONTEXT)

    def test_drafts_longer_where_drafting_is_cheap_and_verifying_is_not(self) -> None:
        skip = SkipSet.parse("a0-2 m0-2", N_LAYERS)
        dear = CostTable((CONTEXT,), (1.0,), 1.0, 0.1, (6.1,), (6.1, 9.0, 12.0, 15.0, 18.0, 21.0))
        flat = CostTable((CONTEXT,), (1.0,), 1.0, 0.01, (6.01,), (6.01,) * 6)
        lengths = [fixed_speedup(0.5, skip, costs, context=CONTEXT, max_draft=K)[1] for costs in (dear, flat)]
        assert lengths == [1, K]

    def test_the_engines_own_time_counts(self) -> None:
        slower = replace(COSTS, overhead_s=1.0)
        skip = SkipSet.parse("a0-2", N_LAYERS)
        values = [fixed_speedup(0.9, skip, costs, context=CONTEXT, max_draft=1)[0] for costs in (COSTS, slower)]
        round_s = COSTS.draft_s(skip, CONTEXT) + COSTS.verification_s(2, CONTEXT)
        assert values[1] == pytest.approx(values[0] * round_s / (round_s + 1.0))

    def test_a_map_without_a_sublayer_predicts_nothing(self) -> None:
        with pytest.raises(InputError, match="no trial skips one sublayer alone"):
            predict(Importance.from_rows([row("none")], N_LAYERS), COSTS, context=CONTEXT, max_draft=K)


def grid_row(number: int, cost: float | None, acceptance: float | None, value: float = 1.0, **more: Any) -> Row:
    return row(f"a{number % 3}", value, number=number, draft_cost=cost, acceptance=acceptance, **more)


def beats(a: Row, b: Row) -> bool:
    """The definition, word for word."""
    no_worse = a["draft_cost"] <= b["draft_cost"] and a["acceptance"] >= b["acceptance"]
    equal = (a["draft_cost"], a["acceptance"]) == (b["draft_cost"], b["acceptance"])
    return no_worse and (not equal or (a["value"], -a["number"]) > (b["value"], -b["number"]))


class TestFront:
    @pytest.mark.parametrize("seed", range(10))
    def test_is_exactly_the_rows_that_none_beats(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = [grid_row(i, *map(float, rng.integers(0, [8, 8, 3]))) for i in range(60)]
        found = front(rows)
        unbeaten = [a for a in rows if not any(beats(b, a) for b in rows)]
        assert sorted(r["number"] for r in found) == [r["number"] for r in unbeaten]
        assert [r["draft_cost"] for r in found] == sorted({r["draft_cost"] for r in found})
        assert [r["acceptance"] for r in found] == sorted({r["acceptance"] for r in found})

    def test_of_equal_rows_the_better_stays_and_then_the_earlier(self) -> None:
        rows = [grid_row(n, 0.5, 0.9, value) for n, value in enumerate((1.0, 2.0, 2.0))]
        assert [r["number"] for r in front(rows)] == [1]
        assert [r["number"] for r in front(rows[::-1])] == [1]

    def test_leaves_out_what_has_no_place_on_it(self) -> None:
        old = {k: v for k, v in grid_row(1, 0.1, 1.0).items() if k != "draft_cost"}
        rows = [failed("a0"), old, grid_row(2, None, 1.0), grid_row(3, 0.1, None), grid_row(4, 0.5, 0.9)]
        rows += [grid_row(5, 0.1, 1.0, state="pruned")]
        assert [r["number"] for r in front(rows)] == [4]
        assert front([]) == []

    def test_is_written_cheapest_first_with_the_model_that_it_is_for(self, tmp_path: Path) -> None:
        rows = [grid_row(0, 0.9, 0.99, 1.2), grid_row(1, 0.4, 0.8, 1.1), grid_row(2, 0.9, 0.7, 0.8)]
        write_front(tmp_path / "front.yaml", rows, model="toy", n_layers=N_LAYERS, run="r")
        body = yaml.safe_load((tmp_path / "front.yaml").read_text())
        assert (body["model"], body["n_layers"], body["run"]) == ("toy", N_LAYERS, "r")
        assert body["sets"] == [
            {"skip": "a1", "draft_cost": 0.4, "acceptance": 0.8, "value": 1.1},
            {"skip": "a0", "draft_cost": 0.9, "acceptance": 0.99, "value": 1.2},
        ]
