"""Deliberate bugs, each of which a short check must catch: the suite is worth what it can detect.

Every check is a short form of tests that run every time; its docstring names them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec.drafters.chain import ModelDraft
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import comb
from selfspec.engine import decode, forward, sampling, tree, verify
from selfspec.engine.cache import ClockCache, ClockLayer
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.forward import BoundForward
from selfspec.engine.protocols import ROOT, BaseDrafter, Draft, Drafter, Row, Verdict
from selfspec.engine.request import Request
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.errors import DrafterError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Adaptive, Fixed, StopPolicy
from tests.contracts.architecture import counts
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
TARGET = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
DRAWN = torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64)
N_JUDGED = 3000
MOVING = Adaptive(6, 0.3, 0.6, 0.2, 0.5, 0.5, carry_over=False)
PENALTY = Sampling(repetition_penalty=3.0)


@dataclass(frozen=True)
class Truth:
    """A model, and what it writes after each prompt when nothing is wrong: plainly, and with a penalty."""

    decoder: Decoder
    plain: list[list[int]]
    penalised: list[list[int]]


@pytest.fixture(scope="module")
def truth() -> Truth:
    decoder = Decoder(toy("llama"))
    plain, penalised = (
        [autoregress(decoder, [ids], ending=Ending(N_NEW), sampling=how)[0].tokens for ids in PROMPTS]
        for how in (None, PENALTY)
    )
    return Truth(decoder, plain, penalised)


def decoded(
    truth: Truth,
    drafter: Drafter,
    prompts: Sequence[list[int]] = PROMPTS,
    *,
    rule: StopPolicy = Fixed(4),  # noqa: B008  # frozen
    ending: Ending = Ending(N_NEW),  # noqa: B008  # frozen
    how: Sampling | None = None,
) -> list[DecodeResult]:
    stops = [rule.begin() for _ in prompts]
    return speculate(truth.decoder, prompts, drafter=drafter, stops=stops, ending=ending, sampling=how)


def chain_of(truth: Truth, text: str) -> ModelDraft:
    return ModelDraft(truth.decoder.bind(SkipSet.parse(text, truth.decoder.n_layers)))


def tree_of(truth: Truth) -> TreeDraft:
    return TreeDraft(truth.decoder.bind(SkipSet.parse("m2", truth.decoder.n_layers)), comb((3, 3, 2)))


@dataclass
class Foreseen(BaseDrafter):
    """The next two tokens of the penalised truth, and the second of them as a wrong sibling of the first."""

    truth: Truth
    name: str = "foreseen"

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        return [self.draft(row) for row in rows]

    def draft(self, row: Row) -> Draft:
        texts = [[*ids, *tokens] for ids, tokens in zip(PROMPTS, self.truth.penalised, strict=True)]
        ahead = next((text[len(row.ids) :] for text in texts if text[: len(row.ids)] == row.ids), [])
        if min(row.limit, len(ahead)) < 2:
            return Draft([], [])
        one, two, *_ = ahead
        return Draft([two, one, two], [ROOT, ROOT, 1])


def chains(truth: Truth) -> None:
    """test_families: lossless, an empty set is accepted whole; test_engine: every token was committed in a round."""
    assert [autoregress(truth.decoder, [ids], ending=Ending(N_NEW))[0].tokens for ids in PROMPTS] == truth.plain
    for text in SETS:
        drafter = chain_of(truth, text)
        for groups in ([p] for p in PROMPTS), [PROMPTS]:
            results = [r for group in groups for r in decoded(truth, drafter, group)]
            assert [r.tokens for r in results] == truth.plain, text
            for r in results:
                assert len(r.tokens) == 1 + sum(x.committed for x in r.rounds)
                assert all(x.accepted <= x.drafted for x in r.rounds)
                assert text != "none" or r.accepted == r.drafted
                assert r.drafted > 0


def batches(truth: Truth) -> None:
    """contracts/drafter: a ragged batch equals each row alone; contracts/stop: two states in turn."""
    drafter = chain_of(truth, "a1 m2")
    alone = [decoded(truth, drafter, [ids], rule=MOVING)[0] for ids in PROMPTS]
    together = decoded(truth, drafter, rule=MOVING)
    assert [(r.tokens, counts(r)) for r in together] == [(r.tokens, counts(r)) for r in alone]
    thresholds = [[[x.threshold for x in r.rounds] for r in results] for results in (together, alone)]
    assert thresholds[0] == thresholds[1]


def trees(truth: Truth) -> None:
    """test_tree: any tree decodes to the target's own output; contracts/drafter: verdicts follow the tree."""
    results = decoded(truth, tree_of(truth))
    assert [r.tokens for r in results] == truth.plain
    assert [[(x.drafted, x.accepted) for x in r.rounds] for r in results] == TREE_ROUNDS


