"""A draft's weights in int8: half the bytes of bfloat16 to read for every drafted token.

Each output channel is rounded to 255 even steps around zero; the kernel rounds the input of every call to 256 steps as
well, which cost no acceptance where it was measured and is what makes it fast. The target keeps its own weights, so the
output stays as it is. The copies come on top of the model: they are memory spent for speed.

The kernel takes float32 and gives float32, so that a model of any dtype can be drafted for, on a CPU.
"""

# O output features, I input features

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from selfspec.errors import InputError
from selfspec.packed import PackedLinear

STEPS = 127  # from zero to the largest weight of a channel, on either side


class Int8Linear(nn.Module):
    """Stands for a linear layer in a draft; the layer itself is not changed or held.

    Args:
        linear: dense or packed.

    Raises:
        InputError: if there is no kernel where it lies.
    """

    def __init__(self, linear: nn.Linear | PackedLinear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach()
        check_kernel(weight_OI.device)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        int8_OI, scales_O = rounded(weight_OI)
        bias = None if linear.bias is None else linear.bias.detach().float()
        with warnings.catch_warnings():
            # A tensor type on its way out of torch carries the weight to the kernel, and only there.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            zeros_O = torch.zeros(self.out_features, dtype=torch.long)
            carrier = torch._make_per_channel_quantized_tensor(int8_OI, scales_O.double(), zeros_O, 0)
        self._packed: Any = torch.ops.quantized.linear_prepack(carrier, bias)
        # Without VNNI the kernel adds two products in 16 bits; inputs of 7 bits keep them from overflowing.
        vnni = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))
        self._reduce_range = not vnni and torch.backends.quantized.engine != "qnnpack"

    @property
    def n_bytes(self) -> int:
        """Of the weight and its scales; a bias takes no more than it did."""
        return self.out_features * (self.in_features + 4)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        # A draft may be bad enough to overflow, and the kernel refuses what is not a number.
        finite = torch.nan_to_num(x.float())
        product: Tensor = torch.ops.quantized.linear_dynamic(finite, self._packed, self._reduce_range)
        return product.to(x.dtype)

    def extra_repr(self) -> str:
        """As of a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"


class Int8Copies:
    """The int8 copies of a model's linear layers: each is made once, whichever drafts use it.

    Args:
        model: whose layers; it is not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._made: dict[str, Int8Linear] = {}

    def put(self, draft: nn.Module, paths: Iterable[str]) -> int:
        """Put copies in the place of all linear layers at and below `paths` of a draft; returns how many.

        Args:
            draft: a copy of the model, made by `model.share`.
            paths: of modules; what is not a linear layer stays as it is.

        Raises:
            InputError: if there is no kernel where a layer lies.
        """
        found = [
            (f"{path}.{name}".removesuffix("."), module)
            for path in paths
            for name, module in self._model.get_submodule(path).named_modules()
            if isinstance(module, PackedLinear) or type(module) is nn.Linear
        ]
        for path, module in found:
            if path not in self._made:
                self._made[path] = Int8Linear(module)
            draft.set_submodule(path, self._made[path])
        return len(found)


def rounded(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [O, I], scales [O] in float32): their product is the weight to within half a scale."""
    weight_OI = weight_OI.float()
    scales_O = weight_OI.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * STEPS) / STEPS
    return (weight_OI / scales_O.unsqueeze(1)).round().to(torch.int8), scales_O


def check_kernel(device: torch.device) -> None:
    """Refuse what has no int8 kernel.

    Raises:
        InputError: if weights on `device` have none.
    """
    if device.type != "cpu":
        raise InputError(f"precision=int8 was asked for weights on {device}, but its kernel runs on a CPU; use same")
    if torch.backends.quantized.engine == "none" or not hasattr(torch.ops.quantized, "linear_dynamic"):
        raise InputError("precision=int8 was asked for, but this build of torch has no int8 kernel; use same")
