"""What do int8 and int4 drafts give? Layers against exact products and beside their own dtype, then whole drafts."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch

from gpu.check import Check
from gpu.models import decoders, prompts_of, skip_sets, small_model, spec
from selfspec.skipping import rounding
from selfspec.skipping.plan import DraftPlan, Precision

PRECISIONS: tuple[Precision, ...] = ("same", "int8", "int4")


def precisions(check: Check) -> None:
    """In bfloat16 on a GPU, in float32 on a CPU."""
    dtype = torch.float32 if check.device.type == "cpu" else torch.bfloat16
    shapes = [(64, 96)] if check.is_toy else [(576, 1536), (2048, 8192), (4096, 14336)]
    for precision in PRECISIONS[1:]:
        for n_in, n_out in shapes:
            name = f"{precision}, {n_in} to {n_out}"
            try:
                found = layer_times(check.device, dtype, precision, n_in, n_out)
                text = f"error {found['relative_error']:.4f}, {found['rounded_s'] * 1e6:.1f} us "
                check.keep("precisions", name, found, f"{text}({found['plain_s'] * 1e6:.1f} in {dtype})")
            except RuntimeError as error:
                check.keep("precisions", name, traceback.format_exc(), f"cannot run: {str(error)[:140]}")
    decoder, graphed = decoders(small_model(check, dtype))
    prompts, n_new = prompts_of(check, decoder, 2), 8 if check.is_toy else 64
    skip = list(skip_sets(decoder.n_layers).values())[1]
    for precision in PRECISIONS:
        try:
            drafter = graphed.drafter(DraftPlan(skip, precision=precision), needs_confidence=False)
            spec(graphed, drafter, prompts[:1], n_new)
            results = [spec(graphed, drafter, [p], n_new)[0] for p in prompts]
            rate = sum(len(r.tokens) - 1 for r in results) / sum(r.total_s - r.prefill_s for r in results)
            accepted = sum(r.accepted for r in results) / max(1, sum(r.drafted for r in results))
            check.keep("precisions", f"draft, {precision}", [rate, accepted], f"{rate:.1f} tokens/s, {accepted:.2f}")
        except (RuntimeError, ValueError) as error:
            check.keep("precisions", f"draft, {precision}", traceback.format_exc(), f"cannot run: {str(error)[:140]}")


def layer_times(
    device: torch.device, dtype: torch.dtype, precision: Precision, n_in: int, n_out: int
) -> dict[str, float]:
    """Relative error of one rounded layer for one token, and the seconds of both."""
    linear = torch.nn.Linear(n_in, n_out, bias=False, device=device, dtype=dtype).requires_grad_(False)
    x = torch.randn(1, 1, n_in, device=device, dtype=dtype)
    layer = rounding.round_linear(linear, precision)
    got, exact = layer(x).double().flatten(), linear.weight.double() @ x.double().flatten()
    return {
        "relative_error": float((got - exact).norm() / exact.norm()),
        "plain_s": device.median_seconds(replayed(lambda: linear(x), device), device, 20),
        "rounded_s": device.median_seconds(replayed(lambda: layer(x), device), device, 20),
    }


def replayed(call: Callable[[], Any], device: torch.device) -> Callable[[], object]:
    """The replay of a graph of the call, or the call itself on a CPU."""
    if device.type != "cuda":
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        call()
    return graph.replay
