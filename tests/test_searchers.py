"""Searchers: every configured one keeps the contract."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import optuna
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from optuna.samplers import BaseSampler

from experiments.builders import build_search
from experiments.builders.build import instance
from experiments.config.composing import options
from search.costs.table import CostTable
from search.replay.references import decode_references
from search.samplers.base import Bits, BitSampler, Exhausted, flipped, swaps
from search.samplers.draft_verify import Paper
from search.samplers.fixed_lists import Listed, early_exit, uniform
from search.samplers.local import Anneal, Greedy
from search.samplers.quadratic import Drawn, Quadratic
from search.space import Space
from search.study.study import SearchStudy
from selfspec.engine.decode import Ending
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from tests.contracts.architecture import without
from tests.contracts.searcher import BitSearcherContract, SearcherContract
from tests.scripted import N_LAYERS, planted, score
from tests.toys import toy


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@cache
def configured(name: str) -> DictConfig:
    """The settings of a searcher."""
    with initialize_config_module("conf", version_base="1.3"):
        cfg: DictConfig = compose("search", overrides=[f"searcher={name}"]).searcher
        return cfg


@cache
def computed_sets(name: str, useless: SkipSet) -> list[SkipSet]:
    """What a searcher proposes that computes its sets from hidden states, of a tiny model with `useless` sublayers."""
    decoder = Decoder(without(toy("llama", num_hidden_layers=N_LAYERS), useless))
    (batch,) = decode_references(decoder, [[1, 2, 3], [9, 8, 7, 6]], ending=Ending(8, frozenset()))
    costs = CostTable((8,), (1.0,), 2.0, 3.0, (15.0,), (15.0, 16.0))
    sets = build_search.searcher(configured(name)).compute(decoder, batch.references, costs)
    assert sets is not None
    return sets


class Configured(SearcherContract):
    """With the settings of conf/searcher."""

    name: ClassVar[str]
    promised: ClassVar[SkipSet] = SkipSet(N_LAYERS)

    def make_sampler(self, seed: int) -> BaseSampler:
        cfg = configured(self.name)
        assert self.encoding == cfg.encoding
        computed = {"sets": computed_sets(self.name, self.promised)} if cfg.get("computed") else {}
        sampler: BaseSampler = instance(cfg.sampler)(seed=seed, **computed)
        return sampler


class Lists(Configured, BitSearcherContract):
    """A list does not look at values: the planted optimum is a set that it promises to hold, and no other one."""

    draws = False
    exhaustive = False

    def value(self, skip: SkipSet) -> float:
        return -sum(a != b for a, b in zip(skip.bits(), self.promised.bits(), strict=True))


class TestRandom(Configured):
    """100 of 256 skip sets are seen, so one of the best 13 (5 %) is found in 994 of 1000 searches."""

    name = "random"
    n_best = 13


class TestTpe(Configured):
    name = "tpe"  # of 12 seeds the slowest needed 52 trials


class TestCmaes(Configured):
    name = "cmaes"  # of 12 seeds the slowest needed 122 trials
    encoding = "floats"
    n_trials = 200
    seeds = (0, 1)


class TestGp(Configured):
    name = "gp"  # of 4 seeds the slowest needed 12 trials, the first 10 of which are random
    n_trials = 15
    seeds = (0, 1)
    resume_at = (2, 12)
    n_resumed = 14


class TestNsga2(Configured):
    name = "nsga2"  # of 8 seeds the slowest needed 70 trials
    n_trials = 200
    n_best = 5


class TestCustom(Configured):
    name = "custom"  # as it stands it is TPE


@pytest.mark.slow
class TestPaper(Configured):
    name = "paper"  # a trial takes half a second; chance finds one of the best 5 in 20 trials with one seed of three
    encoding = "floats"
    n_trials = 20
    n_best = 5
    seeds = (0, 2)  # with 1 what the process finds in 20 trials hangs on the kernels of the linear algebra
    resume_at = (2, 4)
    n_resumed = 5


class TestQuadratic(Configured, BitSearcherContract):
    name = "quadratic"  # of 12 seeds the slowest needed 12 trials
    n_trials = 30


class TestAnneal(Configured, BitSearcherContract):
    name = "anneal"  # of 12 seeds the slowest needed 48 trials


class TestGreedy(Configured, BitSearcherContract):
    """An additive value is climbed without detours: nothing, 8 singles, 3 more additions, each at its first try."""

    name = "greedy"  # needs 12 trials
    n_trials = 20
    draws = False
    exhaustive = False


class TestUniform(Lists):
    name = "uniform"
    promised = SkipSet.parse("a1-2 m1-2", N_LAYERS)  # both inner layers


class TestEarlyExit(Lists):
    name = "early_exit"
    promised = SkipSet.parse("a2-3 m2-3", N_LAYERS)  # the last two layers


class TestKnapsack(Lists):
    """What is left out without any loss is the nearest of all drafts that save so much."""

    name = "knapsack"
    n_layers = N_LAYERS  # its sets are for one model
    promised = SkipSet.parse("a1-2 m2", N_LAYERS)


class TestClasp(Lists):
    """As for the knapsack; its sets are of whole layers."""

    name = "clasp"
    n_layers = N_LAYERS  # its sets are for one model
    promised = SkipSet.parse("a1,3 m1,3", N_LAYERS)


def test_every_configured_searcher_is_held_to_the_contract() -> None:
    every = {*Configured.__subclasses__(), *Lists.__subclasses__()} - {Lists}
    assert {c.name for c in every} == set(options("searcher"))


@pytest.mark.parametrize(
    "words",
    [
        ["searcher.sampler._target_=optuna.samplers.QMCSampler", "searcher.encoding=floats"],
        ["searcher.sampler._target_=optuna.samplers.NSGAIIISampler", "+searcher.sampler.population_size=4"],
        ["searcher.sampler._target_=optuna.samplers.BruteForceSampler"],
        ["searcher.sampler._target_=search.samplers.optuna_samplers.random"],
    ],
    ids=lambda words: words[0].rpartition(".")[2],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_any_sampler_that_takes_a_seed_can_be_named_on_the_command_line(words: list[str], tmp_path: Path) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        searcher = build_search.searcher(compose("search", overrides=["searcher=custom", *words]).searcher)
    journal = tmp_path / "study.journal"
    study = SearchStudy(Space(N_LAYERS), searcher.maker(), seed=0, journal=journal, encoding=searcher.encoding)
    for _ in range(8):
        proposal = study.ask()
        study.tell(proposal, score(planted(proposal.skip)))
    assert len({t.user_attrs["skip"] for t in study.trials}) > 2


def test_the_missing_package_of_the_published_recipe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bayes_opt", None)
    with pytest.raises(InputError, match=r"pip install 'selfspec\[paper\]'"):
        Paper(0, kappa=2.576, alpha=0.01)


def additive(weights: Sequence[float]) -> Callable[[Bits], float]:
    return lambda bits: sum(itertools.compress(weights, bits))


def search(sampler: BitSampler, value: Callable[[Bits], float], starts: Sequence[Bits], n: int) -> dict[Bits, float]:
    """What is known after the starts and up to `n` proposals, in their order."""
    known = {bits: value(bits) for bits in starts}
    with suppress(Exhausted):
        for number in range(n):
            proposed = sampler.propose(known, list(known), np.random.default_rng(number))
            assert proposed not in known
            known[proposed] = value(proposed)
    return known


def nothing_and_singles(n: int) -> list[Bits]:
    return [(False,) * n, *(tuple(i == k for i in range(n)) for k in range(n))]


class TestGreedyWalk:
    N = 20

    def test_takes_one_trial_per_addition_where_gains_do_not_change(self) -> None:
        weights = [1.0 + i if i % 2 else -1.0 - i for i in range(self.N)]
        known = search(Greedy(0), additive(weights), nothing_and_singles(self.N), self.N // 2 - 1)
        assert max(known.values()) == sum(w for w in weights if w > 0)

    def test_ends_where_no_addition_removal_or_exchange_helps(self) -> None:
        rng = np.random.default_rng(0)
        pairs = rng.normal(size=(8, 8))

        def value(bits: Bits) -> float:
            x = np.array(bits, dtype=float)
            return float(x @ pairs @ x)

        known = search(Greedy(0), value, [(False,) * 8], 256)
        best = max(known, key=known.__getitem__)
        units = [(i,) for i in range(8)]
        assert len(known) < 256
        for step in [*units, *swaps(best, units)]:
            assert value(flipped(best, step)) <= value(best)


class TestQuadraticModel:
    N = 24

    def test_finds_what_two_neighbours_lose_together(self) -> None:
        def value(bits: Bits) -> float:  # alone each gains; of two next to each other the second loses more
            together = sum(a and b for a, b in itertools.pairwise(bits))
            return math.exp(0.02 * sum(bits) - 0.06 * together)

        known = search(Quadratic(0), value, nothing_and_singles(self.N), 60)
        assert max(known.values()) == pytest.approx(math.exp(0.02 * self.N / 2))

    def test_is_not_led_astray_by_failures_and_by_values_of_any_size(self) -> None:
        weights = [1.0 if i % 3 else -1.0 for i in range(self.N)]

        def value(bits: Bits) -> float:
            return float("-inf") if bits[0] and bits[2] else 1e6 * additive(weights)(bits)

        known = search(Quadratic(0), value, nothing_and_singles(self.N), 25)
        assert max(known.values()) == 1e6 * sum(w for w in weights if w > 0)

    def test_gains_are_differences_of_values(self) -> None:
        rng = np.random.default_rng(0)
        pairs = np.triu(rng.normal(size=(6, 6)), 1)
        drawn = Drawn(rng.normal(size=6), pairs + pairs.T)
        here = tuple(bool(bit) for bit in rng.random(6) < 0.5)
        for units in ([(i,) for i in range(6)], [(0, 1), (2, 3), (4, 5)]):
            gains = drawn.gains(here, units)
            for (i, one), (j, other) in itertools.product(enumerate(units), repeat=2):
                there = flipped(here, one if i == j else one + other)
                assert gains[i, j] == pytest.approx(drawn.value(there) - drawn.value(here))


class TestLists:
    @pytest.mark.parametrize("n_layers", [1, 2, 3, 8, 30])
    def test_uniform_has_every_number_of_inner_layers_once(self, n_layers: int) -> None:
        assert [len(skip) for skip in uniform(n_layers)] == [2 * n for n in range(1, n_layers - 1)]

    @pytest.mark.parametrize("n_layers", [1, 2, 8])
    def test_early_exit_skips_the_end_and_keeps_the_first_layer(self, n_layers: int) -> None:
        found = early_exit(n_layers)
        assert [str(skip) for skip in found[:1]] == [f"a{n_layers - 1} m{n_layers - 1}"][: n_layers - 1]
        assert [min(skip.attn) for skip in found] == list(range(n_layers - 1, 0, -1))
        assert all(max(skip.attn) == n_layers - 1 and skip.attn == skip.mlp for skip in found)

    def test_sets_are_run_in_their_order_and_known_ones_left_out(self) -> None:
        sets = [SkipSet.parse(text, 2) for text in ("a0", "m1", "a0", "a1")]
        known = search(Listed(sets=sets), lambda bits: 0.0, [SkipSet.parse("m1", 2).bits()], 10)
        assert [str(SkipSet.from_bits(bits)) for bits in known] == ["m1", "a0", "a1"]


def test_annealing_over_no_trials_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 trial"):
        Anneal(0, n_trials=0)