def penalties(truth: Truth) -> None:
    """test_verify: a drawn tree of two levels; test_engine: warps are given every token so far."""
    assert truth.penalised != truth.plain
    assert [r.tokens for r in decoded(truth, Foreseen(truth), how=PENALTY)] == truth.penalised


def endings(truth: Truth) -> None:
    """test_engine: an end token inside an accepted draft ends there."""
    eos = truth.plain[0][6]
    (ended,) = decoded(truth, ModelDraft(truth.decoder.full), PROMPTS[:1], ending=Ending(N_NEW, frozenset([eos])))
    assert ended.tokens == truth.plain[0][: truth.plain[0].index(eos) + 1]


def fresh_rules(truth: Truth) -> None:
    """contracts/stop: begin is fresh after use of another state."""
    rule = Adaptive(4, 0.5, 0.9, 0.1, 0.5, 0.5, carry_over=False)
    used = rule.begin()
    used.observe(4, 0)
    assert rule.begin(used).threshold == 0.5


def streams(truth: Truth) -> None:
    """test_engine: drafting and judging draw from streams of their own."""
    chooser = Chooser(Sampling(do_sample=True))
    before = chooser.target_rng.get_state()
    sampling.draw(torch.ones(8) / 8, chooser.draft_rng)
    assert torch.equal(chooser.target_rng.get_state(), before)
    assert not torch.equal(chooser.draft_rng.get_state(), before)


def identity(truth: Truth) -> None:
    """test_sampling and test_verify: what is committed follows the target to 1e-12."""
    accepts = torch.tensor([verify.acceptance_probability(t, DRAWN, TARGET) for t in range(4)], dtype=torch.float64)
    rejected = 1 - (DRAWN * accepts).sum()
    assert torch.allclose(DRAWN * accepts + rejected * verify.residual(0, DRAWN, TARGET), TARGET, atol=1e-12)


def siblings(truth: Truth) -> None:
    """test_verify: drawn siblings give exactly the target's distribution."""
    total = torch.zeros_like(TARGET)
    for first, second in itertools.permutations(range(4), 2):
        left = verify.without(first, DRAWN)
        chance = float(DRAWN[first]) * float(DRAWN[second]) / (1 - float(DRAWN[first]))
        a = verify.acceptance_probability(first, DRAWN, TARGET)
        rest = verify.residual(first, DRAWN, TARGET)
        b = verify.acceptance_probability(second, left, rest)
        total[first] += chance * a
        total[second] += chance * (1 - a) * b
        total += chance * (1 - a) * (1 - b) * verify.residual(second, left, rest)
    assert torch.allclose(total, TARGET, atol=1e-12)


def judged_siblings(truth: Truth) -> None:
    """test_verify: real streams give the target's distribution."""
    rng = torch.Generator().manual_seed(0)
    tally = torch.zeros(4)
    for _ in range(N_JUDGED):
        first, second = torch.multinomial(DRAWN, 2, generator=rng).tolist()
        draft = Draft([first, second], [ROOT, ROOT], probabilities=[DRAWN, verify.without(first, DRAWN)])
        verdict = verify.judge_sampled(draft, lambda node: TARGET, rng)
        tally[draft.tokens[verdict.path[0]] if verdict.path else verdict.token] += 1
    # five deviations of a share of 0.4; a missing residual moves one by more than twice as much
    assert (tally / N_JUDGED - TARGET).abs().max() < 5 * (0.4 * 0.6 / N_JUDGED) ** 0.5


