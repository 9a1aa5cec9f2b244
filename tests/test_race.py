"""A race drops nobody by chance, says when its result is in doubt, and is then run again once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from search.point import Point
from search.study.finals import Finalist, Raced, race, settled
from search.study.race_rules import FALSE_DROP_RATE, MIN_PROMPTS, doubts, pace_spread, too_slow
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending
from selfspec.engine.protocols import BaseDrafter, Draft, Row
from selfspec.measure.metrics import Timed
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.toys import toy

N_NEW = 12
PROMPTS = [[1, 2, 3], [9, 8, 7, 6], [5, 5]]


def steady(n: int, tokens_per_s: float = 10.0) -> list[Timed]:
    return [Timed(20 / tokens_per_s, 20)] * n


def prompts_until_out(speeds: Sequence[float], rng: np.random.Generator, *, n_prompts: int = 20) -> list[int | None]:
    """After how many prompts each finalist of these speeds leaves; prompts and finalists vary by 10 %."""
    rates = np.array(speeds)[:, None] * np.exp(0.1 * rng.standard_normal((len(speeds), n_prompts)))
    times = {i: [Timed(20 / rate, 20) for rate in row] for i, row in enumerate(rates)}
    out: list[int | None] = [None] * len(speeds)
    for n in range(1, n_prompts + 1):
        going = {i: times[i][:n] for i, after in enumerate(out) if after is None}
        for i in too_slow(going, n_finalists=len(speeds), n_prompts=n_prompts):
            out[i] = n
    return out


class TestWhoLeaves:
    def test_equally_fast_finalists_stay_together_in_all_but_few_races(self) -> None:
        rng = np.random.default_rng(0)
        races = [prompts_until_out([1.0, 1.0, 1.0], rng) for _ in range(100)]
        assert sum(out != [None] * 3 for out in races) <= FALSE_DROP_RATE * len(races)

    def test_a_finalist_that_is_much_slower_leaves_and_the_fastest_never_does(self) -> None:
        rng = np.random.default_rng(1)
        races = [prompts_until_out([1.0, 0.6], rng) for _ in range(30)]
        assert all(best is None and slow is not None and slow >= MIN_PROMPTS for best, slow in races)

    def test_nobody_leaves_before_eight_prompts_nor_after_the_last(self) -> None:
        def leaves(n_done: int, n_prompts: int) -> list[int]:
            times = {0: steady(n_done), 1: steady(n_done, 5.0)}
            return too_slow(times, n_finalists=2, n_prompts=n_prompts)

        assert [leaves(n, 9) for n in range(10)] == [[]] * 8 + [[1], []]
        assert [leaves(n, 4) for n in range(5)] == [[]] * 5

    def test_a_finalist_that_races_alone_stays(self) -> None:
        assert too_slow({0: steady(9)}, n_finalists=1, n_prompts=20) == []


class TestDoubts:
    def test_an_honest_race_is_in_no_doubt(self) -> None:
        assert doubts(steady(8), steady(8, 12.0), predicted=1.1) == []
        assert doubts(steady(8), steady(8, 12.0), predicted=None) == []

    @pytest.mark.parametrize("predicted", [0.9, 1.6])
    def test_a_speedup_far_from_its_prediction_is_in_doubt(self, predicted: float) -> None:
        (doubt,) = doubts(steady(8), steady(8, 12.0), predicted=predicted)
        assert f"{1.2 / predicted:.2f} times the predicted speedup" in doubt

    def test_a_plain_pace_that_varies_by_more_than_three_tenths_is_in_doubt(self) -> None:
        (doubt,) = doubts([*steady(7), *steady(1, 14.0)], steady(8, 12.0), predicted=None)
        assert "40 % faster" in doubt
        assert doubts([*steady(7), *steady(1, 12.5)], steady(8, 12.0), predicted=None) == []

    def test_the_pace_of_a_few_tokens_says_nothing(self) -> None:
        assert pace_spread([*steady(7), Timed(1.0, 3), Timed(0.0, 0)]) == 0
        assert np.isnan(pace_spread(steady(1)))


class Clock:
    """Ticks at each look, at times faster."""

    def __init__(self) -> None:
        self.now_s, self.tick_s = 0.0, 1.0

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s

    def hurry(self, n_done: int) -> None:
        self.tick_s *= 2


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy("llama"))


def raced_by(clock: Clock, decoder: Decoder, finalist: Finalist, *, noisy: bool = False) -> Raced:
    (raced,) = race(
        decoder,
        PROMPTS,
        [finalist],
        ending=Ending(N_NEW),
        stopwatch=Stopwatch(clock=clock),
        listener=clock.hurry if noisy else None,
    )
    return raced


def finalist(predicted: float | None = None) -> Finalist:
    skip = SkipSet.parse("a1", 3)
    return Finalist(Point(skip), DraftSpec(DraftPlan(skip), Fixed(2)), 1.0, predicted=predicted)


class TestOnAClock:
    def test_a_steady_clock_and_the_right_prediction_leave_no_doubt(self, decoder: Decoder) -> None:
        honest = raced_by(Clock(), decoder, finalist()).speedup
        raced = settled(lambda: [raced_by(Clock(), decoder, finalist(honest))])
        assert (raced[0].doubts, raced[0].n_races) == ((), 1)

    def test_a_clock_that_changes_its_pace_makes_a_second_race_count(self, decoder: Decoder) -> None:
        mine, noise = finalist(), iter([True, False])
        (raced,) = settled(lambda: [raced_by(Clock(), decoder, mine, noisy=next(noise))])
        assert (raced.doubts, raced.n_races, len(mine.times)) == ((), 2, len(PROMPTS))
        assert raced.speedup == raced_by(Clock(), decoder, finalist()).speedup

    def test_what_stays_in_doubt_is_raced_twice_and_says_so_in_its_row(self, decoder: Decoder) -> None:
        races: list[Raced] = []

        def measure() -> list[Raced]:
            races.append(raced_by(Clock(), decoder, finalist(predicted=9.0), noisy=True))
            return races[-1:]

        (raced,) = settled(measure)
        assert len(races) == 2
        assert len(raced.row["in_doubt"]) == 2 and raced.row["n_races"] == 2 and raced.row["predicted"] == 9.0


class Faulty(BaseDrafter):
    """Proposes a token that no vocabulary has, from its n-th round on."""

    def __init__(self, after: int) -> None:
        self.left = after

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        self.left -= 1
        return [Draft([10**6] if self.left < 0 and row.limit else []) for row in rows]


@pytest.mark.parametrize("after", [0, 20])
def test_a_faulty_drafter_leaves_the_race_and_the_others_go_on(after: int, caplog: pytest.LogCaptureFixture) -> None:
    decoder = Decoder(toy("llama"))
    plan = DraftPlan.from_skip_set(SkipSet(decoder.n_layers))
    own = {"_target_": f"{__name__}.Faulty", "after": after}
    specs = [DraftSpec(plan, Fixed(2)), DraftSpec(plan, Fixed(2), drafter=own)]
    finalists = [Finalist(Point(plan.skip, {"which": i}), spec, 1.0) for i, spec in enumerate(specs)]
    (raced,) = race(decoder, PROMPTS, finalists, ending=Ending(N_NEW, frozenset()), stopwatch=Stopwatch())
    assert raced.finalist is finalists[0] and len(raced.finalist.times) == len(PROMPTS)
    assert "out of the race" in caplog.text and "Faulty" in caplog.text
