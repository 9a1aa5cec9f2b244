"""What stands in the place of a skipped sublayer: an affine map of that sublayer's own input.

Leaving a sublayer out adds nothing to the residual stream; a bridge adds something cheap that resembles what the
sublayer would have added, or what a whole run of adjacent skipped sublayers would have. Only the draft changes by it,
so the output does not. It knows one module and its input; which map fits is found in `search.fitting.bridge_fitting`.
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

KINDS = ("mean", "linear", "lowrank")  # by the number of matrices


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """x → W_n ... W_1 x + b: the mean with no matrix, a linear map with one, a map of low rank with two.

    Attributes:
        bias: b, [D].
        matrices: W_1 to W_n, at most two: [D, D], or [R, D] and [D, R].

    Raises:
        InputError: if the shapes do not fit each other.
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
        """Its weights as a part of those of a linear map."""
        return sum(m.numel() for m in self.matrices) / self.bias.numel() ** 2

    @property
    def n_bytes(self) -> int:
        """Of its weights."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of dtype, shapes and values; reads all weights."""
        found = hashlib.sha256()
        for t in self.tensors:
            found.update(f"{t.dtype}{tuple(t.shape)}".encode())
            found.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()[:12]


def stand_in(bridge: Bridge, patches: tuple[Patch, ...], *, like: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    """The `forward` of a skipped sublayer's module that gives what the patch gives, and what `bridge` adds.

    Whatever a patch returns (zeros, a tuple, the residual), its first tensor is the place where a sublayer adds.

    Args:
        bridge: of the model's hidden size.
        patches: how the sublayer is left out.
        like: the module that is left out: tells the device, and whether weights are packed.
        dtype: of the model's weights.

    Raises:
        InputError: if the sublayer is more than one module, so that its input and its output lie apart.
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
        # The sum is a tensor of its own, since some layers (Falcon's) add to it in place.
        if isinstance(output, tuple):
            return (output[0] + added(x_BTD), *output[1:])
        return output + added(x_BTD)

    return forward


def _as_map(bridge: Bridge, like: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x [..., D] to [..., D], or to [D] where the input does not matter."""
    weight = next(like.parameters(), None)
    device = bridge.bias.device if weight is None else weight.device
    bias_D, *matrices = (t.detach().to(device, dtype) for t in bridge.tensors)
    if not matrices:
        return lambda x: bias_D
    # The last map carries the bias, and the layers are packed where those they stand in for are.
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
