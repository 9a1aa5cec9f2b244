"""A bridge adds what its formula says, where its sublayer would have added, and nothing is changed by binding it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.models.packing import PackedLinear, pack, packs
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan, Sublayer
from selfspec.skipping.skip_set import SkipSet
from tests.contracts.architecture import LONG, without
from tests.toys import every_family, toy

WIDTH, RANK = 32, 3


def random_bridge(kind: str, dtype: torch.dtype = torch.float64) -> Bridge:
    rng = torch.Generator().manual_seed(0)
    shapes = {"mean": [], "linear": [(WIDTH, WIDTH)], "lowrank": [(RANK, WIDTH), (WIDTH, RANK)]}[kind]
    matrices = tuple(torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes)
    return Bridge(torch.randn(WIDTH, generator=rng, dtype=torch.float64).to(dtype), matrices)


def as_formula(bridge: Bridge, x_ND: Tensor) -> Tensor:
    for matrix in bridge.matrices:
        x_ND = x_ND @ matrix.T
    return x_ND + bridge.bias if bridge.matrices else torch.zeros_like(x_ND) + bridge.bias


class Replaced(nn.Module):
    """The oracle: a module of its own in the place of a layer's, which computes the formula."""

    def __init__(self, bridge: Bridge, structure: str, *, adds: bool) -> None:
        super().__init__()
        self.bridge, self.structure, self.adds = bridge, structure, adds

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, None]:
        y = as_formula(self.bridge, args[0] if args else kwargs["hidden_states"])
        if self.adds:  # the residual, itself
            y = y + args[1]
        return y if self.structure == "tensor" else (y, None)


def logits_of(decoder: Decoder, draft: SkipSet | DraftPlan) -> Tensor:
    cache = decoder.new_cache(n_rows=1, capacity=len(LONG))
    return decoder.bind(draft)(torch.tensor([LONG]), starts=[0], cache=cache)


@pytest.mark.parametrize("kind", ["mean", "linear", "lowrank"])
@pytest.mark.parametrize("family", every_family(also=("opt", "bloom", "gpt-oss")))  # sums of their own
@torch.inference_mode()
def test_a_bridge_equals_a_module_of_its_formula_in_every_family(family: str, kind: str) -> None:
    model = toy(family)
    decoder, bridge = Decoder(model), random_bridge(kind)
    places: list[Sublayer] = [("attn", 1), ("mlp", 1)]
    for at in places:
        patches = decoder.sublayers.attn if at[0] == "attn" else decoder.sublayers.mlp
        plan = DraftPlan(SkipSet.parse(f"{at[0][0]}1", 3), {at: bridge}, kind=kind)
        if len(patches) > 1:
            with pytest.raises(InputError, match=r"several \(fc1, fc2\)"):
                decoder.bind(plan)
            continue
        oracle = copy.deepcopy(model)
        layer = oracle.get_submodule(f"{decoder.sublayers.path}.1")
        structure = "tuple" if at[0] == "attn" or family == "gpt-oss" else "tensor"
        setattr(layer, patches[0].name, Replaced(bridge, structure, adds=family == "bloom"))
        # The same products in the same order but for one addition of zeros: rounding of float64 and no more.
        expected_BTV = oracle(torch.tensor([LONG])).logits
        assert (logits_of(decoder, plan) - expected_BTV).abs().max() < 1e-9, f"plan={plan}"


@torch.inference_mode()
def test_a_bridge_of_zeros_is_no_bridge() -> None:
    decoder, skip = Decoder(toy("llama")), SkipSet.parse("a1 m1", 3)
    zeros = Bridge(torch.zeros(WIDTH), (torch.zeros(WIDTH, WIDTH),))
    plan = DraftPlan(skip, {("attn", 1): zeros, ("mlp", 1): zeros}, kind="linear")
    assert torch.equal(logits_of(decoder, plan), without(toy("llama"), skip)(torch.tensor([LONG])).logits)


@torch.inference_mode()
def test_model_and_other_drafts_are_unchanged_by_binding() -> None:
    model = toy("llama")
    decoder, skip = Decoder(model), SkipSet.parse("a1 m1", 3)
    plain = decoder.bind(skip)
    before_BTV, skipped_BTV = model(torch.tensor([LONG])).logits, logits_of(decoder, skip)
    held = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    logits_of(decoder, DraftPlan(skip, {("attn", 1): random_bridge("linear")}, kind="linear"))
    assert torch.equal(model(torch.tensor([LONG])).logits, before_BTV)
    cache = decoder.new_cache(n_rows=1, capacity=len(LONG))
    assert torch.equal(plain(torch.tensor([LONG]), starts=[0], cache=cache), skipped_BTV)
    assert all(t.data_ptr() == held[n][0] and torch.equal(t, held[n][1]) for n, t in model.state_dict().items())


@pytest.mark.skipif(not packs(torch.bfloat16), reason="oneDNN has no bfloat16 kernel for this CPU")
@pytest.mark.parametrize("kind", ["mean", "linear", "lowrank"])
@torch.inference_mode()
def test_bridges_are_packed_where_the_model_is_and_give_the_same(kind: str) -> None:
    dense, packed = toy("llama", "sdpa").bfloat16(), toy("llama", "sdpa").bfloat16()
    pack(packed)
    plan = DraftPlan(SkipSet.parse("a1", 3), {("attn", 1): random_bridge(kind, torch.bfloat16)}, kind=kind)
    assert torch.equal(logits_of(Decoder(dense), plan), logits_of(Decoder(packed), plan))


@pytest.mark.skipif(not packs(torch.float32), reason="this torch has no oneDNN")
def test_a_bridge_in_a_dense_model_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(PackedLinear, "__init__", lambda self, linear: made.append(linear))
    Decoder(toy("llama").float()).bind(
        DraftPlan(SkipSet.parse("a1", 3), {("attn", 1): random_bridge("linear", torch.float32)}, kind="linear")
    )
    assert not made


@pytest.mark.parametrize(
    "tensors",
    [
        [(4,), (4, 3)],
        [(4,), (3, 4)],
        [(4,), (2, 4), (4, 3)],
        [(4,), (4, 4), (4, 4), (4, 4)],
        [(4, 4)],
    ],
)
def test_shapes_that_do_not_fit_are_refused(tensors: list[tuple[int, ...]]) -> None:
    bias, *matrices = (torch.zeros(shape) for shape in tensors)
    with pytest.raises(InputError, match="do not fit"):
        Bridge(bias, tuple(matrices))


def test_a_bridge_of_another_width_is_refused() -> None:
    plan = DraftPlan(SkipSet.parse("a1", 3), {("attn", 1): Bridge(torch.zeros(8))}, kind="mean")
    with pytest.raises(InputError, match="a1 is for a hidden size of 8, but this model's is 32"):
        Decoder(toy("llama")).bind(plan)


def test_a_digest_tells_values_shapes_and_dtypes_apart() -> None:
    dtypes = (torch.float64, torch.bfloat16)
    bridges = [random_bridge(kind, dtype) for kind in ("mean", "linear", "lowrank") for dtype in dtypes]
    assert len({b.digest() for b in bridges}) == 6
    assert random_bridge("linear").digest() == random_bridge("linear").digest()
    assert [b.kind for b in bridges[::2]] == ["mean", "linear", "lowrank"]
