"""Packed weights: the same results, no second copy, and everything else still works."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.models.decoder import Decoder
from selfspec.models.packing import PackedLinear, can_pack, pack, packs
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.toys import toy

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="this torch has no oneDNN")
BFLOAT16 = pytest.mark.skipif(not packs(torch.bfloat16), reason="oneDNN has no bfloat16 kernel for this CPU")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=BFLOAT16)]


def small(dtype: torch.dtype, **overrides: object) -> PreTrainedModel:
    return toy("llama", "sdpa", **overrides).to(dtype)


@BFLOAT16
@pytest.mark.parametrize("n_rows", [1, 2, 5, 8])
def test_bfloat16_results_are_equal_to_the_bit(n_rows: int) -> None:
    linear = nn.Linear(96, 160, dtype=torch.bfloat16)
    x = torch.randn(1, n_rows, 96, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(PackedLinear(linear)(x), linear(x))


def test_float32_results_differ_by_rounding_only() -> None:
    linear = nn.Linear(96, 160)
    x = torch.randn(1, 3, 96)
    with torch.inference_mode():
        # Sums of 96 products in another order: some units in the last place of numbers around 1.
        assert (PackedLinear(linear)(x) - linear(x)).abs().max() < 1e-5


def test_the_weight_it_took_over_is_let_go() -> None:
    model = small(torch.float32, tie_word_embeddings=False)
    held = [weakref.ref(m.weight) for m in model.modules() if type(m) is nn.Linear]
    assert pack(model) == len(held)
    gc.collect()
    assert not [ref for ref in held if ref() is not None]


def test_a_head_that_is_also_the_embedding_is_packed_beside_it() -> None:
    model, ids = small(torch.float32, tie_word_embeddings=True), torch.tensor([[1, 2, 3]])
    before, embedding = model(ids).logits, model.get_input_embeddings().weight
    pack(model)
    head = model.get_output_embeddings()
    assert isinstance(head, PackedLinear) and torch.equal(head.weight, embedding)
    assert model.get_input_embeddings().weight is embedding
    assert torch.allclose(model(ids).logits, before, atol=1e-5)


def test_layers_that_share_a_weight_go_on_sharing_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    assert pack(model) == 1
    assert model[2].weight is model[0].weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_dict_is_as_it_was_and_loads_again(dtype: torch.dtype) -> None:
    model, other = small(dtype), small(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    pack(other)
    other.load_state_dict(before)
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(other(ids).logits, model(ids).logits)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saving_writes_an_ordinary_model(dtype: torch.dtype, is_tied: bool, tmp_path: Path) -> None:
    model = small(dtype, tie_word_embeddings=is_tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack(model)
    model.save_pretrained(tmp_path)
    after = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_generate_and_drafts_work_on_a_packed_model() -> None:
    model = small(torch.float32)
    pack(model)
    decoder, ids = Decoder(model), [1, 2, 3, 4]
    (plain,) = autoregress(decoder, [ids], ending=Ending(16))
    assert model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, 4:].tolist() == plain.tokens
    drafter = ModelDraft(decoder.bind(SkipSet.parse("a1 m0", decoder.n_layers)))
    (got,) = speculate(decoder, [ids], drafter=drafter, stops=[Fixed(3).begin()], ending=Ending(16))
    assert got.tokens == plain.tokens


def test_a_draft_shares_the_packed_weights() -> None:
    model = small(torch.float32)
    pack(model)
    decoder = Decoder(model)
    draft = decoder.bind(SkipSet.parse("a1", decoder.n_layers)).module  # type: ignore[attr-defined]
    mine = [m.packed for m in model.modules() if isinstance(m, PackedLinear)]
    theirs = [m.packed for m in draft.modules() if isinstance(m, PackedLinear)]
    assert mine and all(a is b for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_this_cpu_has_no_kernel_for_stays_as_it_is(dtype: torch.dtype) -> None:
    """Not every CPU has oneDNN's kernel for bfloat16, none has one for float64."""
    model, ids = small(dtype), torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    assert bool(pack(model)) == can_pack(small(dtype)) == packs(dtype)
    assert torch.allclose(model(ids).logits, before, atol=1e-5)
