"""A draft that scores some tokens only: right about these, silent about the others, and the output stays as it is."""

# N scored tokens, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import autoregress
from selfspec.engine.forward import BoundForward
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Row
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder, share
from selfspec.models.packing import PackedLinear, pack, packs
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.trimmed_head import UNSCORED, TrimmedHead, trimmed
from tests.contracts.architecture import ENDING, LONG, SHORT, counts
from tests.test_engine import SAMPLING, SOME, decoder_of, run
from tests.toys import FAMILIES, VOCAB, every_family, toy

EVERY = torch.arange(VOCAB)
TEN = torch.tensor([0, 3, 7, 12, 20, 33, 40, 41, 59, 63])
families = pytest.mark.parametrize("family", every_family(also=("gemma2", "cohere")))  # whose logits are scaled


def draft_of(decoder: Decoder, head: Tensor | TrimmedHead, skip: str = "none") -> BoundForward:
    """A draft without `skip` whose head is trimmed."""
    chosen = SkipSet.parse(skip, decoder.n_layers)
    module = decoder.bind(chosen).module if len(chosen) else share(decoder.model)
    if not isinstance(head, TrimmedHead):
        head = TrimmedHead(decoder.model.get_output_embeddings(), head)  # type: ignore[operator]
    return BoundForward(trimmed(module, head), decoder.context_length, head)


@torch.inference_mode()
def logits(decoder: Decoder, forward: BoundForward) -> Tensor:
    """Of every token of the long prompt, [1, T, V]."""
    return forward(torch.tensor([LONG]), starts=[0], cache=decoder.new_cache(n_rows=1, capacity=len(LONG)))


@dataclass
class Recorded(BaseDrafter):
    """Proposes what another drafter does, and remembers what of it the text before did not hold."""

    inner: Drafter
    new: set[int] = field(default_factory=set)
    n_held: int = 0

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        texts = [set(row.ids) for row in rows]
        proposals = self.inner.propose(rows, cache=cache)
        for p, text in zip(proposals, texts, strict=True):
            self.new.update(set(p.tokens) - text)
            self.n_held += len(set(p.tokens) & text)
        return proposals


# Logits


@families
def test_scoring_the_whole_vocabulary_changes_no_logit(family: str) -> None:
    decoder = decoder_of(family)
    assert torch.equal(logits(decoder, draft_of(decoder, EVERY)), logits(decoder, decoder.full))


@families
def test_scored_tokens_have_the_full_heads_logits_and_others_have_none(family: str) -> None:
    """Scales and soft caps that the model puts on its logits hold for the scored, and do not lift the others."""
    decoder = decoder_of(family)
    full_BTV, trimmed_BTV = logits(decoder, decoder.full), logits(decoder, draft_of(decoder, TEN))
    # The same sums, in another order where the product of the matrices is cut into other blocks.
    assert (trimmed_BTV[..., TEN] - full_BTV[..., TEN]).abs().max() < 1e-12
    is_scored_V = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, TEN, True)
    assert (trimmed_BTV[..., ~is_scored_V] <= UNSCORED).all()
    assert (trimmed_BTV.softmax(-1)[..., ~is_scored_V] == 0).all()


def test_a_soft_cap_that_lifted_unscored_tokens_would_be_seen() -> None:
    decoder = decoder_of("gemma2")
    without_restoring = draft_of(decoder, TEN)
    del without_restoring.module.forward
    assert logits(decoder, without_restoring).min() > UNSCORED


# The text

FIVE = [1, 2, 3, 50, 51]  # of which TEN has one


@torch.inference_mode()
def logits_beside(decoder: Decoder, forward: BoundForward, texts: list[list[int]], lengths: list[list[int]]) -> Tensor:
    """Of every token of the long prompt, [B, T, V], where these texts are what the rows hold."""
    ids_BT = torch.tensor([LONG] * len(texts))
    cache = decoder.new_cache(n_rows=len(texts), capacity=len(LONG))
    text_rows = forward.text_rows(texts, torch.tensor(lengths) if lengths else None)
    return forward(ids_BT, starts=[0] * len(texts), cache=cache, text_rows=text_rows)


def scored(logits_BTV: Tensor) -> Tensor:
    return logits_BTV > UNSCORED


def only(*ids: int) -> Tensor:
    return torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, torch.tensor([*TEN.tolist(), *ids]), True)


@families
def test_what_a_text_holds_is_scored_as_the_whole_head_does(family: str) -> None:
    decoder = decoder_of(family)
    full_BTV, draft = logits(decoder, decoder.full), draft_of(decoder, TEN)
    found_BTV = logits_beside(decoder, draft, [FIVE], [])
    assert torch.equal(scored(found_BTV), only(*FIVE).expand_as(found_BTV))
    assert (found_BTV - full_BTV)[scored(found_BTV)].abs().max() < 1e-12
    assert (found_BTV.softmax(-1)[~scored(found_BTV)] == 0).all()
    assert torch.equal(scored(logits(decoder, draft)), only().expand_as(full_BTV)), "the text has been left behind"


