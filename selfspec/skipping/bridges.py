"""Bridges: an affine map of a skipped sublayer's input in place of the sublayer.

A skipped sublayer adds nothing to the residual stream. A bridge adds a cheap approximation of what the sublayer, or a
run of adjacent skipped sublayers, would add. It changes the draft only, so the output stays the same. This module knows
one module and its input; `search.fitting.bridge_fitting` fits the map.
"""

# D hidden size, R rank, B rows, T tokens

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfspec.errors import InputError
from selfspec.models.packing import PackedLinear
from selfspec.models.sublayers import Patch

KINDS = ("mean", "linear", "lowrank")  # index: number of matrices


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """The map x → W_n ... W_1 x + b: a mean without a matrix, linear with one, of low rank with two.

    Attributes:
        bias: b, [D].
        matrices: W_1 to W_n, at most two: [D, D], or [R, D] and [D, R].

    Raises:
        InputError: if the shapes do not fit together.
    """

    bias: Tensor
    matrices: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        shapes = [tuple(m.shape) for m in self.matrices]
        width = self.bias.numel()
        ranks = [len(m) for m in self.matrices[:-1]]  # [], or [R]
        ins, outs = [width, *ranks], [*ranks, width]
        if len(shapes) > 2 or self.bias.dim() != 1 or (shapes and shapes != list(zip(outs, ins, strict=True))):
            raise InputError(
                f"a bridge was given a bias of shape {tuple(self.bias.shape)} and matrices of shapes {shapes}, which "
                "do not fit; give [D] and none, one [D, D], or [R, D] and [D, R]"
            )

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[len(self.matrices)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The bias and the matrices, as the constructor takes them."""
        return (self.bias, *self.matrices)

    @property
    def n_maps(self) -> float:
        """Number of its weights, as a fraction of those of a linear map."""
        return sum(m.numel() for m in self.matrices) / self.bias.numel() ** 2

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of dtype, shapes and values; reads all weights."""
        found = hashlib.sha256()
        for t in self.tensors:
            found.update(f"{t.dtype}{tuple(t.shape)}".encode())
            found.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()[:12]


def stand_in(bridge: Bridge, patches: tuple[Patch, ...], *, like: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    """The `forward` of a skipped sublayer's module: the result of its patch, plus the output of `bridge`.

    A patch may return zeros, a tuple or the residual; the bridge is added to the first tensor.

    Args:
        bridge: a bridge of the model's hidden size.
        patches: the patches that skip the sublayer.
        like: the skipped module; it gives the device, and whether weights are packed.
        dtype: dtype of the model's weights.

    Raises:
        InputError: if the sublayer consists of several modules, so that its input and output are at different ones.
    """
    if len(patches) != 1:
        names = ", ".join(p.name for p in patches)
        raise InputError(
            f"a {bridge.kind} bridge stands in for one module, but this model's sublayer is several ({names}); "
            "leave it out without a bridge"
        )
    leave_out, added = patches[0].forward, _as_map(bridge, like, dtype)

    def forward(*args: Any, **kwargs: Any) -> Any:
        x_BTD = args[0] if args else kwargs["hidden_states"]
        output = leave_out(*args, **kwargs)
        # Not in place: some layers (Falcon's) add to the result in place.
        if isinstance(output, tuple):
            return (output[0] + added(x_BTD), *output[1:])
        return output + added(x_BTD)

    return forward


def _as_map(bridge: Bridge, like: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A map from x [..., D] to [..., D], or to [D] for a mean."""
    weight = next(like.parameters(), None)
    device = bridge.bias.device if weight is None else weight.device
    bias_D, *matrices = (t.detach().to(device, dtype) for t in bridge.tensors)
    if not matrices:
        return lambda x: bias_D
    # The last map has the bias. The layers are packed if those they replace are.
    biases = [None] * (len(matrices) - 1) + [bias_D]
    layers = [_linear(m, b) for m, b in zip(matrices, biases, strict=True)]
    is_packed = any(isinstance(m, PackedLinear) for m in like.modules())
    return nn.Sequential(*(PackedLinear(layer) if is_packed else layer for layer in layers))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
