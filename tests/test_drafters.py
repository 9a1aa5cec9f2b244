"""The drafters of this package keep the contract."""

from __future__ import annotations

import torch

from selfspec.drafters.chain import ModelDraft, NoDraft
from selfspec.drafters.lookup import LookupDraft
from selfspec.drafters.merged import MergedDraft
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import BestFirst, ExpandRerank, comb
from selfspec.engine.protocols import Drafter
from selfspec.models.decoder import Decoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
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