def test_a_row_is_scored_by_its_own_text_up_to_each_token() -> None:
    decoder = decoder_of()
    draft = draft_of(decoder, TEN)
    found_BTV = scored(logits_beside(decoder, draft, [FIVE, [60, 3, 61], [7]], []))
    for row, ids in zip(found_BTV, (FIVE, [60, 61], []), strict=True):
        assert torch.equal(row, only(*ids).expand_as(row))
    lengths = [[t % 6 for t in range(len(LONG))]]
    (found_TV,) = scored(logits_beside(decoder, draft, [FIVE], lengths))
    for t, row_V in enumerate(found_TV):
        assert torch.equal(row_V, only(*FIVE[: t % 6])), f"token {t}"


def test_rows_follow_the_text_as_it_grows_and_are_those_of_no_other() -> None:
    draft = draft_of(decoder_of(), TEN)
    assert draft.text_rows([[]]) is None and draft.text_rows([TEN.tolist()]) is None
    for text in (FIVE[:1], FIVE[:2], FIVE, [*FIVE, 1, 1], [60, 61], [60]):
        rows = draft.text_rows([text])
        assert rows is not None
        assert rows.ids.tolist() == sorted(set(text) - set(TEN.tolist()))
        assert torch.equal(rows.ceilings[0, 0] > UNSCORED, only(*text))
        assert draft.text_rows([[*text, *text, 7]]) is rows, "made anew, though nothing new was there"
    assert decoder_of().full.text_rows([FIVE]) is None


def test_a_draft_of_a_head_of_one_token_says_what_its_text_holds() -> None:
    decoder = decoder_of()
    plain = autoregress(decoder, [LONG], ending=ENDING)[0].tokens
    prompt = [*plain, *(i for i in range(VOCAB) if i not in plain), *LONG]
    drafter = Recorded(ModelDraft(draft_of(decoder, torch.tensor([7]))))
    (result,) = run(decoder, [prompt], drafter, ENDING)
    assert result.tokens == autoregress(decoder, [prompt], ending=ENDING)[0].tokens
    assert sum(r.accepted for r in result.rounds) == sum(r.drafted for r in result.rounds) > 0, "nothing was skipped"


def test_a_forward_that_fails_leaves_no_text_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of()
    draft = draft_of(decoder, TEN)
    assert draft.head is not None

    def fail(logits: Tensor) -> Tensor:
        raise RuntimeError

    monkeypatch.setattr(draft.head, "restore", fail)
    with pytest.raises(RuntimeError):
        logits_beside(decoder, draft, [FIVE], [])
    monkeypatch.undo()
    assert torch.equal(scored(logits(decoder, draft)), only().expand(1, len(LONG), -1))


# Decoding


@families
@pytest.mark.parametrize("skip", ["none", SOME])
def test_ten_scored_tokens_leave_the_output_as_it_is(family: str, skip: str) -> None:
    decoder = decoder_of(family)
    # What the model says after one prompt is scored, so that drafts are right now and then.
    said = autoregress(decoder, [LONG], ending=ENDING)[0].tokens
    ids_N = torch.tensor(sorted({*said, *TEN.tolist()})[:10])
    drafter = Recorded(ModelDraft(draft_of(decoder, ids_N, skip)))
    for sampling in (None, SAMPLING):
        prompts = [LONG, SHORT] if FAMILIES[family].takes_batches else [LONG]
        results = run(decoder, prompts, drafter, ENDING, sampling=sampling)
        for i, ids in enumerate(prompts):
            (alone,) = run(decoder, [ids], drafter, ENDING, sampling=sampling, first_row=i)
            assert (results[i].tokens, counts(results[i])) == (alone.tokens, counts(alone))
            if sampling is None:
                assert alone.tokens == autoregress(decoder, [ids], ending=ENDING)[0].tokens
    assert drafter.new <= set(ids_N.tolist())
    assert drafter.n_held and drafter.new


def test_a_constraint_that_forbids_every_scored_token_is_kept() -> None:
    def others_only(ids_1T: Tensor, logits_1V: Tensor) -> Tensor:
        return logits_1V.index_fill(1, TEN, -torch.inf)

    decoder = decoder_of()
    sampling = Sampling(do_sample=True, temperature=0.5, repetition_penalty=1.3, warps=(others_only,))
    (result,) = run(decoder, [LONG], ModelDraft(draft_of(decoder, TEN)), ENDING, sampling=sampling)
    assert len(result.tokens) == ENDING.max_new_tokens
    assert not set(result.tokens) & set(TEN.tolist())


