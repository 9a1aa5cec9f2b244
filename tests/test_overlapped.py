"""Drafting and verifying at the same time, simulated in one process: the output is the target's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from selfspec.drafters.build import build_drafter
from selfspec.drafters.chain import ModelDraft
from selfspec.drafters.small_model import SmallModelDraft, check_same_tokens
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import BestFirst, comb
from selfspec.engine.approximate import AmongBest
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import Drafter, Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.errors import InputError
from selfspec.heads.drafter import HeadDraft
from selfspec.models.decoder import Decoder
from selfspec.overlapped.blocks import BlockDrafter
from selfspec.overlapped.partner import SamePartner
from selfspec.overlapped.schedule import Overlapped
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG, MIDDLE, SHORT
from tests.contracts.drafter import DrafterContract
from tests.test_engine import decoder_of
from tests.test_heads import trained
from tests.toys import STRUCTURES, build

PROMPTS = [SHORT, LONG, MIDDLE]
N_NEW = 9
SAMPLING = Sampling(do_sample=True, temperature=1.3, top_k=20, seed=5)


def skipping(decoder: Decoder, sample: bool = True) -> Drafter:
    return ModelDraft(decoder.bind(SkipSet.parse("m2", decoder.n_layers)), sample)


def small(decoder: Decoder, sample: bool = True) -> Drafter:
    other = build("llama", num_hidden_layers=2, hidden_size=16, intermediate_size=24)
    return SmallModelDraft(Decoder(other), n_vocab=decoder.n_vocab, sample=sample)


def head(decoder: Decoder, sample: bool = True) -> Drafter:
    return build_drafter(DraftSpec(trained(decoder, "eagle"), Fixed(4), sample_draft=sample), decoder)


def short_head(decoder: Decoder, sample: bool = True) -> Drafter:
    return build_drafter(DraftSpec(trained(decoder, "blockwise"), Fixed(4), sample_draft=sample), decoder)


DRAFTERS = {"skipping": skipping, "small model": small, "head": head, "head of few depths": short_head}


def decode(
    decoder: Decoder,
    prompts: list[list[int]],
    drafter: Drafter,
    *,
    gamma: int | None = 3,
    lengths: Iterator[int] | None = None,
    **settings: Any,
) -> list[DecodeResult]:
    """Each prompt alone, since overlapped decoding takes one row."""
    overlapped = Overlapped(SamePartner(decoder, drafter, lengths=lengths), gamma=gamma)
    settings = {"ending": Ending(N_NEW), **settings}
    return [
        speculate(
            decoder,
            [ids],
            drafter=overlapped,
            schedule=overlapped,
            stops=[Fixed(1).begin()],
            first_row=row,
            **settings,
        )[0]
        for row, ids in enumerate(prompts)
    ]


def plain(decoder: Decoder, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    settings = {"ending": Ending(N_NEW), **settings}
    return [autoregress(decoder, [ids], first_row=i, **settings)[0].tokens for i, ids in enumerate(prompts)]


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_output_is_the_targets_own(name: str) -> None:
    decoder = decoder_of()
    results = decode(decoder, PROMPTS, DRAFTERS[name](decoder), gamma=4)
    assert [r.tokens for r in results] == plain(decoder, PROMPTS)
    drafted, accepted = sum(r.drafted for r in results), sum(r.accepted for r in results)
    assert 0 < accepted < drafted or name == "head of few depths", "this test proves nothing"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_output_is_the_targets_own_on_every_structure(structure: str) -> None:
    decoder = decoder_of(structure)
    (result,) = decode(decoder, [LONG], skipping(decoder), gamma=3)
    assert [result.tokens] == plain(decoder, [LONG])


@pytest.mark.parametrize("name", ["skipping", "head"])
def test_blocks_of_any_length_leave_the_output(name: str) -> None:
    decoder = decoder_of()
    for seed in range(2):
        chance = random.Random(seed)
        lengths = iter(lambda c=chance: c.randrange(6), None)
        results = decode(decoder, PROMPTS, DRAFTERS[name](decoder), gamma=None, lengths=lengths)
        assert [r.tokens for r in results] == plain(decoder, PROMPTS)


def test_a_sample_with_point_masses_is_that_of_plain_decoding() -> None:
    decoder = decoder_of()
    for name in ("skipping", "head"):
        results = decode(decoder, PROMPTS[:2], DRAFTERS[name](decoder, False), sampling=SAMPLING)
        assert [r.tokens for r in results] == plain(decoder, PROMPTS[:2], sampling=SAMPLING), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skipping", "head"])
def test_drawn_drafts_give_the_targets_distribution(name: str) -> None:
    # the last two tokens of three, over 600 seeds: cells that expect fewer than 5 are pooled
    decoder, n = decoder_of(vocab_size=4), 600
    ids = [1, 2, 3]
    drafter = DRAFTERS[name](decoder)
    found = Counter[tuple[int, ...]]()
    for seed in range(n):
        how = Sampling(do_sample=True, temperature=2.0, seed=seed)
        found[tuple(decode(decoder, [ids], drafter, gamma=2, ending=Ending(3), sampling=how)[0].tokens[1:])] += 1
    exact = Counter[tuple[int, ...]]()
    for a in range(4):
        first_V = _distribution(decoder, ids, 2.0)
        second_V = _distribution(decoder, [*ids, a], 2.0)
        for b in range(4):
            third_V = _distribution(decoder, [*ids, a, b], 2.0)
            for c in range(4):
                exact[b, c] += float(first_V[a] * second_V[b] * third_V[c])  # type: ignore[assignment]
    large = [cell for cell, p in exact.items() if n * p >= 5]
    rest = 1 - sum(exact[cell] for cell in large)
    chi_square = sum((found[cell] - n * exact[cell]) ** 2 / (n * exact[cell]) for cell in large)
    chi_square += (n - sum(found[cell] for cell in large) - n * rest) ** 2 / max(n * rest, 1)
    assert chi2.sf(chi_square, len(large)) > 1e-4


@torch.inference_mode()
def _distribution(decoder: Decoder, ids: list[int], temperature: float) -> torch.Tensor:
    cache = decoder.new_cache(n_rows=1, capacity=len(ids))
    logits_BTV = decoder.full(torch.tensor([ids]), starts=[0], cache=cache, n_logits=1)
    return (logits_BTV[0, -1] / temperature).softmax(-1)


def test_a_perfect_draft_never_stops_and_commits_a_block_a_round() -> None:
    decoder = decoder_of()
    drafter = ModelDraft(decoder.full, sample=False)
    (result,) = decode(decoder, [LONG], drafter, gamma=4, ending=Ending(18))
    assert [(r.drafted, r.accepted, r.committed) for r in result.rounds] == [(1, 1, 1)] + [(4, 4, 4)] * 4


def test_the_draft_reads_every_key_of_the_target_and_writes_none() -> None:
    decoder, text = decoder_of(), [*LONG, 7]
    source = decoder.new_cache(n_rows=1, capacity=len(LONG) + 4)
    with torch.inference_mode():
        decoder.full(torch.tensor([LONG]), starts=[0], cache=source)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in source.layers]
    blocks = BlockDrafter(skipping(decoder), decoder)
    blocks.open(Row(0, list(text), 0, Fixed(1).begin(), Chooser(Sampling())), source, {})
    assert len(list(blocks.draft(text, [3], 2))) == 2
    n = len(LONG)
    for own, true, (keys, values) in zip(blocks._cache.layers, source.layers, before, strict=True):
        assert torch.equal(own.keys[:, :, :n], true.keys[:, :, :n]), "keys"
        assert torch.equal(own.values[:, :, :n], true.values[:, :, :n]), "values"
        assert torch.equal(true.keys, keys) and torch.equal(true.values, values), "the source is the target's"


@pytest.mark.parametrize("name", ["eagle", "chain"])
def test_a_head_goes_on_behind_given_tokens_as_behind_its_own(name: str) -> None:
    decoder = decoder_of()
    drafter = build_drafter(DraftSpec(trained(decoder, name), Fixed(4)), decoder)
    assert isinstance(drafter, HeadDraft)
    row = Row(0, [*LONG, 7], 4, Fixed(9).begin(), Chooser(Sampling()))
    cache = decoder.new_cache(n_rows=1, capacity=len(LONG))
    with torch.inference_mode():
        layers = drafter.needs.hidden
        drafter.begin(row, decoder.full.output(torch.tensor([LONG]), starts=[0], cache=cache, hidden=layers))
        (whole,) = drafter.propose([row], cache=cache)
    for n_given in (1, 3):
        with torch.inference_mode():
            drafter.begin(row, decoder.full.output(torch.tensor([LONG]), starts=[0], cache=cache, hidden=layers))
            *_, chain = drafter.grown(row, whole.tokens[:n_given])
        assert chain.tokens == whole.tokens and len(whole.tokens) == 4


def test_it_ends_where_plain_decoding_ends() -> None:
    decoder = decoder_of()
    for n_new in (1, 2, 5):
        endings = [Ending(n_new), Ending(N_NEW, frozenset({plain(decoder, [LONG])[0][n_new]}))]
        for ending in endings:
            (result,) = decode(decoder, [LONG], skipping(decoder), gamma=4, ending=ending)
            (wanted,) = autoregress(decoder, [LONG], ending=ending)
            assert (result.tokens, result.finish) == (wanted.tokens, wanted.finish)
            assert len(result.tokens) == 1 + sum(r.committed for r in result.rounds)


def test_what_cannot_overlap_is_refused_in_one_line() -> None:
    decoder = decoder_of()
    with pytest.raises(InputError, match="use batch=1"):
        overlapped = Overlapped(SamePartner(decoder, skipping(decoder)))
        speculate(
            decoder,
            PROMPTS,
            drafter=overlapped,
            schedule=overlapped,
            stops=[Fixed(1).begin() for _ in PROMPTS],
            ending=Ending(4),
        )
    with pytest.raises(InputError, match="leave by_block"):
        decode(decoder, [LONG], skipping(decoder), sampling=Sampling(do_sample=True, by_block=True))
    with pytest.raises(InputError, match="accept"):
        decode(decoder, [LONG], skipping(decoder), verifier=AmongBest(2))
    with pytest.raises(InputError, match="gamma=99"):
        decode(decoder, [LONG], skipping(decoder), gamma=99)
    rescored = build_drafter(DraftSpec(trained(decoder, "eagle"), Fixed(4), tree=comb((2, 2))), decoder)
    with pytest.raises(InputError, match="cannot draft behind others"):
        decode(decoder, [LONG], rescored)
    tree = TreeDraft(decoder.bind(SkipSet.parse("m2", 3)), BestFirst(7, 4, 3, draft_cost=0.3, verify_cost=0.03), False)
    with pytest.raises(InputError, match="drafts trees"):
        decode(decoder, [LONG], tree)


class TestSmallModel(DrafterContract):
    structures = STRUCTURES[:1]  # it reads no cache of the target, so all are one to it

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return small(decoder, sample)


def test_a_small_model_with_other_tokens_is_refused() -> None:
    check_same_tokens({"a": 0, "b": 1}, {"b": 1, "a": 0}, path="x")
    for other in ({"a": 1, "b": 0}, {"a": 0}, {"a": 0, "b": 1, "c": 2}):
        with pytest.raises(InputError, match="the target's own tokenizer"):
            check_same_tokens({"a": 0, "b": 1}, other, path="x")


def test_a_small_model_of_another_width_proposes_known_tokens() -> None:
    decoder = decoder_of()
    for n_vocab in (48, 80):
        other = Decoder(build("llama", num_hidden_layers=1, vocab_size=n_vocab))
        results = decode(decoder, [LONG], SmallModelDraft(other, n_vocab=decoder.n_vocab), sampling=SAMPLING)
        assert results[0].tokens and len(results[0].tokens) == N_NEW
