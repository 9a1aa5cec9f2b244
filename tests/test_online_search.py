"""The searchers of streams: what they score, when they change, what they keep, and what a portfolio may lose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from search.costs.table import CostTable
from search.online.confidence_layers import ConfLayers, uncertain_layers
from search.online.exit_head import ExitHead
from search.online.exit_layer import tokens_per_layer
from search.online.gaussian_process import GaussianProcess, largest_bound, largest_bound_of_subsets
from search.online.portfolio import PLAIN_ARM, Portfolio, PortfolioSearcher
from search.online.prices import expected_speedup
from search.online.set_searcher import Tools
from search.online.swift import Swift, SwiftSearcher, every_odd_layer
from search.online.window import Window, as_batch, count_agreed, reading
from search.replay.chain_replay import replay
from search.replay.chains import Chains
from selfspec.drafters.confidence_comb import ConfidenceComb
from selfspec.drafters.online import OnlineDraft
from selfspec.drafters.tree_shapes import Node, shape_from
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.protocols import ROOT, Draft, Output, Row, Verdict
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG
from tests.test_engine import decoder_of
from tests.test_online import SWIFT, decoded, online, spec_of


def window_on(structure: str, n_tokens: int) -> tuple[Any, Window]:
    """A toy, and the newest tokens of its answer with the keys of everything before."""
    decoder = decoder_of(structure)
    answer = autoregress(decoder, [LONG], ending=Ending(n_tokens + 2))[0].tokens
    ids = [*LONG, *answer]
    cache = decoder.new_cache(n_rows=1, capacity=len(ids))
    with torch.inference_mode():
        decoder.full(torch.tensor([ids[:-1]]), starts=[0], cache=cache)
    return decoder, Window(ids, len(ids) - n_tokens, len(ids), cache)


@pytest.mark.parametrize("structure", ["llama", "mistral-window", "gpt2"])
class TestWindow:
    def test_the_model_itself_predicts_every_token(self, structure: str) -> None:
        decoder, window = window_on(structure, 6)
        at, cache = window.first - 1, decoder.new_cache(n_rows=1, capacity=len(window.ids))
        with torch.inference_mode():
            plain_1TV = decoder.full(torch.tensor([window.ids[:-1]]), starts=[0], cache=cache)
            for own in (True, False):
                ids_1T, where = reading(decoder.full, window, own_keys=own)
                found_1TV = decoder.full.tree(ids_1T, **where)
                # norms and softmaxes of transformers round to float32; a key too many shifts logits by more than 0.01
                torch.testing.assert_close(found_1TV, plain_1TV[:, at:], rtol=1e-4, atol=1e-4)
        assert [count_agreed(decoder.full, window, own_keys=own) for own in (True, False)] == [6, 6]

    def test_counts_are_those_of_a_replay_of_drafts_of_one_token(self, structure: str) -> None:
        decoder, window = window_on(structure, 6)
        forward = decoder.bind(SkipSet.parse("a1 m2", decoder.n_layers))
        counted = count_agreed(forward, window, own_keys=False)
        chains = Chains(forward, as_batch(window, max_draft=1), max_draft=1)
        (rounds,) = replay(chains, Fixed(1))
        starts = [chains[0, n] for n in range(1, window.n_tokens + 1)]
        if left := [(0, n) for n in range(1, window.n_tokens + 1) if not chains[0, n].tokens]:
            chains.grow(left)
        right = [c.tokens[0] == t for c, t in zip(starts, window.ids[window.first :], strict=True)]
        assert counted == sum(right) < window.n_tokens and rounds


def test_the_head_on_the_last_layer_says_what_the_model_says() -> None:
    for structure in ("llama", "gemma3", "gpt2"):
        decoder = decoder_of(structure)
        layers = tuple(range(decoder.n_layers))
        cache = decoder.new_cache(n_rows=1, capacity=len(LONG))
        with torch.inference_mode():
            found = decoder.full.output(torch.tensor([LONG]), starts=[0], cache=cache, hidden=layers)
        logits_LNV = ExitHead(decoder).logits(torch.cat([found.hidden[layer] for layer in layers]))
        torch.testing.assert_close(logits_LNV[-1:], found.logits_BTV)
        assert not torch.allclose(logits_LNV[:1], found.logits_BTV)


class TestGaussianProcess:
    def test_it_finds_a_planted_subset_and_a_planted_corner(self) -> None:
        rng = np.random.default_rng(0)
        worth = np.linspace(-1, 1, 12)
        points = [(rng.random(12).argsort() < 4).astype(float) for _ in range(60)]
        process = GaussianProcess.fitted([tuple(p) for p in points], [float(p @ worth) for p in points], alpha=1e-2)
        best = largest_bound_of_subsets(process, rng, n_chosen=4, kappa=0.0)
        assert best.sum() == 4 and best @ worth > max(p @ worth for p in points)
        free = largest_bound(process, rng, kappa=0.0)
        assert {int(i) for i in np.argsort(-free)[:3]} <= set(range(7, 12))


class TestSwift:
    def test_it_begins_with_every_odd_layer(self) -> None:
        assert str(every_odd_layer(8)) == "a1,3,5 m1,3,5"

    def test_the_first_set_is_scored_unless_it_does_as_published(self) -> None:
        def first(*, faithful: bool) -> str:
            decoder = decoder_of()
            drafter = online(decoder, Swift(**SWIFT | {"faithful": faithful}), "none")
            decoded(decoder, drafter, LONG)
            searcher: Any = drafter.searcher
            return str(searcher.progress.trials[0].skip)

        assert first(faithful=False) == "a1 m1" and first(faithful=True) in ("a1", "m1")

    @pytest.mark.parametrize(
        ("limits", "n_candidates"),
        [({"max_opt_iter": 2}, 3), ({"max_tolerance_iter": 1, "max_score": 2.0}, None), ({"max_score": -1.0}, 1)],
    )
    def test_it_ends_as_its_settings_say(self, limits: dict[str, Any], n_candidates: int | None) -> None:
        decoder = decoder_of()
        drafter = online(decoder, Swift(**SWIFT | {"faithful": True} | limits), "none")
        decoded(decoder, drafter, LONG, 30)
        searcher = drafter.searcher
        assert isinstance(searcher, SwiftSearcher) and not searcher.is_active
        if n_candidates is not None and "max_score" not in limits:
            assert searcher.n_iter == n_candidates
        stale = [trial.is_taken for trial in searcher.progress.trials]
        assert "max_tolerance_iter" not in limits or stale[-2:] == [False, False]

    def test_a_stream_that_goes_on_proposes_what_an_uncut_one_does(self) -> None:
        decoder = decoder_of()
        whole = online(decoder, Swift(**SWIFT), "none")
        for ids in (LONG, LONG[2:]):
            decoded(decoder, whole, ids, 14)
        cut = online(decoder, Swift(**SWIFT), "none")
        decoded(decoder, cut, LONG, 14)
        resumed = online(decoder, Swift(**SWIFT), "none")
        searcher: Any = resumed.searcher
        former: Any = cut.searcher
        searcher.restore(former.state(), former.progress.trials)
        decoded(decoder, resumed, LONG[2:], 14)
        expected: Any = whole.searcher
        assert [t.skip for t in searcher.progress.trials] == [t.skip for t in expected.progress.trials]


class Clock:
    """Time that passes only when a round takes it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestPortfolio:
    """Rounds of planted lengths and seconds, without a model's clock."""

    SPEEDS = {PLAIN_ARM: (1, 1.0), "good": (3, 1.5), "bad": (1, 3.0)}  # noqa: RUF012 - tokens and seconds of a round

    def stream(self, n_rounds: int, speeds: dict[str, tuple[int, float]]) -> tuple[PortfolioSearcher, dict[str, int]]:
        decoder, clock = decoder_of(), Clock()
        arms = {name: spec_of(decoder, "m2") for name in speeds if name != PLAIN_ARM}
        settings = Portfolio({}, rounds=3, memory=100, kept=20, deviations=1.0, max_loss=0.02, grace_s=0.0)
        searcher = PortfolioSearcher(Tools(decoder, spec_of(decoder), Stopwatch(clock=clock), arms), settings)
        row = Row(0, [1, 2], 9, Fixed(1).begin(), Chooser(Sampling()))
        output = Output(torch.empty(1, 1, 0))
        searcher.begin(row, output)
        used = dict.fromkeys(speeds, 0)
        cache = decoder.new_cache(n_rows=1, capacity=4)
        for _ in range(n_rounds):
            name = searcher.ask([row], cache=cache).version
            used[name] += 1
            tokens, seconds = speeds[name]
            clock.now += seconds
            searcher.tell(row, Draft([7] * tokens), Verdict(list(range(tokens - 1)), 1), output)
        return searcher, used

    def test_it_settles_on_the_fastest(self) -> None:
        searcher, used = self.stream(400, self.SPEEDS)
        assert used["good"] > 380 and searcher.lost_s <= 0.02 * searcher.seconds + 9.0

    def test_it_stays_with_plain_decoding_where_nothing_gains_and_loses_little(self) -> None:
        searcher, used = self.stream(1000, {PLAIN_ARM: (1, 1.0), "bad": (1, 3.0), "worse": (1, 5.0)})
        n_tokens, seconds = 1000, searcher.seconds
        assert used[PLAIN_ARM] > 970 and seconds <= n_tokens * 1.02 + 3 * (2 + 4)


