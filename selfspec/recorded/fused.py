"""The small operations of a model compiled into one another: norms, gates, and turning queries and keys.

Replayed from a graph, a small model's step is spent in dozens of tiny kernels a layer, most of them parts of a norm, of
a rotary turn or of a gated MLP. torch compiles each such piece for its class, not for its layer, and at most three
times as shapes change: seconds, where compiling the whole model takes a minute for every shape. What is inside a piece
may be rounded less often than by the model's own code; target and draft alike run the fused model.
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

_ROTARY = "apply_rotary_pos_emb"  # transformers' name for it, in the module of an architecture
_MOST_SHAPES = 64  # for which torch compiles a piece anew before it gives up; a recording has a shape of its own


def fused(model: nn.Module, sublayers: Sublayers, *, backend: str = "inductor") -> nn.Module:
    """A copy of the model that shares all its weights and runs compiled pieces; the model is not changed.

    Args:
        model: a transformers model.
        sublayers: where its layers are.
        backend: of torch.compile.
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
    """Whether it is an MLP of plain linear layers and an activation, and nothing else."""
    children = list(module.children())
    kinds = {type(child) for child in children if hasattr(child, "weight")}
    return name in mlp_names and hasattr(module, "act_fn") and kinds == {nn.Linear} and len(children) <= 4


def _turning_with(home: Any, turn: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """The model's forward, during which its architecture's rotary function is `turn`."""

    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        former = getattr(home, _ROTARY)
        setattr(home, _ROTARY, turn)
        try:
            return forward(self, *args, **kwargs)
        finally:
            setattr(home, _ROTARY, former)

    return run


def _allow_shapes() -> None:
    """torch gives a function up after 8 shapes; the recordings of a decoder have more."""
    settings: Any = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, max(getattr(settings, name), _MOST_SHAPES))
            return
