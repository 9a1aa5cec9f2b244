"""Trees of tokens: who sees whom, what is refused, and accepted branches that leave the cache as if never drafted."""

# V vocabulary

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from selfspec.drafters.chain import ModelDraft, NoDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import ROOT, BaseDrafter, Draft, Needs, Output, Row, Verdict
from selfspec.engine.tree import depths, read_drafts, tree_layout
from selfspec.errors import DrafterError, InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG, ROUNDING, SHORT
from tests.test_engine import SAMPLING, decoder_of, run
from tests.toys import FAMILIES, toy

N_NEW = 10
WITH_MASKS = [name for name, family in FAMILIES.items() if family.takes_batches]
families = pytest.mark.parametrize("family", FAMILIES)


@dataclass
class Bushy(BaseDrafter):
    """Trees whose right branch is hidden among wrong ones: some of the target's own tokens, in any place."""

    texts: list[list[int]]
    seed: int = 0
    shapes: set[str] = field(default_factory=set)
    name: str = "bushy"

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        return [self.draft(row) for row in rows]

    def draft(self, row: Row) -> Draft:
        rng = random.Random(f"{self.seed} {len(row.ids)} {row.ids[:3]}")
        text = next(t for t in self.texts if t[: len(row.ids)] == row.ids)
        ahead = text[len(row.ids) : len(row.ids) + min(row.limit, rng.randrange(4))]
        tokens: list[int] = []
        parents: list[int] = []
        right = ROOT
        for token in ahead:
            for _ in range(rng.randrange(3)):
                wrong = rng.randrange(64)
                if wrong != token:
                    parents.append(rng.choice([right, *range(len(tokens))]))
                    tokens.append(wrong)
            parents.append(right)
            tokens.append(token)
            right = len(tokens) - 1
        draft = Draft(tokens, parents, source=self.name)
        while any(depth > row.limit for depth in depths(draft)):
            draft = Draft(draft.tokens[:-1], (draft.parents or [])[:-1], source=self.name)
        return draft


def texts_of(family: str, prompts: list[list[int]]) -> list[list[int]]:
    decoder = decoder_of(family)
    return [[*ids, *autoregress(decoder, [ids], ending=Ending(N_NEW + 4))[0].tokens] for ids in prompts]


