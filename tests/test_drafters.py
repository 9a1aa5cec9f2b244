"""The drafters of this package keep the contract."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from selfspec.drafters.chain import ModelDraft, NoDraft
from selfspec.drafters.lookup import LookupDraft
from selfspec.drafters.merged import MergedDraft
from selfspec.drafters.recycling import RecyclingDraft
from selfspec.drafters.suffix import SuffixDraft
from selfspec.drafters.suffix_automaton import SuffixAutomaton
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import BestFirst, ExpandRerank, comb
from selfspec.engine.protocols import Drafter, Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.models.decoder import Decoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.drafter import DrafterContract

BEST_FIRST = BestFirst(max_nodes=7, max_depth=4, n_children=3, draft_cost=0.3, verify_cost=0.03)


def skipping(decoder: Decoder, text: str = "m2") -> SkipSet:
    return SkipSet.parse(text, decoder.n_layers)


class TestNoDraft(DrafterContract):
    is_sometimes_right = False

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return NoDraft()


class TestLayerSkip(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return ModelDraft(decoder.bind(skipping(decoder)), sample)


class TestLayerSkipWithBridgesAndTrimmedHead(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        width = decoder.config.hidden_size
        rng = torch.Generator().manual_seed(0)
        matrix = 0.05 * torch.randn(width, width, generator=rng, dtype=torch.float64)
        bridge = Bridge(torch.zeros(width, dtype=torch.float64), (matrix,))
        plan = DraftPlan(skipping(decoder, "a2"), {("attn", 2): bridge}, torch.arange(0, 64, 2), "linear")
        return ModelDraft(decoder.bind(plan), sample)


class TestLookup(DrafterContract):
    is_sometimes_right = False  # noise hardly repeats itself

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return LookupDraft(min_ngram=1)


class TestLookupInFront(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return LookupDraft(ModelDraft(decoder.bind(skipping(decoder)), sample), min_ngram=1)


class TestSuffix(DrafterContract):
    is_sometimes_right = False

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return SuffixDraft(keep=False, min_probability=0.0)


class TestRecycling(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return RecyclingDraft(keep=False, min_probability=0.0)


class TestRecyclingBehindLookup(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return LookupDraft(RecyclingDraft(keep=False, min_probability=0.0), min_ngram=1)


class TestBestFirstTree(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return TreeDraft(decoder.bind(skipping(decoder)), BEST_FIRST)


class TestExpandRerankTree(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return TreeDraft(decoder.bind(skipping(decoder)), ExpandRerank(width=3, max_depth=3, max_nodes=8))


class TestCombOfDrawnSiblings(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return TreeDraft(decoder.bind(skipping(decoder)), comb((3, 2, 1)), sample)


class TestTreeWithBridgesAndTrimmedHead(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        plan = DraftPlan(skipping(decoder), head=torch.arange(0, 64, 2))
        return TreeDraft(decoder.bind(plan), BEST_FIRST)


class TestTreeBehindLookup(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return LookupDraft(TreeDraft(decoder.bind(skipping(decoder)), comb((2, 2)), sample), min_ngram=1)


class TestMergedBranches(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return MergedDraft(LookupDraft(min_ngram=1), TreeDraft(decoder.bind(skipping(decoder)), BEST_FIRST))


class TestMergedChains(DrafterContract):
    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return MergedDraft(LookupDraft(min_ngram=1), ModelDraft(decoder.bind(skipping(decoder)), sample=False))


@pytest.mark.parametrize("seed", range(40))
def test_a_suffix_automaton_counts_every_sequence_of_every_text(seed: int) -> None:
    rng = random.Random(seed)
    texts = [[rng.randrange(3) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 3))]
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.break_text()
        automaton.extend(text)
    found: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        found.update(tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text) + 1))
    for sequence, n in found.items():
        state = 0
        for token in sequence:
            state = automaton.following[state][token]
        assert automaton.count[state] == n, f"{sequence} in {texts}"
    assert set(automaton.following[0]) == {token for text in texts for token in text}


def test_the_likeliest_continuation_is_drafted_from_earlier_answers_too() -> None:
    draft = SuffixDraft(min_probability=0.0, max_nodes=4)
    first, second = (
        Row(key, ids, 9, Fixed(1).begin(), Chooser(Sampling()))
        for key, ids in ((1, [1, 2, 3, 1, 2, 3, 1, 2, 4]), (2, [7, 1, 2]))
    )
    for row in (first, second):
        draft.begin(row, None)  # type: ignore[arg-type]
    draft.end(first)
    (found,) = draft.propose([second], cache=None)  # type: ignore[arg-type]
    assert found.tokens[:2] == [3, 1] and found.confidences[0] == pytest.approx(2 / 3)
    assert found.parents is not None and 4 in [found.tokens[i] for i in found.children(-1)], "both went on after 1 2"
