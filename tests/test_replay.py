"""Replay counts what the real decoder counts, to the integer, and gives the same number twice."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from search.costs.measure import check, measure
from search.costs.table import GRID, CostTable, spread
from search.draft_of_point import Drafts
from search.multi_dataset import MultiDataset
from search.replay.chain_replay import draft_everything, replay, replay_in_turn
from search.replay.chains import Chains
from search.replay.objectives import ReplayObjective, accepted_fraction, as_raced, cost_of, expected_speedup
from search.replay.parallel_agreement import count_agreed
from search.replay.references import Reference, ReferenceBatch, decode_references
from search.replay.rule_tuner import Widest, calibration, pausing, variants, verify_cost
from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.trace import Round
from selfspec.engine.verify import judge_greedy
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Adaptive, Fixed, Heuristic, Optimal, PauseWhenUnprofitable, StopPolicy, Svip, Threshold
from tests.toys import FAMILIES, every_kernel, toy

N_NEW = 20
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5, 4, 3], [11, 5, 11, 5, 2], [40]]
RULES: list[StopPolicy] = [
    Fixed(1),
    Fixed(5),
    Threshold(6, 0.1),
    Adaptive(6, 0.1, 0.5, 0.05, 0.5, 0.5, False),
    Heuristic(6, 3, 2, 1, False),
    Optimal(6, 0.5, 0.02, ((0.0, 0.0), (1.0, 1.0)), 4, False),
    PauseWhenUnprofitable(Threshold(6, 0.1), 2.0, 0.1, window=2, pause=2, longest_pause=4),  # pauses a lot
    Svip(6, 0.6, 0.1),
]
COSTS = CostTable((64,), (1.0,), 2.0, 3.0, (15.0,), (15.0, 16.0, 17.0))


def test_a_cost_table_with_a_negative_sum_makes_a_rule_that_drafts() -> None:
    noisy = CostTable((64,), (10.0,), 10.0, -3.0, (15.0,), (15.0, 14.0, 13.0))
    plan = DraftPlan.from_skip_set(SkipSet.parse("a0-2 m0-2", 3))
    rule = pausing(Fixed(2), plan, noisy, context=64)
    assert (rule.draft_cost, rule.verify_cost) == (0.0, 0.0) and rule.begin().begins()


def skip_sets(n_layers: int) -> list[SkipSet]:
    rng = random.Random(0)
    sets = [SkipSet(n_layers), SkipSet.from_bits([True] * (2 * n_layers))]
    return sets + [SkipSet.from_bits([rng.random() < 0.3 for _ in range(2 * n_layers)]) for _ in range(3)]


def ending_of(decoder: Decoder) -> Ending:
    """Ends some of the prompts early: at a token that the first of them says halfway."""
    (batch,) = decode_references(decoder, PROMPTS[:1], ending=Ending(N_NEW, frozenset()))
    return Ending(N_NEW, frozenset([batch.references[0].tokens[N_NEW // 2]]))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy("llama"))


@pytest.fixture(scope="module")
def ending(decoder: Decoder) -> Ending:
    return ending_of(decoder)


@pytest.fixture(scope="module", params=[256, 25], ids=["one batch", "several batches"])
def batches(decoder: Decoder, ending: Ending, request: pytest.FixtureRequest) -> list[ReferenceBatch]:
    return decode_references(decoder, PROMPTS, ending=ending, batch_starts=request.param)


def counts_equal(
    decoder: Decoder,
    batches: Sequence[ReferenceBatch],
    stop: StopPolicy,
    ending: Ending,
    skip: SkipSet | DraftPlan,
    look_ahead: int | None = None,
) -> None:
    forward = decoder.bind(skip)
    for batch in batches:
        chains = Chains(forward, batch, max_draft=stop.max_draft)
        for reference, rounds in zip(batch.references, replay(chains, stop, look_ahead=look_ahead), strict=True):
            (real,) = speculate(
                decoder, [reference.prompt], drafter=ModelDraft(forward), stops=[stop.begin()], ending=ending
            )
            assert reference.tokens == real.tokens
            expected = [(r.drafted, r.accepted, r.committed) for r in real.rounds]
            assert [(r.drafted, r.accepted, r.committed) for r in rounds] == expected, f"skip={skip}"


@pytest.mark.parametrize("stop", RULES, ids=lambda r: type(r).__name__)
def test_counts_equal_the_real_decoders(
    stop: StopPolicy, decoder: Decoder, ending: Ending, batches: list[ReferenceBatch]
) -> None:
    for skip in skip_sets(decoder.n_layers):
        counts_equal(decoder, batches, stop, ending, skip)


@pytest.mark.parametrize("n_scored", [1, 10, 30])
def test_counts_of_a_trimmed_head_equal_the_real_decoders(
    n_scored: int, decoder: Decoder, ending: Ending, batches: list[ReferenceBatch]
) -> None:
    """It scores what its text holds as well, and each chain begins in a text of its own length."""
    for skip, stop in zip(cycle(skip_sets(decoder.n_layers)), RULES, strict=False):
        counts_equal(decoder, batches, stop, ending, DraftPlan(skip, head=torch.arange(n_scored)))


def test_matchness_counts_what_a_trimmed_head_and_the_text_so_far_can_say(
    decoder: Decoder, batches: list[ReferenceBatch]
) -> None:
    n_scored = 5
    forward = decoder.bind(DraftPlan(SkipSet(decoder.n_layers), head=torch.arange(n_scored)))
    for batch in batches:
        for reference, agreed in zip(batch.references, count_agreed(forward, batch), strict=True):
            text, n_prompt = [*reference.prompt, *reference.tokens], len(reference.prompt)
            at = range(n_prompt + 1, len(text))
            assert agreed == sum(text[i] < n_scored or text[i] in text[:i] for i in at)


@pytest.mark.parametrize("stop", RULES, ids=lambda r: type(r).__name__)
def test_a_rule_that_is_carried_on_counts_as_in_a_race(stop: StopPolicy, decoder: Decoder, ending: Ending) -> None:
    """The first prompt is decoded once before, and what was learnt goes on, also from batch to batch."""
    forward = decoder.bind(SkipSet.parse("a0,1 m2", decoder.n_layers))
    batches = decode_references(decoder, PROMPTS, ending=ending, batch_starts=1)
    assert len(batches) == len(PROMPTS)
    state, found = None, []
    for batch in batches:
        rounds, state = replay_in_turn(Chains(forward, batch, max_draft=stop.max_draft), stop, after=state)
        found += rounds
    state, expected = None, []
    for prompt in (PROMPTS[0], *PROMPTS):
        state = stop.begin(state)
        (real,) = speculate(decoder, [prompt], drafter=ModelDraft(forward), stops=[state], ending=ending)
        expected.append([(r.drafted, r.accepted, r.committed) for r in real.rounds])
    assert [[(r.drafted, r.accepted, r.committed) for r in rounds] for rounds in found] == expected[1:]


def test_a_score_of_a_carried_rule_does_not_depend_on_the_batches(decoder: Decoder, ending: Ending) -> None:
    skip, rule = (
        SkipSet.parse("a0,1 m2", decoder.n_layers),
        PauseWhenUnprofitable(Fixed(2), draft_cost=0.9, verify_cost=0.02),
    )
    whole, single = (decode_references(decoder, PROMPTS, ending=ending, batch_starts=n) for n in (10_000, 1))
    scores = [as_raced(objective(decoder, batches, rule), Drafts(rule)(skip))(skip) for batches in (whole, single)]
    assert scores[0].value == pytest.approx(scores[1].value)
    assert scores[0].drafted == scores[1].drafted
    assert scores[0].drafted < objective(decoder, single, rule)(skip).drafted, "nothing was carried: no proof"


@pytest.mark.parametrize("look_ahead", [1, 2, 100])
def test_counts_do_not_depend_on_the_look_ahead(
    look_ahead: int, decoder: Decoder, ending: Ending, batches: list[ReferenceBatch]
) -> None:
    for skip, stop in zip(cycle(skip_sets(decoder.n_layers)), RULES[2:], strict=False):
        counts_equal(decoder, batches, stop, ending, skip, look_ahead)


@pytest.mark.parametrize(
    ("family", "attention"), every_kernel(name for name, family in FAMILIES.items() if family.takes_batches)
)
def test_counts_equal_the_real_decoders_for_every_family(family: str, attention: str) -> None:
    decoder = Decoder(toy(family, attention=attention))
    ending = ending_of(decoder)
    batches = decode_references(decoder, PROMPTS, ending=ending)
    for skip in skip_sets(decoder.n_layers)[1:4]:
        counts_equal(decoder, batches, Threshold(4, 0.1), ending, skip)


def test_a_model_without_explicit_masks_is_refused() -> None:
    decoder = Decoder(toy("bloom"))
    with pytest.raises(InputError, match="tokens_per_second"):
        decode_references(decoder, PROMPTS, ending=Ending(N_NEW))


def objective(decoder: Decoder, batches: Sequence[ReferenceBatch], stop: StopPolicy, **more: bool) -> ReplayObjective:
    return ReplayObjective(
        "expected_speedup", "x", expected_speedup, decoder, batches, COSTS, Stopwatch(), Drafts(stop), **more
    )


def test_two_runs_give_the_same_number(decoder: Decoder, batches: list[ReferenceBatch]) -> None:
    for tune in (False, True):
        for stop in RULES:
            score = objective(decoder, batches, stop, tune_stop=tune)
            skip = SkipSet.parse("a1 m0", decoder.n_layers)
            assert score(skip).value == score(skip).value


@pytest.mark.parametrize("stop", RULES, ids=lambda r: type(r).__name__)
def test_a_tuned_rule_is_at_least_as_good_and_is_named(
    stop: StopPolicy, decoder: Decoder, batches: list[ReferenceBatch]
) -> None:
    for skip in skip_sets(decoder.n_layers):
        as_it_is, tuned = (
            objective(decoder, batches, stop)(skip),
            objective(decoder, batches, stop, tune_stop=True)(skip),
        )
        assert tuned.value >= as_it_is.value
        assert as_it_is.stop is None
        assert tuned.stop is not None
        assert tuned.stop["name"] == stop.to_dict()["name"]


def test_what_goes_to_the_race_is_scored_with_the_rule_it_races_with(
    decoder: Decoder, batches: list[ReferenceBatch]
) -> None:
    skip, raced = (
        SkipSet.parse("a1", decoder.n_layers),
        PauseWhenUnprofitable(Fixed(2), draft_cost=0.9, verify_cost=0.02),
    )
    tuned = objective(decoder, batches, Threshold(6, 0.5), tune_stop=True)
    score, own = (
        as_raced(tuned, Drafts(raced)(skip))(skip),
        replace(objective(decoder, batches, raced), is_carried=True)(skip),
    )
    assert (score.value, score.drafted, score.stop) == (own.value, own.drafted, None)
    assert score.value != tuned(skip).value, "the rule made no difference: this test proves nothing"
    several = as_raced(MultiDataset({"one": tuned, "other": tuned}, "mean"), Drafts(raced)(skip))
    assert several(skip).value == pytest.approx(own.value)


def test_every_variant_of_a_rule_is_replayed_as_the_real_decoder_runs_it(decoder: Decoder, ending: Ending) -> None:
    batches = decode_references(decoder, PROMPTS, ending=ending)
    skip = SkipSet.parse("a1 m0", decoder.n_layers)
    forward = decoder.bind(skip)
    for stop in RULES:
        rules = variants(stop)
        (batch,) = batches
        chains = Chains(forward, batch, max_draft=max(rule.max_draft for rule in rules))
        draft_everything(chains, Widest(rules))
        for rule in rules[::7]:
            rounds = replay(chains, rule)
            for reference, rows in zip(batch.references, rounds, strict=True):
                (real,) = speculate(
                    decoder, [reference.prompt], drafter=ModelDraft(forward), stops=[rule.begin()], ending=ending
                )
                assert [(r.drafted, r.accepted) for r in rows] == [(r.drafted, r.accepted) for r in real.rounds], rule


def test_a_draft_that_skips_nothing_is_worth_its_closed_form(decoder: Decoder) -> None:
    # Everything is accepted: 16 tokens in 4 rounds of 3 drafted tokens, each round 3 · 15 + v(4), v(4) = 18.
    batches = decode_references(decoder, [[1, 2, 3]], ending=Ending(17, frozenset()))
    costs = CostTable((64,), (1.0,), 2.0, 15.0 - 3 * decoder.n_layers, (15.0,), (15.0, 16.0, 17.0))
    score = ReplayObjective("", "", expected_speedup, decoder, batches, costs, Stopwatch(), Drafts(Fixed(3)))(
        SkipSet(decoder.n_layers)
    )
    assert (score.n_tokens, score.n_rounds, score.drafted, score.accepted) == (16, 4, 12, 12)
    assert score.value == pytest.approx(16 * 15 / (4 * (3 * 15 + 18)))
    assert score.draft_cost == pytest.approx(1)


def test_acceptance_is_that_of_the_counts(decoder: Decoder, batches: list[ReferenceBatch]) -> None:
    value = ReplayObjective("acceptance", "", accepted_fraction, decoder, batches, COSTS, Stopwatch(), Drafts(Fixed(3)))
    for skip in skip_sets(decoder.n_layers):
        score = value(skip)
        assert score.value == score.accepted / score.drafted
    assert value(SkipSet(decoder.n_layers)).value > 0.95  # what is drafted past the end is never accepted


def test_a_hopeless_skip_set_is_left_after_the_first_batch(decoder: Decoder, ending: Ending) -> None:
    batches = decode_references(decoder, PROMPTS, ending=ending, batch_starts=25)
    asked: list[int] = []

    def should_continue(values: Sequence[float]) -> bool:
        asked.append(len(values))
        return False

    score = objective(decoder, batches, Fixed(3))(
        SkipSet.parse("a0-1 m0", decoder.n_layers), should_continue=should_continue
    )
    assert score.pruned
    assert asked == [len(batches[0].references)] == [len(score.values)]


def test_calibration_rises_and_follows_the_data() -> None:
    rng = random.Random(1)
    pairs = [(c, rng.random() < c * c) for c in (rng.random() for _ in range(4000))]
    knots = calibration(pairs)
    assert Optimal(4, 0.5, 0.0, knots, 8, False).acceptance(0.7) == pytest.approx(0.49, abs=0.08)
    assert calibration(pairs[:5]) == ((0.0, 0.0), (1.0, 1.0))


def test_draft_cost_adds_up_and_follows_the_context() -> None:
    costs = CostTable((10, 110), (1.0, 2.0), 3.0, 5.0, (21.0, 25.0), (21.0, 22.0))
    skip = SkipSet.parse("a0 m1,2", 4)
    assert costs.draft_s(skip, 10) == pytest.approx(5 + 3 * 1 + 2 * 3)
    assert costs.draft_s(skip, 60) == pytest.approx(5 + 3 * 1.5 + 2 * 3)
    assert costs.verification_s(4, 60) == pytest.approx(22 + 2 * 1 + 2)


@pytest.mark.parametrize("n_layers", [1, 2, 5, 6])
def test_the_overhead_of_a_draft_is_as_measured_or_interpolated(
    n_layers: int,
) -> None:
    parts = CostTable((10, 110), (1.0, 2.0), 3.0, 5.0, (21.0, 25.0), (21.0, 22.0))
    grid = (0.0, 1.0, 5.0, 2.0, 4.0, 8.0, 3.0, 6.0, 12.0)
    costs = replace(parts, interaction_s=(tuple(v - 1 for v in grid), tuple(v + 1 for v in grid)))  # at 60 their mean

    def beside(n_attn: int, n_mlp: int) -> float:
        skip = SkipSet(n_layers, frozenset(range(n_attn)), frozenset(range(n_mlp)))
        return costs.draft_s(skip, 60) - parts.draft_s(skip, 60)

    steps = sorted({0, round(n_layers / 2), n_layers})
    known = {(a, m): beside(a, m) for a in steps for m in steps}
    assert known[n_layers, n_layers] == pytest.approx(12) and known[0, n_layers] == pytest.approx(
        5 if n_layers > 1 else 8
    )
    if n_layers > 1:
        assert [known[a, m] for a in steps for m in steps] == pytest.approx(grid)
    for a in range(n_layers + 1):
        row = [beside(a, m) for m in range(n_layers + 1)]
        assert row == sorted(row) and beside(0, 0) <= row[0] <= row[-1] <= 12


def test_a_measured_table_meets_the_sets_that_it_was_made_from() -> None:
    """On a clock of calls, where an attention after an MLP takes longer: costs that are no sum of parts."""
    decoder, seconds, last = Decoder(toy("llama")), [0.0], [""]

    def spend(kind: str, *_: object) -> None:
        seconds[0] += {"attn": 1.0 + 5.0 * (last[0] == "mlp"), "mlp": 2.0, "head": 4.0}[kind]
        last[0] = kind

    model = decoder.model
    modules = {
        "attn": [x.self_attn.q_proj for x in model.model.layers],
        "mlp": [x.mlp.up_proj for x in model.model.layers],
    }
    for kind, found in {**modules, "head": [model.lm_head]}.items():
        for module in found:
            module.register_forward_hook(partial(spend, kind))
    stopwatch = Stopwatch(clock=lambda: seconds[0])
    table = measure(decoder, contexts=[8, 20], max_tokens=2, repeats=3, stopwatch=stopwatch)
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    n = decoder.n_layers
    ends = [SkipSet(n, frozenset(range(a)), frozenset(range(m))) for a in (0, n) for m in (0, n)]
    for predicted, measured in check(decoder, table, ends, repeats=3, stopwatch=stopwatch):
        assert predicted == pytest.approx(measured)
    sums = check(decoder, replace(table, interaction_s=()), ends, repeats=3, stopwatch=stopwatch)
    assert any(abs(predicted / measured - 1) > 0.02 for predicted, measured in sums), "a sum of parts would have done"


def test_verification_seconds_are_measured_after_short_and_long_texts() -> None:
    """On a clock of calls, where each further token takes as much longer as there are keys."""
    decoder, seconds = Decoder(toy("llama")), [0.0]

    def forward(module: object, args: object, kwargs: dict[str, Tensor], output: object) -> None:
        n_before = int(kwargs["position_ids"][0, 0])
        seconds[0] += 100.0 + n_before * kwargs["input_ids"].shape[1]

    decoder.model.register_forward_hook(forward, with_kwargs=True)
    stopwatch = Stopwatch(clock=lambda: seconds[0])
    table = measure(decoder, contexts=[8, 20], max_tokens=4, repeats=3, stopwatch=stopwatch)
    for context in (8, 14, 20, 26):
        for n_tokens in (1, 3, 4, 6):
            assert table.verification_s(n_tokens, context) == pytest.approx(100 + context * n_tokens)
        assert verify_cost(table, 3, context=context) == pytest.approx(context / (100 + context))
    known_near = replace(table, verify_far_s=())
    assert known_near.verification_s(3, 20) == pytest.approx(100 + 8 * 3 + 12)
    near = measure(decoder, contexts=[8], max_tokens=4, repeats=3, stopwatch=stopwatch)
    assert near.verification_s(3, 20) == pytest.approx(100 + 8 * 3)


def test_what_a_round_takes_beside_its_forwards_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of calls: 4 for a forward, 2 for each further token of it, 3 for the judge; 3/4 of a plain token."""
    decoder, seconds = Decoder(toy("llama")), [0.0]

    def forward(module: object, args: tuple[torch.Tensor], output: object) -> None:
        seconds[0] += 4.0 + 2.0 * (args[0].shape[1] - 1)

    def judge(*args: Any) -> Any:
        seconds[0] += 3.0
        return judge_greedy(*args)

    decoder.model.lm_head.register_forward_hook(forward)
    stopwatch = Stopwatch(clock=lambda: seconds[0])
    for judged, expected in ((judge_greedy, 0.0), (judge, 3.0)):
        monkeypatch.setattr("selfspec.engine.verify.judge_greedy", judged)
        table = measure(decoder, contexts=[8], max_tokens=4, repeats=3, stopwatch=stopwatch)
        assert table.overhead_s == pytest.approx(expected)


@pytest.mark.parametrize("n_layers", range(1, 50))
def test_the_sets_that_a_table_is_made_from_fit_any_number_of_layers(n_layers: int) -> None:
    for fraction in GRID:
        layers = spread(n_layers, fraction)
        assert len(layers) == round(n_layers * fraction) and layers <= set(range(n_layers))


def test_a_round_without_a_model_draft_costs_its_verification_alone() -> None:
    costs = replace(COSTS, overhead_s=7.0)
    reference = Reference([1, 2, 3], [4, 5, 6, 7, 8, 9], 6)
    plain, looked_up = Round(0, 0, 1, 0.0, 0.0), Round(2, 1, 2, 0.0, 0.0)
    drafted = Round(2, 1, 2, 0.0, 0.0, n_forwards=2)
    plan = DraftPlan.from_skip_set(SkipSet(4))
    found = cost_of([plain, looked_up, drafted], reference, plan, costs)
    assert found.verify_s == pytest.approx(15 + 17 + 17 + 7)
    assert cost_of([plain] * 5, reference, plan, costs).verify_s == pytest.approx(5 * 15)