@families
def test_any_tree_decodes_to_the_targets_output_or_is_refused(family: str) -> None:
    decoder = decoder_of(family)
    texts = texts_of(family, [LONG, SHORT])
    if family not in WITH_MASKS:
        with pytest.raises(InputError, match=r"drafts that branch are not possible with a .*; draft chains"):
            for seed in range(9):
                run(decoder, [LONG], Bushy(texts, seed), Ending(N_NEW))
        return
    accepted = 0
    for seed in range(3):
        for ids, text in zip((LONG, SHORT), texts, strict=True):
            (result,) = run(decoder, [ids], Bushy(texts, seed), Ending(N_NEW))
            assert result.tokens == text[len(ids) :][:N_NEW], f"{seed=}"
            accepted += result.accepted
    assert accepted > 10, "hardly a branch was accepted: this test proves nothing"


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3"])
def test_batches_of_different_trees_equal_each_row_alone(family: str) -> None:
    decoder = decoder_of(family)
    prompts = [LONG, SHORT, LONG[3:]]
    texts = texts_of(family, prompts)
    for seed in range(3):
        results = run(decoder, prompts, Bushy(texts, seed), Ending(N_NEW))
        assert [r.tokens for r in results] == [t[len(p) :][:N_NEW] for p, t in zip(prompts, texts, strict=True)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral-window", "gemma3", "phi3-window"])
@torch.inference_mode()
def test_each_node_has_the_logits_and_hidden_states_of_its_own_branch(family: str) -> None:
    decoder = decoder_of(family)
    rng = random.Random(0)
    drafts = []
    for _ in range(2):
        parents = [rng.randrange(-1, i) for i in range(7)]
        drafts.append(Draft([rng.randrange(64) for _ in range(7)], parents))
    prompts = [LONG, SHORT]
    caches = []
    for ids in prompts:
        cache = decoder.new_cache(n_rows=1, capacity=len(ids) + 8)
        decoder.full(torch.tensor([ids[:-1]]), starts=[0], cache=cache)
        caches.append(cache)
    rows = [Row(i, list(ids), 9, Fixed(1).begin(), None) for i, ids in enumerate(prompts)]  # type: ignore[arg-type]
    output = read_drafts(decoder, rows, drafts, ClockCache.stack(caches), hidden=(0, 2, -1))
    for b, (ids, draft) in enumerate(zip(prompts, drafts, strict=True)):
        for node in (ROOT, *range(7)):
            branch = [*ids, *draft.path(node)]
            cache = decoder.new_cache(n_rows=1, capacity=len(branch))
            alone = decoder.full.output(torch.tensor([branch]), starts=[0], cache=cache, hidden=(0, 2, -1))
            assert (output.logits_BTV[b, node + 1] - alone.logits_BTV[0, -1]).abs().max() < ROUNDING
            for layer in (0, 2, -1):
                assert (output.hidden[layer][b, node + 1] - alone.hidden[layer][0, -1]).abs().max() < ROUNDING


def test_hidden_states_are_those_of_transformers_and_what_enters_the_head() -> None:
    decoder = decoder_of()
    ids_BT = torch.tensor([LONG])
    with torch.inference_mode():
        found = decoder.full.output(
            ids_BT, starts=[0], cache=decoder.new_cache(n_rows=1, capacity=len(LONG)), n_logits=1, hidden=(0, 1, -1)
        )
        theirs = decoder.model(ids_BT, output_hidden_states=True)  # type: ignore[operator]
        head = decoder.model.get_output_embeddings()(found.hidden[-1])  # type: ignore[operator]
    assert found.logits_BTV.shape[1] == 1
    for layer in (0, 1):
        assert torch.equal(found.hidden[layer], theirs.hidden_states[layer + 1])
    assert torch.equal(head, theirs.logits)


def test_no_hook_stays_and_none_is_set_where_nobody_asks() -> None:
    decoder = Decoder(toy("llama"))
    hooks = [m._forward_hooks for m in decoder.model.modules()]
    seen: list[int] = []

    class Curious(NoDraft):
        name = "curious"
        needs = Needs(hidden=(1,))

        def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
            seen.append(target.hidden[1].shape[1])

        def begin(self, row: Row, prompt: Output) -> None:
            seen.append(prompt.hidden[1].shape[1])

    run(decoder, [LONG], Curious(), Ending(3))
    assert seen == [len(LONG), 1, 1]
    assert not any(hooks)
    with pytest.raises(InputError, match=r"layer 7 were asked for; this model has 0..2"):
        decoder.full.output(
            torch.tensor([SHORT]), starts=[0], cache=decoder.new_cache(n_rows=1, capacity=8), hidden=(7,)
        )


def test_an_accepted_branch_leaves_the_keys_that_plain_decoding_leaves() -> None:
    decoder = decoder_of()
    (text,) = texts_of("llama", [LONG])
    kept: list[tuple[int, list[torch.Tensor]]] = []

    class Spy(Bushy):
        def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
            n = len(rows[0].ids) - 1
            kept.append((n, [layer.keys[0, :, :n].clone() for layer in cache.layers]))
            return super().propose(rows, cache=cache)

    run(decoder, [LONG], Spy([text], 1), Ending(N_NEW))
    cache = decoder.new_cache(n_rows=1, capacity=len(text))
    with torch.inference_mode():
        decoder.full(torch.tensor([text]), starts=[0], cache=cache)
    for n, keys in kept:
        for layer, known in zip(cache.layers, keys, strict=True):
            assert (layer.keys[0, :, :n] - known).abs().max() < ROUNDING


def test_the_layout_of_rows_at_different_places() -> None:
    drafts = [Draft([5, 6, 7], [ROOT, 0, ROOT]), Draft([8])]
    positions, seen, keys = tree_layout([2, 0], drafts, n_new=4)
    assert positions.tolist() == [[2, 3, 4, 3], [0, 1, 0, 0]]
    assert keys.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 0, 0, 4, 5]]
    visible = [["".join("x" if s else "." for s in row) for row in rows] for rows in seen.tolist()]
    assert visible == [["xxx...", "xxxx..", "xxxxx.", "xxx..x"], ["x.....", "xx....", "..x...", "...x.."]]


