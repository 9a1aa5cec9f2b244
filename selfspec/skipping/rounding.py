"""A draft's weights in int8 or int4: half or a quarter of bfloat16's bytes to read for every drafted token.

In int8 each output channel is rounded to 255 even steps around zero; the kernel rounds the input of every call to 256
steps as well, which cost no acceptance where it was measured and is what makes it fast. In int4 every 32 inputs of a
channel are rounded to 16 steps of their own, and the input stays as it is. The target keeps its own weights, so the
output stays as it is. The copies come on top of the model: they are memory spent for speed.

A model of any dtype can be drafted for, on a CPU; on CUDA by other kernels (`quantised_cuda`).
"""

# O output features, I input features, G groups of inputs

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from selfspec.errors import InputError
from selfspec.models.packing import PackedLinear

STEPS = 127  # of int8, from zero to the largest weight of a channel, on either side
GROUP = 32  # inputs that share the steps of int4, the fewest that the kernel takes
BLOCK = 16  # outputs that the int4 kernel takes at a time
KEPT = (1.0, 0.9, 0.8, 0.7)  # parts of a group's range that int4's steps may span; chosen, not tuned


class RoundedLinear(nn.Module, ABC):
    """Stands for a linear layer in a draft; the layer itself is not changed or held.

    Args:
        linear: dense or packed.

    Attributes:
        precision: what its weights are rounded to.

    Raises:
        InputError: if there is no kernel where it lies.
    """

    precision: ClassVar[str]

    def __init__(self, linear: nn.Linear | PackedLinear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach()
        check_kernel(self.precision, weight_OI.device)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._hold(weight_OI, None if linear.bias is None else linear.bias.detach())

    @abstractmethod
    def _hold(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Round the weight, and lay it out for the kernel."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Of the weight and its steps; a bias takes no more than it did."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""

    def extra_repr(self) -> str:
        """As of a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.precision}"


class Int8Linear(RoundedLinear):
    """255 steps for a channel."""

    precision = "int8"

    def _hold(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        int8_OI, scales_O = rounded(weight_OI)
        with warnings.catch_warnings():
            # A tensor type on its way out of torch carries the weight to the kernel, and only there.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            zeros_O = torch.zeros(self.out_features, dtype=torch.long)
            carrier = torch._make_per_channel_quantized_tensor(int8_OI, scales_O.double(), zeros_O, 0)
        bias_O = None if bias_O is None else bias_O.float()
        self._packed: Any = torch.ops.quantized.linear_prepack(carrier, bias_O)
        # Without VNNI the kernel adds two products in 16 bits; inputs of 7 bits keep them from overflowing.
        vnni = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))
        self._reduce_range = not vnni and torch.backends.quantized.engine != "qnnpack"

    @property
    def n_bytes(self) -> int:
        """Of the weight and its scales."""
        return self.out_features * (self.in_features + 4)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        # A draft may be bad enough to overflow, and the kernel refuses what is not a number.
        finite = torch.nan_to_num(x.float())
        product: Tensor = torch.ops.quantized.linear_dynamic(finite, self._packed, self._reduce_range)
        return product.to(x.dtype)


class Int4Linear(RoundedLinear):
    """16 steps for every `GROUP` inputs of a channel."""

    precision = "int4"

    def _hold(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._dtype = torch.float32 if weight_OI.dtype == torch.float64 else weight_OI.dtype
        self._more_inputs, more_outputs = -self.in_features % GROUP, -self.out_features % BLOCK
        int4_OI, scales_OG, middles_OG = grouped(pad(weight_OI, (0, self._more_inputs, 0, more_outputs)))
        self._packed = torch._convert_weight_to_int4pack_for_cpu(int4_OI, 1)
        self._steps_GO2 = torch.stack([scales_OG.T, middles_OG.T], -1).to(self._dtype).contiguous()
        self._bias = None if bias_O is None else bias_O.to(self._dtype)

    @property
    def n_bytes(self) -> int:
        """Of the weight, its scales and its middles."""
        return self._packed.numel() + self._steps_GO2.numel() * self._dtype.itemsize

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        x_RI = x.reshape(-1, self.in_features).to(self._dtype)
        if self._more_inputs:
            x_RI = pad(x_RI, (0, self._more_inputs))
        product: Tensor = torch._weight_int4pack_mm_for_cpu(x_RI.contiguous(), self._packed, GROUP, self._steps_GO2)
        if product.shape[1] != self.out_features:
            product = product[:, : self.out_features]
        if self._bias is not None:
            product = product + self._bias
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)


ROUNDED: dict[str, type[RoundedLinear]] = {layer.precision: layer for layer in (Int8Linear, Int4Linear)}


def round_linear(linear: nn.Linear | PackedLinear, precision: str) -> RoundedLinear:
    """The rounded copy of a layer, for the kernel of the device where it lies.

    Raises:
        InputError: if there is none.
    """
    if linear.weight.device.type != "cuda":
        return ROUNDED[precision](linear)
    from selfspec.skipping.rounding_cuda import ON_CUDA  # whose layers are RoundedLinears

    return ON_CUDA[precision](linear)


class RoundedCopies:
    """The rounded copies of a model's linear layers: each is made once, whichever drafts use it.

    Args:
        model: whose layers; it is not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._made: dict[tuple[str, str], RoundedLinear] = {}

    def put(self, draft: nn.Module, paths: Iterable[str], precision: str) -> int:
        """Put copies in the place of all linear layers at and below `paths` of a draft; returns how many.

        Args:
            draft: a copy of the model, made by `model.share`.
            paths: of modules; what is not a linear layer stays as it is.
            precision: int8 or int4.

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
            if (path, precision) not in self._made:
                self._made[path, precision] = round_linear(module, precision)
            draft.set_submodule(path, self._made[path, precision])
        return len(found)


def rounded(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [O, I], scales [O] in float32): their product is the weight to within half a scale."""
    weight_OI = weight_OI.float()
    scales_O = weight_OI.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * STEPS) / STEPS
    return (weight_OI / scales_O.unsqueeze(1)).round().to(torch.int8), scales_O


def grouped(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(int4 [O, I] from 0 to 15 in int32, scales [O, G], middles [O, G] in float32), I a multiple of `GROUP`.

    The weight is about (int4 - 8) x scale + middle. A group's steps span its range or a part of it, whichever leaves
    the least squared error: single large weights would else cost the others their precision.
    """
    weight_OGI = weight_OI.float().view(len(weight_OI), -1, GROUP)
    low, high = weight_OGI.amin(-1, keepdim=True), weight_OGI.amax(-1, keepdim=True)
    center = (low + high) / 2

    def on_steps(part: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = ((high - low) * part / 15).clamp_min(torch.finfo(torch.float32).tiny)
        middle = center + scale / 2  # of 16 steps the eighth lies half a step above the center
        return ((weight_OGI - middle) / scale + 8).round().clamp(0, 15), scale, middle

    least, best = torch.full_like(low, torch.inf), torch.ones_like(low)
    for part in KEPT:
        int4, scale, middle = on_steps(part)
        error = ((int4 - 8) * scale + middle - weight_OGI).square().sum(-1, keepdim=True)
        best = torch.where(error < least, part, best)
        least = torch.minimum(least, error)
    int4, scale, middle = on_steps(best)
    return int4.flatten(1).int(), scale.squeeze(-1), middle.squeeze(-1)


def check_kernel(precision: str, device: torch.device) -> None:
    """Refuse what has no kernel.

    Args:
        precision: int8 or int4.
        device: where the weights lie.

    Raises:
        InputError: if weights there have none.
    """
    asked = f"precision={precision} was asked for"
    if device.type == "cuda":
        from selfspec.skipping.rounding_cuda import check_cuda  # whose layers are RoundedLinears

        return check_cuda(precision)
    if device.type != "cpu":
        raise InputError(f"{asked} weights on {device}, but its kernels run on a CPU and on CUDA; use same")
    if precision == "int8":
        has_one = torch.backends.quantized.engine != "none" and hasattr(torch.ops.quantized, "linear_dynamic")
    else:
        has_one = hasattr(torch, "_weight_int4pack_mm_for_cpu")
    if not has_one:
        raise InputError(f"{asked}, but this build of torch has no {precision} kernel; use same")
