"""Bridges: a small map of a skipped sublayer's input in place of the sublayer.

A skipped sublayer adds nothing to the residual stream. A bridge adds a cheap approximation of what the sublayer, or a
run of adjacent skipped sublayers, would add. It changes the draft only, so the output stays the same. This module knows
one module and its input; `search.fitting.bridge_fitting` fits the affine part, and `selfspec.training.bridged` trains
all of it.
"""

# D hidden size, R rank, B rows, T tokens

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from selfspec.errors import InputError
from selfspec.models.packing import PackedLinear
from selfspec.models.sublayers import Patch

KINDS = ("mean", "linear", "lowrank")  # index: number of matrices
ADAPTERS = {"low_rank": 2, "gated_mlp": 3}  # number of matrices of the part that is not affine
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """The map x → W_n ... W_1 x + b: a mean without a matrix, linear with one, of low rank with two.

    A trained bridge adds an adapter, which is not affine: B silu(A x), or B (silu(A x) · C x) as in a gated MLP.

    Attributes:
        bias: b, [D].
        matrices: W_1 to W_n, at most two: [D, D], or [R, D] and [D, R].
        adapter: A and B, or A, C and B; A and C are [R, D], B is [D, R]. Empty: none.

    Raises:
        InputError: if the shapes do not fit together.
    """

    bias: Tensor
    matrices: tuple[Tensor, ...] = ()
    adapter: tuple[Tensor, ...] = ()

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
        if self.adapter:
            inner = len(self.adapter[0])
            fits = [tuple(m.shape) for m in self.adapter] == [(inner, width)] * (len(self.adapter) - 1) + [
                (width, inner)
            ]
            if len(self.adapter) not in ADAPTERS.values() or not fits:
                raise InputError(
                    f"an adapter for a hidden size of {width} was given matrices of shapes "
                    f"{[tuple(m.shape) for m in self.adapter]}; give [R, D] and [D, R], or [R, D] twice and [D, R]"
                )

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[len(self.matrices)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The bias, the matrices and those of the adapter."""
        return (self.bias, *self.matrices, *self.adapter)

    @property
    def n_maps(self) -> float:
        """Number of its weights, as a fraction of those of a linear map."""
        return sum(m.numel() for m in (*self.matrices, *self.adapter)) / self.bias.numel() ** 2

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of dtype, shapes and values; reads all weights."""
        found = hashlib.sha256(f"adapter of {len(self.adapter)}".encode() if self.adapter else b"")
        for t in self.tensors:
            found.update(f"{t.dtype}{tuple(t.shape)}".encode())
            found.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()[:12]

    def __call__(self, x: Tensor) -> Tensor:
        """What it adds for the inputs x [..., D]; its tensors have the dtype of x."""
        y = x
        for matrix in self.matrices[:-1]:
            y = linear(y, matrix)
        y = linear(y, self.matrices[-1], self.bias) if self.matrices else self.bias.expand_as(x)
        return y + linear(_inner([linear(x, m) for m in self.adapter[:-1]]), self.adapter[-1]) if self.adapter else y


def _inner(parts: list[Tensor]) -> Tensor:
    """silu(A x), or silu(A x) · C x."""
    return silu(parts[0]) * parts[1] if len(parts) == 2 else silu(parts[0])


def stand_in(added: Map, patches: tuple[Patch, ...]) -> Callable[..., Any]:
    """The `forward` of a skipped sublayer's module: the result of its patch, plus what `added` makes of the input.

    A patch may return zeros, a tuple or the residual; the map's output is added to the first tensor.

    Args:
        added: from x [..., D] to [..., D], or to [D].
        patches: the patches that skip the sublayer.

    Raises:
        InputError: if the sublayer consists of several modules, so that its input and output are at different ones.
    """
    if len(patches) != 1:
        names = ", ".join(p.name for p in patches)
        raise InputError(
            f"a bridge stands in for one module, but this model's sublayer is several ({names}); "
            "leave it out without a bridge"
        )
    leave_out = patches[0].forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        x_BTD = args[0] if args else kwargs["hidden_states"]
        output = leave_out(*args, **kwargs)
        # Not in place: some layers (Falcon's) add to the result in place.
        if isinstance(output, tuple):
            return (output[0] + added(x_BTD), *output[1:])
        return output + added(x_BTD)

    return forward


def as_map(bridge: Bridge, like: nn.Module, dtype: torch.dtype) -> Map:
    """The bridge for decoding: a map from x [..., D] to [..., D], or to [D] for a mean.

    Args:
        bridge: a bridge of the model's hidden size.
        like: the skipped module; it gives the device, and whether weights are packed.
        dtype: dtype of the model's weights.
    """
    weight = next(like.parameters(), None)
    device = bridge.bias.device if weight is None else weight.device
    bias_D, *matrices = (t.detach().to(device, dtype) for t in (bridge.bias, *bridge.matrices))
    # The layers are packed if those they replace are.
    is_packed = any(isinstance(m, PackedLinear) for m in like.modules())

    def layer(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
        made = linear_of(weight, bias)
        return PackedLinear(made) if is_packed else made

    affine: Map = lambda x: bias_D  # noqa: E731
    if matrices:  # the last one has the bias
        affine = nn.Sequential(*map(layer, matrices[:-1]), layer(matrices[-1], bias_D))
    if not bridge.adapter:
        return affine
    *ins, out = (layer(m.detach().to(device, dtype)) for m in bridge.adapter)
    return lambda x: affine(x) + out(_inner([m(x) for m in ins]))


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen layer of these weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made
