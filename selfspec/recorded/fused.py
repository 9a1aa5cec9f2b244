"""Compile the small operations of a model: norms, gated MLPs, and the rotation of queries and keys.

A small model's step, replayed from a graph, runs dozens of tiny kernels in each layer, mostly parts of a norm, of a
rotary embedding or of a gated MLP. torch compiles each such piece once for its class, not for each layer, and at most
three times when shapes change. That takes seconds; compiling the whole model takes a minute for every shape. A compiled
piece may round less often than the model's own code, so target and draft both run the fused model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from selfspec.models.decoder import share
from selfspec.models.sublayers import Sublayers

_ROTARY = "apply_rotary_pos_emb"  # name of the function in transformers' module of an architecture
_MOST_SHAPES = 64  # shapes for which torch may compile a piece; each recording has its own shape


def fused(model: nn.Module, sublayers: Sublayers, *, backend: str = "inductor") -> nn.Module:
    """A copy of the model that shares all its weights and runs compiled pieces; the model is not changed.

    Args:
        model: a transformers model.
        sublayers: the model's sublayers.
        backend: backend of torch.compile.
    """
    _allow_shapes()
    copied = share(model)
    made: dict[type, Callable[..., Any]] = {}
    mlp_names = {patch.name for patch in sublayers.mlp}
    layers = copied.get_submodule(sublayers.path)
    pieces = [m for m in copied.modules() if type(m).__name__.endswith("RMSNorm")]
    pieces += [m for layer in layers.children() for name, m in layer.named_children() if _is_gated(name, m, mlp_names)]
    for piece in pieces:
        if "forward" not in piece.__dict__:
            kind = type(piece)
            if kind not in made:
                made[kind] = torch.compile(kind.forward, backend=backend)
            piece.forward = MethodType(made[kind], piece)
    home = sys.modules[type(model).__module__]
    if hasattr(home, _ROTARY) and "forward" not in copied.__dict__:
        turn = torch.compile(getattr(home, _ROTARY), backend=backend)
        copied.forward = MethodType(_turning_with(home, turn, type(copied).forward), copied)
    return copied


def _is_gated(name: str, module: nn.Module, mlp_names: set[str]) -> bool:
    """Whether the module is an MLP of plain linear layers and an activation only."""
    children = list(module.children())
    kinds = {type(child) for child in children if hasattr(child, "weight")}
    return name in mlp_names and hasattr(module, "act_fn") and kinds == {nn.Linear} and len(children) <= 4


def _turning_with(home: Any, turn: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """The model's forward, with `turn` as the rotary function of its architecture."""

    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        former = getattr(home, _ROTARY)
        setattr(home, _ROTARY, turn)
        try:
            return forward(self, *args, **kwargs)
        finally:
            setattr(home, _ROTARY, former)

    return run


def _allow_shapes() -> None:
    """Raise torch's limit of 8 shapes for a function, since the recordings of a decoder have more."""
    settings: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, max(getattr(settings, name), _MOST_SHAPES))
            return