BAD = {
    "token 64, and the vocabulary has 0..63": Draft([3, 64]),
    "token -1": Draft([-1]),
    "node 0 the parent 1; a parent comes before": Draft([3, 4], [1, 0]),
    "node 1 the parent 1": Draft([3, 4], [ROOT, 1]),
    "gave 1 parents for 2 tokens": Draft([3, 4], [ROOT]),
    "drafted 5 tokens, and the limit is 4": Draft([1, 2, 3, 4, 5]),
    "gave 1 confidences for 2 tokens": Draft([1, 2], confidences=[0.5]),
    "sum to 2.0000": Draft([1], probabilities=[torch.full((64,), 2 / 64)]),
    "the least -0.5000": Draft([1], probabilities=[torch.tensor([-0.5, 1.5, *[0.0] * 62])]),
    "drew token 2, whose probability it gave as 0.0": Draft([2], probabilities=[torch.tensor([0.5, 0.5, *[0.0] * 62])]),
    "of shape \\[3\\]": Draft([2], probabilities=[torch.ones(3) / 3]),
    "gave 2 distributions for 1 tokens": Draft([2], probabilities=[torch.ones(64) / 64] * 2),
}


@pytest.mark.parametrize(("message", "draft"), BAD.items(), ids=list(BAD))
def test_what_no_drafter_may_propose_names_the_drafter(message: str, draft: Draft) -> None:
    class Wayward(BaseDrafter):
        def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
            return [draft for _ in rows]

    for sampling in (None, SAMPLING):
        with pytest.raises(DrafterError, match=f"^drafter Wayward .*{message}"):
            run(decoder_of(), [SHORT], Wayward(), Ending(6), sampling=sampling)


def test_a_drafter_that_writes_before_the_clock_or_forgets_a_row_is_named() -> None:
    class Early(BaseDrafter):
        def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
            starts = [len(row.ids) - 2 for row in rows]
            decoder_of().full(torch.tensor([[1]] * len(rows)), starts=starts, cache=cache)
            return [Draft() for _ in rows]

    with pytest.raises(DrafterError, match="drafter Early wrote keys and values of row 0 at position 4"):
        run(decoder_of(), [SHORT], Early(), Ending(6))

    class Short(BaseDrafter):
        def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
            return []

    with pytest.raises(DrafterError, match="drafter Short made 0 drafts for 2 rows"):
        run(decoder_of(), [SHORT, LONG], Short(), Ending(6))


def test_blocks_follow_the_targets_distribution_and_accept_no_less() -> None:
    decoder = decoder_of()
    drafter = ModelDraft(decoder.bind(SkipSet.parse("m2", 3)))
    accepted = {}
    for by_block in (False, True):
        how = replace(SAMPLING, by_block=by_block)
        results = [
            speculate(
                *(decoder, [LONG]),
                drafter=drafter,
                stops=[Fixed(4).begin()],
                ending=Ending(20),
                sampling=replace(how, seed=seed),
            )[0]
            for seed in range(12)
        ]
        accepted[by_block] = sum(r.accepted for r in results) / sum(len(r.rounds) for r in results)
    assert accepted[True] > 0.95 * accepted[False]
    with pytest.raises(InputError, match="by_block has no effect when greedy"):
        replace(SAMPLING, do_sample=False, temperature=1.0, top_k=0, by_block=True)
