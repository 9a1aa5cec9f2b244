"""Attention by groups is transformers' own sum, and models take it where it is faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.sampling import largest
from selfspec.models import attention
from selfspec.models.attention import FEW, GROUPED, grouped_attention, use_grouped
from selfspec.models.decoder import Decoder
from tests.toys import toy

N_HEADS, N_KEY_HEADS, N_KEYS, WIDTH = 6, 2, 21, 8


class _Layer(nn.Module):
    num_key_value_groups = N_HEADS // N_KEY_HEADS
    is_causal = True


def _given(n_new: int, *, n_rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(n_new)
    shapes = ((N_HEADS, n_new), (N_KEY_HEADS, N_KEYS), (N_KEY_HEADS, N_KEYS))
    query, key, value = (torch.randn(n_rows, h, t, WIDTH, dtype=torch.float64, generator=rng) for h, t in shapes)
    return query, key, value


def _causal(n_new: int) -> Tensor:
    return torch.ones(2, 1, n_new, N_KEYS, dtype=torch.bool).tril(N_KEYS - n_new)


@pytest.mark.parametrize("n_new", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("is_masked", [True, False])
def test_the_sum_is_transformers_own(n_new: int, is_masked: bool) -> None:
    query, key, value = _given(n_new)
    mask = _causal(n_new) if is_masked else None
    if n_new == 1 and mask is not None:
        mask[0, ..., 3:] = False  # rows of unequal length
    ours, no_weights = grouped_attention(_Layer(), query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(_Layer(), query, key, value, mask, scaling=0.3)
    assert no_weights is None
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_only_few_tokens_over_shared_keys_are_taken_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def theirs(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        asked.append(query.shape[2])
        return query.transpose(1, 2), None

    monkeypatch.setattr(attention, "sdpa_attention_forward", theirs)
    for n_new in (1, 2, FEW, FEW + 1):
        query, key, value = _given(n_new)
        grouped_attention(_Layer(), query, key, value, _causal(n_new))
    assert asked == [FEW + 1]
    query, key, value = _given(2)
    grouped_attention(_Layer(), query, key, value, None)  # causal without a mask
    grouped_attention(_Layer(), query, key, value, _causal(2).expand(2, N_HEADS, 2, N_KEYS))  # a mask for each head
    grouped_attention(_Layer(), query, key, value, _causal(2), softcap=5.0)
    grouped_attention(_Layer(), query, key.repeat(1, 3, 1, 1), value.repeat(1, 3, 1, 1), _causal(2))
    assert asked == [FEW + 1, 2, 2, 2, 2]


def test_a_model_whose_heads_share_keys_takes_it_and_decodes_the_same() -> None:
    model = toy("llama", "sdpa")
    prompt, ending = [1, 2, 3, 4, 5], Ending(12)
    before = autoregress(Decoder(model), [prompt], ending=ending)[0].tokens
    assert use_grouped(model)
    assert model.config._attn_implementation == GROUPED
    assert autoregress(Decoder(model), [prompt], ending=ending)[0].tokens == before
    assert model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, 5:].tolist() == before


@pytest.mark.parametrize(
    ("family", "kernel", "settings"),
    [("llama", "sdpa", {"num_key_value_heads": 4}), ("llama", "eager", {}), ("falcon-grouped", "sdpa", {})],
    ids=["a key for each head", "another kernel", "its own attention"],
)
def test_a_model_that_would_not_gain_keeps_its_own(family: str, kernel: str, settings: dict[str, Any]) -> None:
    model = toy(family, kernel, **settings)
    assert not use_grouped(model)
    assert model.config._attn_implementation == kernel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_is_the_first_of_equals(dtype: torch.dtype) -> None:
    logits = torch.randint(0, 5, (3, 4, 997), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(largest(logits), logits.argmax(-1))
    assert (logits == logits.amax(-1, keepdim=True)).sum(-1).min() > 1, "no ties: this test proves nothing"
