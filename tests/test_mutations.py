"""Deliberate bugs, each of which a short check must catch: the suite is worth what it can detect."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec.drafters.chain import ModelDraft
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import comb
from selfspec.engine import sampling, tree, verify
from selfspec.engine.cache import ClockCache, ClockLayer
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.forward import BoundForward
from selfspec.engine.protocols import Draft, Verdict
from selfspec.engine.request import Request
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.errors import DrafterError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Adaptive, Fixed
from tests.toys import toy

Mutation = Callable[[pytest.MonkeyPatch], None]

N_NEW = 14
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5, 4], [11, 5, 11, 5, 2, 2, 40, 33]]
TREE_ROUNDS = [  # (drafted, accepted) of trees of a chain with siblings: what they are worth when nothing is wrong
    [(8, 2), (8, 1), (8, 2), (8, 1), (6, 2)],
    [(8, 1), (8, 0), (8, 2), (8, 1), (8, 0), (8, 3)],
    [(8, 0), (8, 3), (8, 1), (8, 0), (8, 1), (6, 0), (3, 1)],
]
SETS = ["none", "a0", "a0-2 m0-2", "a1 m2"]


def check() -> None:
    """What the mutations must break: greedy outputs, counts, endings, streams, carry-over, the sampling identity."""
    decoder = Decoder(toy("llama"))
    plain = [autoregress(decoder, [ids], ending=Ending(N_NEW))[0].tokens for ids in PROMPTS]
    for text in SETS:
        drafter = ModelDraft(decoder.bind(SkipSet.parse(text, decoder.n_layers)))
        for prompts in ([p] for p in PROMPTS), [PROMPTS]:
            results = []
            for group in prompts:
                stops = [Fixed(4).begin() for _ in group]
                results += speculate(decoder, group, drafter=drafter, stops=stops, ending=Ending(N_NEW))
            assert [r.tokens for r in results] == plain, text
            for r in results:
                assert len(r.tokens) == 1 + sum(x.committed for x in r.rounds)
                assert all(x.accepted <= x.drafted for x in r.rounds)
                assert text != "none" or r.accepted == r.drafted
                assert r.drafted > 0
    trees = TreeDraft(decoder.bind(SkipSet.parse("m2", decoder.n_layers)), comb((3, 3, 2)))
    results = speculate(
        decoder, PROMPTS, drafter=trees, stops=[Fixed(4).begin() for _ in PROMPTS], ending=Ending(N_NEW)
    )
    assert [r.tokens for r in results] == plain
    assert [[(x.drafted, x.accepted) for x in r.rounds] for r in results] == TREE_ROUNDS
    eos = plain[0][6]
    drafter = ModelDraft(decoder.full)
    (ended,) = speculate(
        decoder, PROMPTS[:1], drafter=drafter, stops=[Fixed(4).begin()], ending=Ending(N_NEW, frozenset([eos]))
    )
    assert ended.tokens == plain[0][: plain[0].index(eos) + 1]
    rule = Adaptive(4, 0.5, 0.9, 0.1, 0.5, 0.5, carry_over=False)
    used = rule.begin()
    used.observe(4, 0)
    assert rule.begin(used).threshold == 0.5
    chooser = Chooser(Sampling(do_sample=True))
    before = chooser.target_rng.get_state()
    sampling.draw(torch.ones(8) / 8, chooser.draft_rng)
    assert torch.equal(chooser.target_rng.get_state(), before)
    assert not torch.equal(chooser.draft_rng.get_state(), before)
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    drawn = torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64)
    accepts = torch.tensor([verify.acceptance_probability(t, drawn, target) for t in range(4)], dtype=torch.float64)
    drawn_siblings(drawn, target)
    rejected = 1 - (drawn * accepts).sum()
    assert torch.allclose(drawn * accepts + rejected * verify.residual(0, drawn, target), target, atol=1e-12)


def drawn_siblings(drawn: Tensor, target: Tensor) -> None:
    """How often each token follows two siblings without replacement, by the rules of the package."""
    total = torch.zeros_like(target)
    for first, second in itertools.permutations(range(4), 2):
        left = verify.without(first, drawn)
        chance = float(drawn[first]) * float(drawn[second]) / (1 - float(drawn[first]))
        a = verify.acceptance_probability(first, drawn, target)
        rest = verify.residual(first, drawn, target)
        b = verify.acceptance_probability(second, left, rest)
        total[first] += chance * a
        total[second] += chance * (1 - a) * b
        total += chance * (1 - a) * (1 - b) * verify.residual(second, left, rest)
    assert torch.allclose(total, target, atol=1e-12)


def compacts_off_by_one(patch: pytest.MonkeyPatch) -> None:
    original = ClockCache.commit
    patch.setattr(
        ClockCache, "commit", lambda self, row, start, path: original(self, row, start, [max(0, n - 1) for n in path])
    )


def compacts_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClockCache, "commit", lambda self, row, start, path: None)


def nodes_see_their_siblings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tree, "_branches", lambda draft, n_new: [[o <= t for o in range(n_new)] for t in range(n_new)])


def nodes_stand_where_they_are_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tree, "depths", lambda draft: list(range(1, len(draft.tokens) + 1)))


def the_first_child_alone_is_judged(patch: pytest.MonkeyPatch) -> None:
    original = Draft.children
    patch.setattr(Draft, "children", lambda self, node: original(self, node)[:1])


def siblings_are_drawn_from_the_same(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "without", lambda token, draft_V: draft_V)


def off_by_one_rollback(patch: pytest.MonkeyPatch) -> None:
    original = ClockCache.set
    patch.setattr(ClockCache, "set", lambda self, starts, n_new: original(self, [max(0, s - 1) for s in starts], n_new))


def never_rolls_back(patch: pytest.MonkeyPatch) -> None:
    def forgetful(self: ClockCache, starts: list[int], n_new: int) -> None:
        self.clocks = [max(c, s) for c, s in zip(self.clocks, starts, strict=True)]
        self._grow(max(self.clocks) + n_new) if max(self.clocks) + n_new > self.capacity else None

    patch.setattr(ClockCache, "set", forgetful)


def writes_every_row_at_the_first_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClockCache, "is_uniform", property(lambda self: True))


def values_of_the_wrong_row(patch: pytest.MonkeyPatch) -> None:
    original = ClockLayer.update

    def swapped(self: ClockLayer, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return original(self, k, v.flip(0), *args, **kwargs)

    patch.setattr(ClockLayer, "update", swapped)


def stale_positions(patch: pytest.MonkeyPatch) -> None:
    original = BoundForward.__call__

    def shifted(self: BoundForward, ids: Tensor, **asked: Any) -> Tensor:
        inner = self.module.forward

        def forward(**kwargs: Any) -> Any:
            if ids.shape[1] == 1:
                kwargs["position_ids"] = kwargs["position_ids"] - 1
            return inner(**kwargs)

        patch.setattr(self.module, "forward", forward, raising=False)
        try:
            return original(self, ids, **asked)
        finally:
            patch.setattr(self.module, "forward", inner, raising=False)

    patch.setattr(BoundForward, "__call__", shifted)


def accepts_one_too_many(patch: pytest.MonkeyPatch) -> None:
    original = verify.judge_greedy

    def generous(draft: Draft, target: list[int]) -> Verdict:
        n = min(original(draft, target).n_accepted + 1, len(draft.tokens))
        return Verdict(list(range(n)), target[n])

    patch.setattr(verify, "judge_greedy", generous)


def correction_from_the_wrong_row(patch: pytest.MonkeyPatch) -> None:
    original = verify.judge_greedy

    def late(draft: Draft, target: list[int]) -> Verdict:
        path = original(draft, target).path
        return Verdict(path, target[min(len(path) + 1, len(target) - 1)])

    patch.setattr(verify, "judge_greedy", late)


def never_accepts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "judge_greedy", lambda draft, target: Verdict([], target[0]))


def ends_only_at_the_end_of_a_round(patch: pytest.MonkeyPatch) -> None:
    def lazy(self: Any, tokens: list[int]) -> int:
        self.row.ids += tokens
        if self.eos_ids & set(tokens):
            self.finish = "eos"
        elif self.n_left <= 0:
            self.finish = "length"
        return len(tokens)

    patch.setattr(Request, "commit", lazy)


def draft_longer_than_what_is_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Request, "n_left", property(lambda self: self.n_max - (len(self.row.ids) - self.n_prompt) + 4))
    ends_only_at_the_end_of_a_round(patch)


def one_stream_for_draft_and_target(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sampling, "_stream", lambda seed, row, purpose: seed)
    original = Chooser.__init__

    def shared(self: Chooser, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.draft_rng = self.target_rng

    patch.setattr(Chooser, "__init__", shared)


def stop_state_leaks(patch: pytest.MonkeyPatch) -> None:
    original = Adaptive.begin
    patch.setattr(Adaptive, "begin", lambda self, after=None: after or original(self))


def no_residual(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "residual", lambda token, draft_V, target_V: target_V)


def accepts_by_the_target_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "acceptance_probability", lambda token, draft_V, target_V: float(target_V[token]))


MUTATIONS: list[Mutation] = [
    off_by_one_rollback,
    never_rolls_back,
    writes_every_row_at_the_first_clock,
    values_of_the_wrong_row,
    stale_positions,
    accepts_one_too_many,
    correction_from_the_wrong_row,
    never_accepts,
    ends_only_at_the_end_of_a_round,
    draft_longer_than_what_is_left,
    one_stream_for_draft_and_target,
    stop_state_leaks,
    no_residual,
    accepts_by_the_target_alone,
    compacts_off_by_one,
    compacts_nothing,
    nodes_see_their_siblings,
    nodes_stand_where_they_are_written,
    the_first_child_alone_is_judged,
    siblings_are_drawn_from_the_same,
]


def test_the_check_passes_without_a_mutation() -> None:
    check()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_a_deliberate_bug_is_caught(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError, DrafterError)):
        check()