def test_expected_speedup_is_the_closed_form_with_its_best_length() -> None:
    costs = CostTable((8,), (0.1,), 0.1, 0.1, (1.0,), (1.0, 1.1, 1.2, 1.3))
    skip = SkipSet.parse("a0-3 m0-3", 5)  # a draft costs 0.1 + 0.2
    value, length = expected_speedup(0.8, skip, costs, max_draft=4)
    every = {k: sum(0.8**i for i in range(k + 1)) / (1 + 0.1 * k + 0.3 * k) for k in range(1, 5)}
    assert length == max(every, key=every.__getitem__) and value == pytest.approx(max(every.values()))
    assert expected_speedup(0.05, skip, costs, max_draft=4) == (1.0, 0)
    assert tokens_per_layer(0.5, 2, 1, n_layers=10) == pytest.approx(1.5 / 12)


def test_layers_below_their_neighbours_are_skipped_up_to_the_share() -> None:
    sure = [0.9, 0.8, 0.2, 0.8, 0.8, 0.1, 0.8, 0.9]
    settings = ConfLayers(4, 0.25, 0.25, neighbours=2, lambda_step=0.05, interval=1, max_opt_iter=1)
    assert str(uncertain_layers(sure, settings)) == "a2,5 m2,5"


def test_a_comb_has_more_siblings_where_the_draft_is_less_sure() -> None:
    comb = ConfidenceComb(((0.95, 1), (0.8, 3), (0.5, 5), (0.0, 10)), max_depth=3, threshold=0.8)  # type: ignore[arg-type]
    assert shape_from(comb.to_dict()) == comb

    def level(parent: int, ranks: tuple[int, ...], chance: float, sure: float) -> list[Node]:
        rest = (1 - sure) / 9
        return [Node(parent, len(ranks) + 1, (*ranks, r), chance * (sure if not r else rest)) for r in range(10)]

    nodes = level(ROOT, (), 1.0, 0.97) + level(0, (0,), 0.97, 0.6)
    assert comb.expands(nodes[:10], range(10), rate=1.0) == [0] and comb.expands(nodes, range(10, 20), rate=1.0) == []
    assert comb.keeps(nodes, rate=1.0) == [0, *range(10, 15)]
    with pytest.raises(InputError, match="falling order"):
        ConfidenceComb(((0.5, 1), (0.8, 3)), max_depth=3, threshold=0.8)


def test_a_warm_up_teaches_nothing() -> None:
    decoder = decoder_of()
    drafter: OnlineDraft = online(decoder, Swift(**SWIFT), "none")
    searcher: Any = drafter.searcher
    searcher.is_learning = False
    decoded(decoder, drafter, LONG)
    assert (
        searcher.progress.to_dict() == {"n_rounds": 0, "n_tokens": 0, "spent_s": 0.0} and not searcher.progress.trials
    )
