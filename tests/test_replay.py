"""Replay counts what the real decoder counts, to the integer, and gives the same number twice."""

from __future__ import annotations

import random

import pytest

from search.cost import CostTable
from search.expected import ExpectedSpeedup
from search.replay import Reference, refer, replay
from selfspec.decode import Ending, speculate
from selfspec.draft import ModelDraft
from selfspec.model import Decoder
from selfspec.skip import SkipSet
from selfspec.stop import Adaptive, Fixed, Heuristic, StopPolicy, Threshold
from selfspec.timing import Stopwatch
from tests.toys import toy

N_NEW = 20
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5, 4, 3], [11, 5, 11, 5, 2], [40]]
RULES: list[StopPolicy] = [
    Fixed(1),
    Fixed(5),
    Threshold(6, 0.1),
    Adaptive(6, 0.1, 0.5, 0.05, 0.5, 0.5, False),
    Heuristic(6, 3, 2, 1, False),
]
COSTS = CostTable((64,), (1.0,), 2.0, 3.0, (15.0,), (15.0, 16.0, 17.0))


def skip_sets(n_layers: int) -> list[SkipSet]:
    rng = random.Random(0)
    sets = [SkipSet(n_layers), SkipSet.from_bits([True] * (2 * n_layers))]
    return sets + [SkipSet.from_bits([rng.random() < 0.3 for _ in range(2 * n_layers)]) for _ in range(5)]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy("llama"))


@pytest.fixture(scope="module")
def ending(decoder: Decoder) -> Ending:
    """Ends some of the prompts early: at a token that the first of them says halfway."""
    (first,) = refer(decoder, PROMPTS[:1], ending=Ending(N_NEW, frozenset()))
    return Ending(N_NEW, frozenset([first.tokens[N_NEW // 2]]))


@pytest.fixture(scope="module")
def references(decoder: Decoder, ending: Ending) -> list[Reference]:
    return refer(decoder, PROMPTS, ending=ending)


@pytest.mark.parametrize("stop", RULES, ids=lambda r: type(r).__name__)
def test_counts_equal_the_real_decoders(
    stop: StopPolicy, decoder: Decoder, ending: Ending, references: list[Reference]
) -> None:
    for skip in skip_sets(decoder.n_layers):
        drafter = ModelDraft(decoder.bind(skip))
        replayed = replay(decoder, references, drafter=drafter, stop=stop, max_new_tokens=N_NEW)
        for ids, rounds in zip(PROMPTS, replayed, strict=True):
            (real,) = speculate(decoder, [ids], drafter=drafter, stops=[stop.begin()], ending=ending)
            expected = [(r.drafted, r.accepted, r.committed) for r in real.rounds]
            assert [(r.drafted, r.accepted, r.committed) for r in rounds] == expected, f"skip={skip}"


def test_two_runs_give_the_same_number(decoder: Decoder, references: list[Reference]) -> None:
    objective = ExpectedSpeedup(decoder, references, Fixed(4), N_NEW, COSTS, Stopwatch())
    skip = SkipSet.parse("a1 m0", decoder.n_layers)
    assert objective(skip).value == objective(skip).value


def test_a_draft_that_skips_nothing_is_worth_its_closed_form(decoder: Decoder) -> None:
    # Everything is accepted: 16 tokens in 4 rounds of 3 drafted tokens, each round 3 · 15 + v(4), v(4) = 18.
    references = refer(decoder, [[1, 2, 3]], ending=Ending(17, frozenset()))
    costs = CostTable((64,), (1.0,), 2.0, 15.0 - 3 * decoder.n_layers, (15.0,), (15.0, 16.0, 17.0))
    objective = ExpectedSpeedup(decoder, references, Fixed(3), 17, costs, Stopwatch())
    score = objective(SkipSet(decoder.n_layers))
    assert (score.n_tokens, score.n_rounds, score.drafted, score.accepted) == (16, 4, 12, 12)
    assert score.value == pytest.approx(16 * 15 / (4 * (3 * 15 + 18)))


def test_draft_cost_adds_up_and_follows_the_context() -> None:
    costs = CostTable((10, 110), (1.0, 2.0), 3.0, 5.0, (21.0, 25.0), (21.0, 22.0))
    skip = SkipSet.parse("a0 m1,2", 4)
    assert costs.draft_s(skip, 10) == pytest.approx(5 + 3 * 1 + 2 * 3)
    assert costs.draft_s(skip, 60) == pytest.approx(5 + 3 * 1.5 + 2 * 3)
    assert costs.verification_s(4, 60) == pytest.approx(22 + 2 * 1 + 2)
