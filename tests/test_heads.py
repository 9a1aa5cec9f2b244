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
from selfspec.drafters.tree_shapes import BestFirst, ExpandRerank, TreeShape, comb
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import Drafter
from selfspec.heads.layer import LayerSize
from selfspec.heads.modules import DraftModule, build_module, size_of
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed, Threshold
from tests.contracts.drafter import DrafterContract
from tests.test_engine import decoder_of

SIZE = LayerSize(hidden=16, mlp=24, n_heads=4, n_kv_heads=2, head_size=8)
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle": ("eagle", {}),
    "eagle3": ("eagle", {"layers": [0, 1, 2], "fusion": "attention", "input_norm": True, "output_norm": True}),
    "eagle3.1": (
        "eagle",
        {
            **{"layers": [0, 1, 2], "fusion": "attention", "input_norm": True, "output_norm": True},
            **{"norm_before_residual": True, "norm_before_join": True, "normed_feature": True},
        },
    ),
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
        got = [module.extend([state], [f[:, done:end] for f in features], embeds[:, done:end], [end - done])]
        for depth in range(1, min(n_depths, n - end + 1)):
            got.append(module.step([state], [[depth - 2]], embeds[:, end - 1 + depth], depth))
        for depth, hidden in enumerate(got):
            torch.testing.assert_close(hidden, unrolled[depth].to_head[:, end - 1 + depth], msg=f"{end} {depth}")
        done = end


LEVELS = (((-1, -1), (-1, -1, -1)), ((1, 0), (0, 2, 2)), ((3,), (3, 5, 4)))  # parents of each level, of two rows


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_branches_of_a_ragged_batch_equal_the_chain_of_each(name: str) -> None:
    kind, settings = HEADS[name]
    module = noisy(build_module(kind, SIZE, settings))
    rng = torch.Generator().manual_seed(2)
    ends = [(4, 5), (2, 8)]  # slots of each row after two verifications
    texts = [[torch.randn(1, 8, 16, generator=rng, dtype=torch.float64) for _ in (*module.layers, 0)] for _ in ends]
    drafted = [[torch.randn(1, 16, generator=rng, dtype=torch.float64) for _ in range(9)] for _ in ends]
    states, first = [module.begin() for _ in ends], [0, 0]
    for part in range(2):
        lengths = [end[part] - at for end, at in zip(ends, first, strict=True)]
        pieces = [[x[:, at : end[part]] for x in text] for text, end, at in zip(texts, ends, first, strict=True)]
        *features, embeds = (torch.cat(each, 1) for each in zip(*pieces, strict=True))
        together = [module.extend(states, features, embeds, lengths).split(1)]
        first, nodes, starts = [end[part] for end in ends], [[], []], [[0, 0]]
        for depth, parents in enumerate(LEVELS, 1):
            new = [range(len(row), len(row) + len(above)) for row, above in zip(nodes, parents, strict=True)]
            read = torch.cat([drafted[b][i] for b, at in enumerate(new) for i in at])
            together.append(module.step(states, parents, read, depth).split([len(at) for at in new]))
            starts.append([len(row) for row in nodes])
            nodes = [[*row, *above] for row, above in zip(nodes, parents, strict=True)]
    for b, text in enumerate(texts):
        for leaf in range(len(nodes[b])):
            path = []
            while leaf != -1:
                path, leaf = [leaf, *path], nodes[b][leaf]
            state = module.begin()
            *features, embeds = (x[:, : ends[b][1]] for x in text)
            alone = [module.extend([state], features, embeds, [ends[b][1]])]
            alone += [module.step([state], [[d - 1]], drafted[b][i], d + 1) for d, i in enumerate(path)]
            depth = len(path)
            torch.testing.assert_close(together[0][b], alone[0])
            torch.testing.assert_close(together[depth][b][path[-1] - starts[depth][b]], alone[-1][0], msg=f"{b} {path}")


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


class TreeContract(HeadContract):
    """Trees of a head; siblings are drawn where the shape is fixed."""

    structures, shape = ("llama",), TreeShape

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        spec = DraftSpec(trained(decoder, self.head), self.rule(), tree=self.shape, sample_draft=sample)
        return build_drafter(spec, decoder)


class TestEagleRerank(TreeContract):
    head, shape = "eagle", ExpandRerank(width=3, max_depth=3, max_nodes=8)


class TestEagleDrawn(TreeContract):
    head, shape = "eagle3", comb((3, 2, 1))


class TestChainBestFirst(TreeContract):
    head, shape = "chain", BestFirst(6, 6, 3, draft_cost=0.01, verify_cost=0.01)


class TestBlindTree(TreeContract):
    head, shape = "medusa", ExpandRerank(width=2, max_depth=6, max_nodes=9)


def test_a_plan_with_a_head_survives_its_files(tmp_path: Any) -> None:
    from selfspec.drafters.spec_files import load_spec, save_spec

    decoder = decoder_of()
    spec = DraftSpec(replace(trained(decoder, "eagle3"), head=torch.tensor([1, 4, 9])), Threshold(3, threshold=0.2))
    facts: Mapping[str, Any] = {"weights": {"revision": None, "sha256": "0"}}
    save_spec(tmp_path, spec, model="toy", decoder=decoder, facts=facts)
    assert load_spec(tmp_path, decoder, facts) == spec


@torch.inference_mode()
def test_the_prompt_is_read_before_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seconds are those of the prefill; the first draft reads the slot of the first new token alone."""
    decoder = decoder_of("llama")
    drafter = build_drafter(DraftSpec(trained(decoder, "eagle"), Fixed(2)), decoder)
    lengths: list[list[int]] = []
    kind = type(drafter.module)  # type: ignore[attr-defined]
    extend = kind.extend
    monkeypatch.setattr(kind, "extend", lambda self, s, f, e, n: (lengths.append(list(n)), extend(self, s, f, e, n))[1])
    prompts = [[5, 6, 7, 8], [9]]
    speculate(decoder, prompts, drafter=drafter, stops=[Fixed(2).begin() for _ in prompts], ending=Ending(4))
    assert lengths[:2] == [[3], [1, 1]]
