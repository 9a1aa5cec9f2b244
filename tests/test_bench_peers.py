"""The bench of peers: each way decodes the same tokens on a toy, and one that cannot run is a line of the table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from tests import toys

N_TOKENS = 6


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_peers", Path(__file__).parents[1] / "scripts/bench_peers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toys.toy("llama"))


def test_every_way_gives_generates_tokens(bench: ModuleType, decoder: Decoder) -> None:
    ways = bench.peers(decoder, skip=SkipSet.parse("a1 m1", 3), n_exit=2, n_tokens=N_TOKENS)
    table = bench.bench(decoder, ways, [[1, 2, 3], [9, 8, 7, 6, 9, 8]], repeats=1)
    lines = table.splitlines()[2:]
    assert len(lines) == len(ways) == 8
    assert [line for line in lines if "2/2 identical" not in line] == [], table


def test_an_assistant_is_the_engines_draft_of_the_same_layers(bench: ModuleType, decoder: Decoder) -> None:
    skip = SkipSet.parse("a0 m0", 3)
    assistant = bench.shorter(decoder, skip)
    ids_BT = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        cache = decoder.new_cache(n_rows=1, capacity=5)
        expected_BTV = decoder.bind(skip)(ids_BT, starts=[0], cache=cache)
        torch.testing.assert_close(assistant(ids_BT).logits, expected_BTV, rtol=0, atol=0)
    assert {p.data_ptr() for p in assistant.parameters()} <= {p.data_ptr() for p in decoder.model.parameters()}
    assert [layer.self_attn.layer_idx for layer in decoder.model.model.layers] == [0, 1, 2]  # type: ignore[union-attr]
    assert decoder.config.num_hidden_layers == 3


def test_an_assistant_cannot_lack_half_a_layer(bench: ModuleType, decoder: Decoder) -> None:
    with pytest.raises(ValueError, match="whole layers"):
        bench.shorter(decoder, SkipSet.parse("a1", 3))


def test_a_way_that_cannot_run_is_a_line_with_its_reason(bench: ModuleType, decoder: Decoder) -> None:
    def broken(ids: list[int]) -> list[int]:
        raise TypeError("not on\nthis model")

    table = bench.bench(decoder, {"good": lambda ids: [1, 2], "broken": broken}, [[1, 2]], repeats=1)
    assert "| broken | cannot run |  |  | TypeError: not on this model |" in table.splitlines()
