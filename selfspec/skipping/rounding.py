"""Weights of a draft in int8 or int4: a half or a quarter of the bytes of bfloat16 for each drafted token.

Int8 rounds each output channel to 255 even steps around zero. Its kernel also rounds the input of every call to 256
steps, which makes it fast and cost no acceptance in measurements. Int4 rounds every 32 inputs of a channel to 16 steps
of their own and leaves the input unchanged. The target keeps its weights, so the output stays the same. The rounded
copies need memory in addition to the model.

The model may have any dtype. These kernels run on a CPU; `rounding_cuda` has those for CUDA.
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

STEPS = 127  # steps of int8 between zero and the largest weight of a channel, in each direction
GROUP = 32  # inputs with common int4 steps; the smallest group of the kernel
BLOCK = 16  # the int4 kernel needs a multiple of this number of outputs
KEPT = (1.0, 0.9, 0.8, 0.7)  # fractions of a group's range that the int4 steps may span; chosen, not tuned


class RoundedLinear(nn.Module, ABC):
    """Replaces a linear layer in a draft; it neither changes nor holds the layer itself.

    Args:
        linear: a dense or packed layer.

    Attributes:
        precision: precision of the rounded weights.

    Raises:
        InputError: if the layer's device has no kernel.
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
        """Round the weight and store it in the layout of the kernel."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Bytes of the weight and its steps, without the bias."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""

    def extra_repr(self) -> str:
        """Sizes and precision, for `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.precision}"


class Int8Linear(RoundedLinear):
    """A linear layer with 255 steps for each output channel."""

    precision = "int8"

    def _hold(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        int8_OI, scales_O = rounded(weight_OI)
        with warnings.catch_warnings():
            # The packing function takes only this deprecated tensor type.
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
        """Bytes of the weight and its scales."""
        return self.out_features * (self.in_features + 4)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        # A bad draft may overflow, and the kernel refuses nan.
        finite = torch.nan_to_num(x.float())
        product: Tensor = torch.ops.quantized.linear_dynamic(finite, self._packed, self._reduce_range)
        return product.to(x.dtype)


class Int4Linear(RoundedLinear):
    """A linear layer with 16 steps for every `GROUP` inputs of a channel."""

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
        """Bytes of the weight, its scales and its middles."""
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
    """The rounded copy of a layer, for the kernel of its device.

    Raises:
        InputError: if that device has no kernel.
    """
    if linear.weight.device.type != "cuda":
        return ROUNDED[precision](linear)
    from selfspec.skipping.rounding_cuda import ON_CUDA  # imports this module

    return ON_CUDA[precision](linear)


class RoundedCopies:
    """Rounded copies of a model's linear layers; each is made once and shared by all drafts.

    Args:
        model: the model; it is not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._made: dict[tuple[str, str], RoundedLinear] = {}

    def put(self, draft: nn.Module, paths: Iterable[str], precision: str) -> int:
        """Replace all linear layers at and below `paths` of a draft by rounded copies; returns their number.

        Args:
            draft: a copy of the model, made by `models.decoder.share`.
            paths: paths of modules; other layers stay the same.
            precision: int8 or int4.

        Raises:
            InputError: if a layer's device has no kernel.
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
    """(int8 [O, I], scales [O] in float32); their product differs from the weight by at most half a scale."""
    weight_OI = weight_OI.float()
    scales_O = weight_OI.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * STEPS) / STEPS
    return (weight_OI / scales_O.unsqueeze(1)).round().to(torch.int8), scales_O


def grouped(weight_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(int4 [O, I] from 0 to 15 in int32, scales [O, G], middles [O, G] in float32), I a multiple of `GROUP`.

    The weight is about (int4 - 8) x scale + middle. The steps of a group span its range or a fraction of it, whichever
    has the least squared error: otherwise a single large weight would reduce the precision of the others.
    """
    weight_OGI = weight_OI.float().view(len(weight_OI), -1, GROUP)
    low, high = weight_OGI.amin(-1, keepdim=True), weight_OGI.amax(-1, keepdim=True)
    center = (low + high) / 2

    def on_steps(part: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = ((high - low) * part / 15).clamp_min(torch.finfo(torch.float32).tiny)
        middle = center + scale / 2  # step 8 of 0..15 lies half a step above the center
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
    """Check that a device has a kernel for a precision.

    Args:
        precision: int8 or int4.
        device: device of the weights.

    Raises:
        InputError: if it has none.
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
