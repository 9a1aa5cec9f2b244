"""The int8 layer for CUDA, by the same kernels on the CPU; int4's has none there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfspec.skipping import rounding_cuda
from selfspec.skipping.rounding import round_linear


@pytest.mark.parametrize("leaves_input", [True, False])
@pytest.mark.parametrize("shape", [(64, 96), (60, 90)])
def test_int8_products_are_near_the_layers_own(
    leaves_input: bool, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding_cuda, "leaves_input", lambda device: leaves_input)
    torch.manual_seed(0)
    linear = nn.Linear(*shape).to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(2, 3, shape[0], dtype=torch.bfloat16)
    got, exact = rounding_cuda.Int8OnCuda(linear)(x).double(), linear.double()(x.double())
    assert got.shape == exact.shape
    assert float((got - exact).norm() / exact.norm()) < 0.02  # 255 steps of weights, and of inputs or bfloat16's 8 bits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounded_layers_on_cuda_are_near_the_layers_own(precision: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(576, 1536, device="cuda").to(torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, 3, 576, dtype=torch.bfloat16, device="cuda")
    got = round_linear(linear, precision)(x).double()
    exact = linear.double()(x.double())
    assert float((got - exact).norm() / exact.norm()) < (0.02 if precision == "int8" else 0.15)