def hidden_states(truth: Truth) -> None:
    """test_tree: hidden states are those of transformers."""
    ids_BT = torch.tensor([PROMPTS[2]])
    theirs = truth.decoder.model(ids_BT, output_hidden_states=True).hidden_states
    cache = truth.decoder.new_cache(n_rows=1, capacity=ids_BT.shape[1])
    ours = truth.decoder.full.output(ids_BT, starts=[0], cache=cache, hidden=(0, 1)).hidden
    assert all(torch.allclose(ours[layer], theirs[layer + 1], atol=1e-6) for layer in (0, 1))


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


def stale_stop_state_in_a_batch(patch: pytest.MonkeyPatch) -> None:
    original, first = decode.new_request, []

    def shared(decoder: Decoder, index: int, prompt: list[int], stop: Any, *rest: Any) -> Request:
        first[:] = first if index else [stop]
        return original(decoder, index, prompt, first[0], *rest)

    patch.setattr(decode, "new_request", shared)


def the_first_rows_stay(patch: pytest.MonkeyPatch) -> None:
    original = ClockCache.keep
    patch.setattr(ClockCache, "keep", lambda self, rows: original(self, range(len(rows))))


def hidden_state_of_the_wrong_layer(patch: pytest.MonkeyPatch) -> None:
    original = forward.caught

    @contextmanager
    def late(model: Any, layers: Any, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        with original(model, layers, [n + 1 for n in wanted]) as found:
            yield (shifted := {})
            shifted |= {n - 1: states for n, states in found.items()}

    patch.setattr(forward, "caught", late)


def compacts_another_row(patch: pytest.MonkeyPatch) -> None:
    original = ClockCache.commit
    patch.setattr(ClockCache, "commit", lambda self, row, start, path: original(self, 0, start, path))


def nodes_hang_on_the_wrong_parent(patch: pytest.MonkeyPatch) -> None:
    original = tree._branches

    def moved(draft: Draft, n_new: int) -> list[list[bool]]:
        parents = None if draft.parents is None else [max(ROOT, parent - 1) for parent in draft.parents]
        return original(Draft(draft.tokens, parents), n_new)

    patch.setattr(tree, "_branches", moved)


def penalties_see_other_branches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Draft, "path", lambda self, node: self.tokens[: node + 1])


def siblings_without_the_residual(patch: pytest.MonkeyPatch) -> None:
    original = verify.judge_sampled

    def forgetful(draft: Draft, target: Any, rng: torch.Generator) -> Verdict:
        """Each sibling is judged against the target itself, and the correction is drawn from it."""
        patch_residual = pytest.MonkeyPatch()
        patch_residual.setattr(verify, "residual", lambda token, draft_V, target_V: target_V)
        try:
            return original(draft, target, rng)
        finally:
            patch_residual.undo()

    patch.setattr(verify, "judge_sampled", forgetful)


# What each breaks. The suite's own tests of it stand in that check's docstring.
MUTATIONS: dict[Mutation, Callable[[Truth], None]] = {
    off_by_one_rollback: chains,
    never_rolls_back: chains,
    writes_every_row_at_the_first_clock: chains,
    values_of_the_wrong_row: chains,
    stale_positions: chains,
    accepts_one_too_many: chains,
    correction_from_the_wrong_row: chains,
    never_accepts: chains,
    ends_only_at_the_end_of_a_round: endings,
    draft_longer_than_what_is_left: chains,
    one_stream_for_draft_and_target: streams,
    stop_state_leaks: fresh_rules,
    stale_stop_state_in_a_batch: batches,
    the_first_rows_stay: batches,
    no_residual: identity,
    accepts_by_the_target_alone: identity,
    compacts_off_by_one: trees,
    compacts_nothing: trees,
    compacts_another_row: trees,
    nodes_see_their_siblings: trees,
    nodes_hang_on_the_wrong_parent: trees,
    nodes_stand_where_they_are_written: trees,
    the_first_child_alone_is_judged: trees,
    penalties_see_other_branches: penalties,
    siblings_are_drawn_from_the_same: siblings,
    siblings_without_the_residual: judged_siblings,
    hidden_state_of_the_wrong_layer: hidden_states,
}


@pytest.mark.parametrize("check", dict.fromkeys(MUTATIONS.values()), ids=lambda check: check.__name__)
def test_a_check_passes_without_a_mutation(check: Callable[[Truth], None], truth: Truth) -> None:
    check(truth)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_a_deliberate_bug_is_caught(mutation: Mutation, truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, IndexError, DrafterError)):
        MUTATIONS[mutation](truth)
