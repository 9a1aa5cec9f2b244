"""Attention masks for rows that stand at different positions, and for trees of tokens.

A key is seen by a query of the same row at its own position or later, and inside the window where a layer has one. In a
tree, several tokens may stand at one position, and a query sees those of its own branch. Needed only for ragged batches
and trees: rows at one position are masked by the model itself.
"""

# B rows, T queries, S keys

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfspec.errors import InputError
from selfspec.models.attention import GROUPED

_OWN_POSITIONS = ("bloom", "gpt_neo")  # read from a 2-dimensional mask, or from where the keys end
_TAKE_BOOLEANS = ("sdpa", GROUPED)
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def check_batches(config: Any) -> None:
    """Whether rows at different positions can be decoded together.

    Raises:
        InputError: if the attention kernel, or the model, takes no explicit mask.
    """
    _check_masks(config, "batches of several prompts", "decode its prompts one at a time")


def check_trees(config: Any) -> None:
    """Whether a draft may branch.

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
    """The mask that `config`'s model takes in the place of its own: [B, 1, T, S], or one for each type of layer.

    Args:
        config: the model's configuration.
        positions_BT: the position of each query.
        n_keys: S, keys at positions 0..S-1.
        dtype: of the weights; eager attention adds its mask.

    Raises:
        InputError: see `check_batches`.
    """
    check_batches(config)
    keys_1S = torch.arange(n_keys, device=positions_BT.device).unsqueeze(0)
    seen_BTS = keys_1S[:, None, :] <= positions_BT[:, :, None]
    return tree_mask(config, positions_BT, seen_BTS=seen_BTS, key_positions_BS=keys_1S, dtype=dtype)


def tree_mask(
    config: Any, positions_BT: Tensor, *, seen_BTS: Tensor, key_positions_BS: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """As `attention_mask`, of keys that may stand at any position.

    Args:
        config: the model's configuration.
        positions_BT: the position of each query.
        seen_BTS: the keys that each query may see where a layer has no window; at least one.
        key_positions_BS: the position of each key.
        dtype: of the weights; eager attention adds its mask.

    Raises:
        InputError: see `check_trees`.
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
