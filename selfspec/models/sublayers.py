"""The sublayers of an architecture: their modules, and what each returns when it is skipped.

A skipped sublayer adds nothing to the residual stream: its module returns zeros in the structure that its layer
expects. This module knows nothing else of architectures, and refuses an unknown one by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfspec.errors import InputError

_ATTN_NAMES = ("self_attn", "attn", "attention", "self_attention")
_MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe")


@dataclass(frozen=True, slots=True)
class Patch:
    """The replacement of the `forward` of a layer's sub-module `name`, for a skipped sublayer."""

    name: str
    forward: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Sublayers:
    """`path` of the model's list of layers, and the patches that skip attention and MLP of a layer."""

    path: str
    n_layers: int
    attn: tuple[Patch, ...]
    mlp: tuple[Patch, ...]


def zero_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """(zeros, None): the structure that attention modules return."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return torch.zeros_like(hidden), None


def zero_output(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Zeros of the input's shape."""
    return torch.zeros_like(hidden)


def zero_with_scores(hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """(zeros, None): the structure that a mixture-of-experts MLP of gpt-oss returns."""
    return torch.zeros_like(hidden), None


def same(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The input itself."""
    return hidden


def bloom_attention(hidden: Tensor, residual: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """(residual, None): Bloom's attention adds the residual itself."""
    return residual, None


def bloom_mlp(hidden: Tensor, residual: Tensor) -> Tensor:
    """The residual: Bloom's MLP adds it itself."""
    return residual


_BY_TYPE: dict[str, tuple[tuple[Patch, ...], tuple[Patch, ...]]] = {
    "bloom": ((Patch("self_attention", bloom_attention),), (Patch("mlp", bloom_mlp),)),
    "gpt_oss": ((Patch("self_attn", zero_attention),), (Patch("mlp", zero_with_scores),)),
    # OPT has no MLP module: fc1 returns its input so that shapes fit, and fc2 returns zeros of the residual's shape.
    "opt": ((Patch("self_attn", zero_attention),), (Patch("fc1", same), Patch("fc2", zero_output))),
}


def find_sublayers(model: nn.Module) -> Sublayers:
    """The sublayers of a decoder-only transformers model.

    Raises:
        InputError: if the layers, or the attention or MLP of a layer, have none of the known names; or if the model has
            a state other than each layer's own keys and values.
    """
    config = model.config
    text = config.get_text_config()  # type: ignore[operator, union-attr]
    n_layers = int(text.num_hidden_layers)
    kind = str(text.model_type)
    takes_cache = "past_key_values" in inspect.signature(model.forward).parameters
    if not takes_cache or getattr(model, "_is_stateful", False):
        raise InputError(
            f"a {kind!r} model has no cache of keys and values alone, so its drafts cannot be taken back; use another"
        )
    if getattr(text, "num_kv_shared_layers", 0):
        raise InputError(
            f"the last {text.num_kv_shared_layers} layers of this {kind!r} model use other layers' keys and values, "
            "which a skipped attention would not give; use another model"
        )
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    for path, layers in lists:
        names = set.intersection(*({name for name, _ in layer.named_children()} for layer in layers))
        if kind in _BY_TYPE:
            attn, mlp = _BY_TYPE[kind]
            if all(p.name in names for p in (*attn, *mlp)):
                return Sublayers(path, n_layers, attn, mlp)
        attn_name = next((n for n in _ATTN_NAMES if n in names), None)
        mlp_name = next((n for n in _MLP_NAMES if n in names), None)
        if attn_name and mlp_name:
            return Sublayers(path, n_layers, (Patch(attn_name, zero_attention),), (Patch(mlp_name, zero_output),))
    raise InputError(
        f"cannot find the attention and MLP sublayers of a {kind!r} model; "
        "add where they are and what they return to selfspec/models/sublayers.py"
    )
