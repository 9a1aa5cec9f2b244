"""Controllers decide within their limits, learn the acceptance, and leave the output as it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import pytest

from selfspec.control import (
    Controller,
    ControlState,
    Ema,
    Fixed,
    Goodput,
    Judged,
    Oracle,
    SmartSpec,
    Standing,
    StepCosts,
    Throughput,
)
from selfspec.control.acceptance import Acceptance
from selfspec.control.allotment import allot, goodput
from selfspec.control.step_costs import BatchCosts
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import ExpandRerank
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import BaseDrafter, Draft, Row
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed as Always
from tests.contracts.architecture import LONG, MIDDLE, SHORT
from tests.contracts.controller import COSTS, DEAR, ControllerContract, share_of_oracle, steps, survivals
from tests.test_engine import decoder_of
from tests.test_heads import copying

PROMPTS = [SHORT * 3, LONG, MIDDLE * 2]  # repetitions, which prompt lookup finds


class TestGoodput(ControllerContract):
    def make(self) -> Controller:
        return Goodput()


class TestOracle(ControllerContract):
    def make(self) -> Controller:
        return Oracle((0.8,))

    @pytest.mark.parametrize("rates", [[[0.8]], [[0.8]] * 8], ids=["one", "eight"])
    def test_it_comes_near_the_oracle_within_200_steps(self, rates: list[list[float]]) -> None:
        assert share_of_oracle(steps(self.make(), rates, COSTS, 3), rates, COSTS) == pytest.approx(1)


class TestSmartSpec(ControllerContract):
    nearness = 0.95

    def make(self) -> Controller:
        return SmartSpec()


class TestThroughput(ControllerContract):
    nearness = 0.94

    def make(self) -> Controller:
        return Throughput()


class TestEma(ControllerContract):
    nearness = 0.9

    def make(self) -> Controller:
        return Ema()


class TestFixed(ControllerContract):
    nearness = 0.0  # it does not adapt

    def make(self) -> Controller:
        return Fixed(3)

    def test_nothing_is_kept_beyond_what_was_drafted(self) -> None:
        assert Fixed(0).begin(COSTS).limits([Standing(0, 9, 9, "draft")]) == [0]


def test_the_allotment_is_the_best_of_all() -> None:
    rows = [survivals([0.9, 0.8, 0.3], 3), survivals([0.4], 3), survivals([0.75, 0.1], 2)]
    for costs in (BatchCosts((2.0, 2.5, 2.6, 3.4), 0.2, 0.1), BatchCosts((2.0, 2.1, 2.3, 2.4)), DEAR.of_batch(3, 9, 3)):
        every = product(*(range(len(row) + 1) for row in rows))
        best = max(goodput(rows, costs, lengths) for lengths in every)
        found, rate = allot(rows, costs)
        assert rate == pytest.approx(goodput(rows, costs, found)) == pytest.approx(best)


def test_requests_of_one_batch_get_different_lengths() -> None:
    rates, flat = [[0.95], [0.5], [0.02]], StepCosts((1.0, 0.05, 0.01, 0.01, 0.0), (0.03, 0.05))
    found = steps(Goodput(), rates, flat, 200)[100:]
    easy, hard, hopeless = (sum(lengths) for lengths in zip(*found, strict=True))
    assert easy > hard + 50 > 100 > 10 > hopeless
    of_all = share_of_oracle(steps(SmartSpec(), rates, flat, 200)[100:], rates, flat)
    assert share_of_oracle(found, rates, flat) > 1.05 * of_all


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_unlucky_start_does_not_end_drafting_for_good(seed: int) -> None:
    # in the first of these lives so few tokens are accepted at first that drafting seems not to pay
    costs = StepCosts((0.0383, 0.0, 0.0, 0.00163, 0.0), (0.0016, 0.0006))
    rates = [[0.53 * easy, 0.54 * easy] for easy in (1.4, 1.2, 1.0, 0.8, 0.6, 1.3, 0.9, 0.3)]
    assert share_of_oracle(steps(Goodput(), rates, costs, 300, seed=seed)[150:], rates, costs) > 0.97


def test_positions_are_learnt_one_by_one() -> None:
    rates = [[0.9, 0.1]]
    assert share_of_oracle(steps(Goodput(), rates, COSTS, 300)[200:], rates, COSTS) > 0.98
    seen = Acceptance()
    for _ in range(50):
        seen.add(7, "draft", 2, 1, 2)
    first, second = seen.survivals(7, "draft", 2)
    assert first > 0.9 and second < 0.1
    assert seen.survivals(8, "draft", 2) == pytest.approx([first, second], abs=0.1)  # a new request has the rate of all
    assert seen.survivals(8, "lookup", 1) == [0.7]  # another source was not judged


def test_a_change_for_the_better_is_noticed_while_nothing_is_drafted() -> None:
    policy = Goodput()
    state = policy.begin(COSTS)
    row = [Standing(0, 100, 20, "draft")]
    lengths = []
    for step in range(1500):
        (length,) = state.limits(row)
        lengths.append(length)
        state.observe([Judged(0, "draft", length, length if step >= 300 else 0, length)])
    assert sum(lengths[200:300]) <= 10 and min(lengths[-50:]) >= 3
    assert state.explored_s <= policy.explore * state.plain_s


@pytest.mark.parametrize(
    ("steady", "rash"),
    [
        (Ema(), Ema(up=(0.0,) * 4, down=(-0.25, 0.0, 0.0, 0.0))),
        (Throughput(), Throughput(steady=1.0)),
        (Goodput(explore=0.0, memory=8), Goodput(explore=0.0, memory=8, patience=0.0)),
    ],
    ids=["ema", "throughput", "goodput"],
)
def test_without_its_margin_each_would_flip(steady: Controller, rash: Controller) -> None:
    def n_flips(policy: Controller) -> int:
        lives = [steps(policy, [[0.8]], COSTS, 300, seed=seed)[100:] for seed in range(3)]
        return sum(a != b for life in lives for a, b in pairwise(life))

    assert n_flips(rash) > 2 * n_flips(steady)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: Goodput(max_draft=0), "controller.max_draft=0; it is a whole number from 1 on"),
        (lambda: Goodput(explore=2), "controller.explore=2; it is between 0 and 1"),
        (lambda: Oracle(()), "give a probability for each position"),
        (lambda: Ema(sizes=(2,)), "rising, from 1, and as many as the lists beside it"),
        (lambda: StepCosts((1.0, -1.0, 0, 0, 0)), "none below 0"),
        (lambda: Controller.from_dict({"name": "gootput"}), "unknown controller 'gootput'; did you mean 'goodput'"),
        (lambda: Controller.from_dict({"_target_": "pathlib.Path"}), "is not a controller"),
    ],
)
def test_wrong_settings_are_told_in_one_line(made: object, why: str) -> None:
    with pytest.raises(InputError, match=why) as told:
        made()  # type: ignore[operator]
    assert "\n" not in str(told.value)


def test_costs_of_another_device_are_refused() -> None:
    costs = StepCosts(COSTS.verify, of={"device": "cuda", "threads": 2})
    costs.check_device({"device": "cuda"})
    with pytest.raises(InputError, match="measured with device=cuda, and here it is cpu; measure them here"):
        costs.check_device({"device": "cpu", "threads": 2})
    assert StepCosts.from_dict(costs.to_dict()) == costs


class Counting(BaseDrafter):
    """Another drafter; it counts how often it is asked, and for how many rows."""

    def __init__(self, inner: BaseDrafter) -> None:
        self.inner, self.asked = inner, list[int]()
        self.has_free_drafts = inner.has_free_drafts  # type: ignore[misc]

    @property
    def name(self) -> str:
        return self.inner.name

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        self.asked.append(sum(row.limit > 0 for row in rows))
        return self.inner.propose(rows, cache=cache)

    def observe(self, row, draft, verdict, target):  # type: ignore[no-untyped-def]
        self.inner.observe(row, draft, verdict, target)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(do_sample=True, seed=3)], ids=["greedy", "sample"])
@pytest.mark.parametrize("lookup", [None, "front", "beside", "only"])
@pytest.mark.parametrize("policy", [Goodput(), Fixed(0), Fixed(2), SmartSpec()], ids=lambda p: f"{type(p).__name__}")
def test_the_output_is_that_of_plain_decoding(policy: Controller, lookup: str | None, sampling: Sampling) -> None:
    decoder = decoder_of("llama")
    spec = DraftSpec(DraftPlan.from_skip_set(SkipSet.parse("a1 m2", decoder.n_layers)), Always(4), lookup)  # type: ignore[arg-type]
    if sampling.do_sample:
        spec = DraftSpec(spec.plan, spec.stop, spec.lookup, sample_draft=False)
    how = {"ending": Ending(14, frozenset()), "sampling": sampling}
    found = speculate(
        decoder,
        PROMPTS,
        drafter=build_drafter(spec, decoder),
        stops=[spec.stop.begin() for _ in PROMPTS],
        control=policy.begin(COSTS),
        **how,  # type: ignore[arg-type]
    )
    if not sampling.do_sample:
        assert [r.tokens for r in found] == [r.tokens for r in autoregress(decoder, PROMPTS, **how)]  # type: ignore[arg-type]
    assert all(len(r.tokens) == 14 for r in found)
    assert (sum(r.drafted for r in found) == 0) == (policy == Fixed(0))


def test_a_drafter_is_not_asked_where_nothing_may_be_drafted() -> None:
    decoder = decoder_of("llama")
    spec = DraftSpec(DraftPlan.from_skip_set(SkipSet.parse("a1", decoder.n_layers)), Always(4))

    def asked(control: Controller) -> list[int]:
        drafter = Counting(build_drafter(spec, decoder))  # type: ignore[arg-type]
        stops = [spec.stop.begin() for _ in PROMPTS]
        speculate(
            decoder, PROMPTS, drafter=drafter, stops=stops, ending=Ending(9, frozenset()), control=control.begin(DEAR)
        )
        return drafter.asked

    assert asked(Fixed(0)) == asked(Goodput()) == []
    assert max(asked(Fixed(1))) == 3


class Wrong(BaseDrafter):
    """Drafts what is hardly ever right, and does not say where it is from."""

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        return [Draft([3] * min(row.limit, 4)) for row in rows]


def test_a_drafter_that_is_always_wrong_is_soon_not_asked() -> None:
    decoder = decoder_of("llama")
    found = speculate(
        decoder,
        PROMPTS,
        drafter=Wrong(),
        stops=[Always(4).begin() for _ in PROMPTS],
        ending=Ending(30, frozenset()),
        control=Goodput(explore=0.0).begin(COSTS),
    )
    drafted = [[r.drafted for r in result.rounds] for result in found]
    assert max(map(max, drafted)) > 0 and not any(sum(rounds[-10:]) for rounds in drafted)


class Only(Fixed):
    """Lets some of three rows draft two tokens."""

    drafting: tuple[int, ...] = ()

    def begin(self, costs: StepCosts):  # type: ignore[no-untyped-def]
        keys: list[int] = []

        class State(ControlState):
            policy = self

            def limits(self, rows: Sequence[Standing]) -> list[int]:
                keys.extend(row.key for row in rows if row.key not in keys)
                on = Only.drafting if len(rows) == 3 else ()
                return [min(row.room, 2) if keys.index(row.key) in on else 0 for row in rows]

        return State()


@pytest.mark.parametrize("on", [(1,), (0, 2)], ids=["the middle", "the ends"])
@pytest.mark.parametrize("kind", ["chain", "tree", "head", "head tree"])
def test_rows_that_draft_nothing_take_no_part_in_the_drafts_forwards(
    kind: str, on: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of("llama")
    plan = copying(decoder) if "head" in kind else DraftPlan.from_skip_set(SkipSet(decoder.n_layers))
    tree = ExpandRerank(width=2, max_depth=2, max_nodes=4) if "tree" in kind else None
    drafter = build_drafter(DraftSpec(plan, Always(3), tree=tree, sample_draft=tree is None), decoder)
    sizes: list[int] = []
    forward = drafter.output if "head" in kind else drafter.forward  # type: ignore[attr-defined]
    name = "logits" if "head" in kind else "tree_output" if tree else "__call__"
    called = getattr(type(forward), name)

    def counting(self, ids_BT, *args, **where):  # type: ignore[no-untyped-def]
        if self is forward:
            sizes.append(len(ids_BT))
        return called(self, ids_BT, *args, **where)

    monkeypatch.setattr(type(forward), name, counting)
    monkeypatch.setattr(Only, "drafting", on)
    found = speculate(
        decoder,
        PROMPTS,
        drafter=drafter,
        stops=[Always(3).begin() for _ in PROMPTS],
        ending=Ending(8, frozenset()),
        control=Only(2).begin(COSTS),
    )
    if "head" not in kind:  # nothing is skipped there, so plain tokens run through the same forward
        sizes = [n for n in sizes if n < 3]
    if kind == "chain":
        assert all(found[b].accepted == found[b].drafted for b in on)  # it read the right rows' keys
    assert sizes and set(sizes) == {len(on)}
    assert [r.drafted > 0 for r in found] == [b in on for b in range(3)]
    plain = autoregress(decoder, PROMPTS, ending=Ending(8, frozenset()))
    assert [r.tokens for r in found] == [r.tokens for r in plain]