# The model


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt-neox", "phi"])  # plain, tied, embed_out, with a bias
def test_the_model_keeps_its_own_head(family: str) -> None:
    model = toy(family)
    decoder = Decoder(model)
    head, before = model.get_output_embeddings(), logits(decoder, decoder.full)
    draft = draft_of(decoder, TEN)
    assert model.get_output_embeddings() is head
    assert isinstance(draft.module.get_output_embeddings(), TrimmedHead)  # type: ignore[operator]
    assert torch.equal(logits(decoder, decoder.full), before)


def test_drafts_can_share_one_head() -> None:
    decoder = decoder_of()
    head = TrimmedHead(decoder.model.get_output_embeddings(), TEN)  # type: ignore[operator]
    drafts = [draft_of(decoder, head, skip) for skip in ("none", SOME)]
    assert all(d.module.get_output_embeddings() is head for d in drafts)  # type: ignore[operator]
    assert torch.equal(logits(decoder, drafts[0]), logits(decoder, draft_of(decoder, TEN)))
    assert torch.equal(logits(decoder, drafts[1]), logits(decoder, draft_of(decoder, TEN, SOME)))


def test_hooks_of_accelerate_lead_to_the_trimmed_head() -> None:
    model = toy("gemma2")
    expected_BTV = logits(Decoder(model), draft_of(Decoder(model), TEN))
    for module in model.modules():
        add_hook_to_module(module, ModelHook())
    decoder = Decoder(model)
    assert torch.equal(logits(decoder, draft_of(decoder, TEN)), expected_BTV)


def test_no_random_number_is_drawn_for_a_head() -> None:
    before = torch.get_rng_state()
    TrimmedHead(nn.Linear(8, 16, device="meta").to_empty(device="cpu"), torch.tensor([1, 2]))
    assert torch.equal(torch.get_rng_state(), before)


# Rows


def test_copies_are_counted_in_bytes() -> None:
    head = TrimmedHead(nn.Linear(32, 64, dtype=torch.float64), TEN)
    assert head.n_bytes == 10 * 32 * 8 + 10 * 8 + 10 * 8 + 64 * 8  # rows, bias, ids, ceilings


@pytest.mark.skipif(not packs(torch.bfloat16), reason="oneDNN has no bfloat16 kernel for this CPU")
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_a_packed_or_tied_head_are_packed_and_equal_to_the_bit(tied: bool) -> None:
    model = toy("llama", "sdpa", tie_word_embeddings=tied).to(torch.bfloat16)
    weight_VI = model.get_output_embeddings().weight.detach().clone()
    pack(model)
    whole = model.get_output_embeddings()
    assert isinstance(whole, PackedLinear)
    head = TrimmedHead(whole, TEN)
    assert isinstance(head.rows, PackedLinear)
    whole_bytes = 0 if tied else 64 * 32 * 2  # a packed head has no rows to take one by one; an embedding has
    assert head.n_bytes == 10 * 32 * 2 + 10 * 8 + 64 * 2 + whole_bytes
    assert torch.equal(head.rows.weight, weight_VI[TEN])
    decoder = Decoder(model)
    assert torch.equal(logits(decoder, draft_of(decoder, head))[..., TEN], logits(decoder, decoder.full)[..., TEN])


@pytest.mark.parametrize(
    ("ids_N", "message"),
    [
        (torch.tensor([], dtype=torch.long), "give one row of int64"),
        (torch.tensor([[1, 2]]), "give one row of int64"),
        (torch.tensor([1.0, 2.0]), "give one row of int64"),
        (torch.tensor([2, 1]), "each once, rising"),
        (torch.tensor([1, 1]), "each once, rising"),
        (torch.tensor([-1, 1]), "from -1 to 1"),
        (torch.tensor([1, VOCAB]), "the vocabulary has 0..63"),
    ],
)
def test_ids_that_are_no_part_of_the_vocabulary_are_refused_in_one_line(ids_N: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        draft_of(decoder_of(), ids_N)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "head",
    [nn.Identity(), nn.Conv1d(4, 4, 2), nn.Linear(4, 4, device="meta")],
)
def test_a_head_without_rows_at_hand_is_refused(head: Any) -> None:
    with pytest.raises(InputError, match=f"cannot trim an output head of type {type(head).__name__}"):
        TrimmedHead(head, torch.tensor([1]))


def test_a_model_without_an_output_head_is_refused() -> None:
    model = share(toy("llama"))
    model.get_output_embeddings = lambda: None  # type: ignore[assignment]
    with pytest.raises(InputError, match="cannot find the output head of a LlamaForCausalLM"):
        trimmed(model, TEN)
