"""Draft heads: unrolled training equals drafting slot by slot, and the drafter keeps what every drafter promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.protocols import Drafter
from selfspec.heads.layer import LayerSize
from selfspec.heads.modules import DraftModule, build_module, size_of
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Threshold
from tests.contracts.drafter import DrafterContract
from tests.test_engine import decoder_of

SIZE = LayerSize(hidden=16, mlp=24, n_heads=4, n_kv_heads=2, head_size=8)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle": ("eagle", {}),
    "eagle3": ("eagle", {"layers": [0, 1, 2], "fusion": "attention", "input_norm": True, "output_norm": True}),
    "recursive": ("eagle", {"input_norm": True, "output_norm": True}),
    "fspad": ("eagle", {"fusion": "gated", "two_readouts": True}),
    "blockwise": ("blockwise", {"k": 4}),
    "medusa": ("blockwise", {"k": 4, "form": "medusa"}),
    "parallel": ("mtp", {"k": 4, "form": "parallel"}),
    "chain": ("mtp", {"k": 4, "form": "chain"}),
}


def noisy(module: DraftModule, seed: int = 0) -> DraftModule:
    """The module in float64 with noise in place of its weights, so that no zero hides a mistake."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.double().parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=rng, dtype=weight.dtype))
    return module.eval()


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_unrolled_depths_equal_drafts_from_each_slot(name: str) -> None:
    kind, settings = HEADS[name]
    module = noisy(build_module(kind, SIZE, settings))
    rng = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    n, n_depths = 9, 4
    features, embeds = [random(1, n, 16) for _ in module.layers], random(1, n, 16)
    unrolled = module.unroll(features, embeds, n_depths)
    assert len(unrolled) == n_depths
    state, done = module.begin(), 0
    for end in (1, 3, 4, 6):  # accepted slots come in pieces; between them drafts are made and thrown away
        got = [module.extend(state, [f[:, done:end] for f in features], embeds[:, done:end])]
        got += [module.step(state, embeds[:, end - 1 + depth], depth) for depth in range(1, min(n_depths, n - end + 1))]
        for depth, hidden in enumerate(got):
            torch.testing.assert_close(hidden, unrolled[depth].to_head[:, end - 1 + depth], msg=f"{end} {depth}")
        done = end


def trained(decoder: Decoder, name: str) -> DraftPlan:
    """The plan of a head of random weights."""
    kind, settings = HEADS[name]
    module = noisy(build_module(kind, size_of(decoder), settings))
    everything = SkipSet.from_bits([True] * (2 * decoder.n_layers))
    return DraftPlan(everything, trained=module.value())


def copying(decoder: Decoder, name: str = "eagle") -> DraftPlan:
    """The plan of a head whose last layer adds next to nothing, so that it is right where the target repeats itself."""
    kind, settings = HEADS[name]
    module = noisy(build_module(kind, size_of(decoder), settings))
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(0.1)
        if kind == "eagle":
            module.get_parameter("fc.weight").copy_(torch.eye(32, 64))  # the embedding of the newest token
    return DraftPlan(SkipSet.from_bits([True] * (2 * decoder.n_layers)), trained=module.value())


class HeadContract(DrafterContract):
    """The contract, with a head of random weights, which is almost never right; `test_training` trains one."""

    head: str
    is_sometimes_right = False

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        spec = DraftSpec(trained(decoder, self.head), self.rule(), sample_draft=sample)
        return build_drafter(spec, decoder)


class TestEagle(HeadContract):
    head = "eagle"


class TestEagle3(HeadContract):
    head, structures = "eagle3", ("llama",)


class TestChain(HeadContract):
    head, structures = "chain", ("llama",)


class TestBlockwise(HeadContract):
    head, structures = "blockwise", ("llama",)


def test_a_plan_with_a_head_survives_its_files(tmp_path: Any) -> None:
    from selfspec.drafters.spec_files import load_spec, save_spec

    decoder = decoder_of()
    spec = DraftSpec(replace(trained(decoder, "eagle3"), head=torch.tensor([1, 4, 9])), Threshold(3, threshold=0.2))
    facts: Mapping[str, Any] = {"weights": {"revision": None, "sha256": "0"}}
    save_spec(tmp_path, spec, model="toy", decoder=decoder, facts=facts)
    assert load_spec(tmp_path, decoder, facts) == spec
