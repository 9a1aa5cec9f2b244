"""Attention masks for rows at different positions, and for trees of tokens.

A query sees the keys of its row at its own position and before, within the window if the layer has one. In a tree
several tokens share a position, and a query sees the tokens of its own branch. Only ragged batches and trees need these
masks; the model itself masks rows at the same position.
"""

# B rows, T queries, S keys

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfspec.errors import InputError
from selfspec.models.attention import GROUPED

_OWN_POSITIONS = ("bloom", "gpt_neo")  # these derive positions from a 2-dimensional mask or from the last key
_TAKE_BOOLEANS = ("sdpa", GROUPED)
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def check_batches(config: Any) -> None:
    """Check that rows at different positions can be decoded together.

    Raises:
        InputError: if the attention kernel, or the model, takes no explicit mask.
    """
    _check_masks(config, "batches of several prompts", "decode its prompts one at a time")


def check_trees(config: Any) -> None:
    """Check that a draft may branch.

    Raises:
        InputError: if the attention kernel, or the model, takes no explicit mask.
    """
    _check_masks(config, "drafts that branch", "draft chains")


def _check_masks(config: Any, what: str, instead: str) -> None:
    config = config.get_text_config()
    kernel = config._attn_implementation
    if kernel not in ("eager", *_TAKE_BOOLEANS):
        raise InputError(f"{what} need model.attention=auto, sdpa or eager, not {kernel!r}")
    types = set(getattr(config, "layer_types", None) or ())
    if config.model_type in _OWN_POSITIONS or getattr(config, "alibi", False) or types - _KNOWN_LAYERS:
        raise InputError(
            f"{what} are not possible with a {config.model_type!r} model, whose layers make masks "
            f"of their own; {instead}"
        )


def attention_mask(config: Any, positions_BT: Tensor, *, n_keys: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The mask to pass to the model of `config`: [B, 1, T, S], or one for each type of layer.

    Args:
        config: the model's configuration.
        positions_BT: position of each query.
        n_keys: S; the keys are at positions 0..S-1.
        dtype: dtype of the weights; eager attention adds the mask.

    Raises:
        InputError: if the model takes no explicit mask (`check_batches`).
    """
    check_batches(config)
    keys_1S = torch.arange(n_keys, device=positions_BT.device).unsqueeze(0)
    seen_BTS = keys_1S[:, None, :] <= positions_BT[:, :, None]
    return tree_mask(config, positions_BT, seen_BTS=seen_BTS, key_positions_BS=keys_1S, dtype=dtype)


def tree_mask(
    config: Any, positions_BT: Tensor, *, seen_BTS: Tensor, key_positions_BS: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The mask of `attention_mask` for keys at arbitrary positions.

    Args:
        config: the model's configuration.
        positions_BT: position of each query.
        seen_BTS: keys that each query sees in a layer without a window; at least one.
        key_positions_BS: position of each key.
        dtype: dtype of the weights; eager attention adds the mask.

    Raises:
        InputError: if the model takes no explicit mask (`check_trees`).
    """
    check_trees(config)
    config = config.get_text_config()
    kernel = config._attn_implementation
    types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    seen = seen_BTS.unsqueeze(1)
    near = seen
    if window is not None:
        near = seen & (key_positions_BS[:, None, None, :] > positions_BT[:, None, :, None] - window)
    if types:
        return {kind: _as_kernel_wants(near if "sliding" in kind else seen, kernel, dtype) for kind in types}
    return _as_kernel_wants(near, kernel, dtype)


def _as_kernel_wants(seen: Tensor, kernel: str, dtype: torch.dtype) -> Tensor:
    if kernel in _TAKE_BOOLEANS:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
