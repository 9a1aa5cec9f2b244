"""Weights of a draft in int8 or int4 on CUDA, with kernels of torch itself; see `rounding`.

Int8 has 255 steps around zero for each output channel. `_weight_int8pack_mm` leaves the input unchanged. If torch lacks
it on CUDA, `_int_mm` multiplies integers, and each input row is rounded to 255 steps as well. Int4 has 16 steps for
every `GROUP` inputs of a channel, and the input is bfloat16.
"""

# O output features, I input features, G groups of inputs, R rows of inputs

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from selfspec.errors import InputError
from selfspec.skipping.rounding import GROUP, RoundedLinear, grouped, rounded

_FEWEST_ROWS = 32  # `_int_mm` needs more than 16 rows
_EVEN = 8  # `_int_mm` needs a multiple of this number of inputs and outputs
_TILE = 32  # the int4 kernel needs a multiple of this number of inputs (two inner tiles of 16)
_OUTPUTS = 8  # the int4 kernel needs a multiple of this number of outputs


class Int8OnCuda(RoundedLinear):
    """A linear layer with 255 steps for each output channel."""

    precision = "int8"

    def _hold(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._more_inputs, more_outputs = -self.in_features % _EVEN, -self.out_features % _EVEN
        int8_OI, scales_O = rounded(pad(weight_OI, (0, self._more_inputs, 0, more_outputs)))
        self._bias = bias_O
        self._leaves_input = leaves_input(weight_OI.device)
        self._weight = int8_OI.contiguous()
        self._scales_O = scales_O.to(torch.bfloat16) if self._leaves_input else scales_O

    @property
    def n_bytes(self) -> int:
        """Bytes of the weight and its scales."""
        return self._weight.numel() + self._scales_O.numel() * self._scales_O.element_size()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        x_RI = pad(x.reshape(-1, self.in_features), (0, self._more_inputs)).contiguous()
        if self._leaves_input:
            product = torch._weight_int8pack_mm(x_RI.to(torch.bfloat16), self._weight, self._scales_O)
        else:
            product = _whole_numbers(x_RI, self._weight, self._scales_O)
        product = product[:, : self.out_features].to(x.dtype)
        if self._bias is not None:
            product = product + self._bias
        return product.reshape(*x.shape[:-1], self.out_features)


class Int4OnCuda(RoundedLinear):
    """A linear layer with 16 steps for every `GROUP` inputs of a channel."""

    precision = "int4"

    def _hold(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._more_inputs, more_outputs = -self.in_features % _TILE, -self.out_features % _OUTPUTS
        int4_OI, scales_OG, middles_OG = grouped(pad(weight_OI, (0, self._more_inputs, 0, more_outputs)))
        # Two inputs in a byte, the first in the upper half.
        nibbles = int4_OI.to(torch.uint8)
        pairs = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).contiguous()
        self._packed = torch._convert_weight_to_int4pack(pairs, _TILE // 16)
        self._steps_GO2 = torch.stack([scales_OG.T, middles_OG.T], -1).to(torch.bfloat16).contiguous()
        self._bias = bias_O

    @property
    def n_bytes(self) -> int:
        """Bytes of the weight, its scales and its middles."""
        packed = self._packed
        return packed.numel() * packed.element_size() + self._steps_GO2.numel() * 2

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] to [..., O]."""
        x_RI = pad(x.reshape(-1, self.in_features), (0, self._more_inputs)).to(torch.bfloat16).contiguous()
        product = torch._weight_int4pack_mm(x_RI, self._packed, GROUP, self._steps_GO2)
        product = product[:, : self.out_features].to(x.dtype)
        if self._bias is not None:
            product = product + self._bias
        return product.reshape(*x.shape[:-1], self.out_features)


ON_CUDA: dict[str, type[RoundedLinear]] = {layer.precision: layer for layer in (Int8OnCuda, Int4OnCuda)}


def leaves_input(device: torch.device) -> bool:
    """Whether torch multiplies int8 weights by bfloat16 inputs on this device."""
    x = torch.zeros(1, 32, dtype=torch.bfloat16, device=device)
    weight = torch.zeros(32, 32, dtype=torch.int8, device=device)
    try:
        torch._weight_int8pack_mm(x, weight, torch.zeros(32, dtype=torch.bfloat16, device=device))
    except (RuntimeError, NotImplementedError):
        return False
    return True


def check_cuda(precision: str) -> None:
    """Check that this build of torch has a kernel for the precision.

    Raises:
        InputError: if it has none.
    """
    names = {"int8": ("_int_mm",), "int4": ("_weight_int4pack_mm", "_convert_weight_to_int4pack")}[precision]
    if not all(hasattr(torch, name) for name in names):
        raise InputError(f"precision={precision} was asked for on CUDA, but this torch has no kernel; use same")


def _whole_numbers(x_RI: Tensor, int8_OI: Tensor, scales_O: Tensor) -> Tensor:
    """The product [R, O] in float32, with each input row rounded to 255 steps."""
    n_rows = x_RI.shape[0]
    x_RI = pad(x_RI.float(), (0, 0, 0, max(0, _FEWEST_ROWS - n_rows)))
    x_int8_RI, x_scales_R = rounded(torch.nan_to_num(x_RI))
    product = torch._int_mm(x_int8_RI, int8_OI.t()).float()
    return (product * x_scales_R.unsqueeze(1) * scales_O)[:n_rows]
