"""Rounded drafts: weights within their rounding, copied once, costed, and never seen in the output."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from search.costs.measure import measure_drafts
from search.costs.table import CostTable
from search.draft_of_point import Drafts
from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import autoregress, speculate
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.models.packing import PackedLinear, packs
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan, Precision
from selfspec.skipping.plan_files import load_plan, save_plan
from selfspec.skipping.rounding import (
    GROUP,
    KEPT,
    ROUNDED,
    STEPS,
    Int4Linear,
    Int8Linear,
    RoundedLinear,
    check_kernel,
    grouped,
    rounded,
)
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.commands import command
from tests.contracts.architecture import ENDING, LONG, RULES, SHORT, random_sets
from tests.toys import FAMILIES, VOCAB, every_family, toy

WIDTH, N_LAYERS = 32, 3
WITHOUT_LINEAR_LAYERS = ("gpt2", "falcon-alibi", "falcon-grouped", "falcon-multi-query", "falcon-sequential")
NOTHING, EVERYTHING = SkipSet(N_LAYERS), SkipSet.from_bits([True] * (2 * N_LAYERS))


@cache
def decoder_of(family: str) -> Decoder:
    return Decoder(toy(family, FAMILIES[family].attentions[-1]))


def copies(decoder: Decoder, plan: DraftPlan) -> set[RoundedLinear]:
    return {m for m in decoder.bind(plan).module.modules() if isinstance(m, RoundedLinear)}


def test_weights_are_within_half_a_step_of_their_own_channel() -> None:
    weight_OI = torch.randn(40, 64) * torch.logspace(-3, 3, 40).unsqueeze(1)
    int8_OI, scales_O = rounded(weight_OI)
    assert torch.equal(scales_O, weight_OI.abs().amax(1) / STEPS)
    off_by = (int8_OI * scales_O.unsqueeze(1) - weight_OI).abs() / scales_O.unsqueeze(1)
    assert off_by.max() <= 0.5 + 1e-4  # float32 divides by the scale and multiplies by it again
    assert int8_OI.abs().max() == STEPS


def test_weights_are_within_half_a_step_of_their_group_or_beyond_it() -> None:
    weight_OI = torch.randn(40, 3 * GROUP) * torch.logspace(-3, 3, 40).unsqueeze(1)
    int4_OI, scales_OG, middles_OG = grouped(weight_OI)
    assert int4_OI.shape == weight_OI.shape and scales_OG.shape == middles_OG.shape == (40, 3)
    assert int4_OI.min() == 0 and int4_OI.max() == 15
    weight_OGI, int4_OGI = weight_OI.unflatten(1, (3, GROUP)), int4_OI.unflatten(1, (3, GROUP))
    off_by = (int4_OGI - 8) + (middles_OG.unsqueeze(-1) - weight_OGI) / scales_OG.unsqueeze(-1)
    is_inside = (int4_OGI > 0) & (int4_OGI < 15)
    assert off_by[is_inside].abs().max() <= 0.5 + 1e-4
    ranges_OG = weight_OGI.amax(-1) - weight_OGI.amin(-1)
    assert ((scales_OG * 15 / ranges_OG).unsqueeze(-1) - torch.tensor(KEPT)).abs().amin(-1).max() < 1e-4


def test_one_large_weight_does_not_cost_the_others_their_precision() -> None:
    """The steps of its group span less than the range: the large one is cut where that loses least."""
    weight_OI = torch.randn(400, GROUP)
    int4_OI, scales_OG, middles_OG = grouped(weight_OI)
    found = ((int4_OI - 8) * scales_OG + middles_OG - weight_OI).square().mean()
    step_O1 = (weight_OI.amax(1, keepdim=True) - weight_OI.amin(1, keepdim=True)) / 15
    whole = (weight_OI / step_O1).round() * step_O1 - weight_OI
    assert found < 0.97 * whole.square().mean()


@pytest.mark.parametrize("layer", ROUNDED.values(), ids=list(ROUNDED))
def test_a_channel_of_zeros_stays_one(layer: type[RoundedLinear]) -> None:
    linear = nn.Linear(8, 3)
    linear.weight.data[1], linear.bias.data[1] = 0.0, 0.25
    assert layer(linear)(torch.randn(5, 8))[:, 1].tolist() == [0.25] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(96, 160), (2 * GROUP, 16), (50, 7)])
def test_int4_products_are_those_of_its_own_weights(
    n_inputs: int, n_outputs: int, has_bias: bool, dtype: torch.dtype
) -> None:
    linear = nn.Linear(n_inputs, n_outputs, bias=has_bias, dtype=dtype)
    linear.weight.data *= torch.logspace(-2, 2, n_outputs).unsqueeze(1).to(dtype)
    x = torch.randn(3, 2, n_inputs, dtype=dtype)
    with torch.inference_mode():
        layer = Int4Linear(linear)
        int4_OI, *steps = grouped(nn.functional.pad(linear.weight, (0, -n_inputs % GROUP)))
        scales_OI, middles_OI = (s.to(dtype).double().repeat_interleave(GROUP, 1)[:, :n_inputs] for s in steps)
        weight_OI = (int4_OI[:, :n_inputs] - 8) * scales_OI + middles_OI
        exact = nn.functional.linear(x.double(), weight_OI, linear.bias.double() if has_bias else None)
        got = layer(x)
    assert got.dtype == dtype and got.shape == exact.shape
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-5)
    assert ((got.double() - exact).flatten(0, 1).norm(dim=0) <= tolerance * exact.flatten(0, 1).norm(dim=0)).all()
    off = (layer(x).double() - linear.double()(x.double())).flatten(0, 1).norm(dim=0)
    assert (off / exact.flatten(0, 1).norm(dim=0)).median() < 0.12  # 16 steps for some 4 deviations: about 8 %


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_are_those_of_the_layer_to_within_the_rounding(dtype: torch.dtype, has_bias: bool) -> None:
    linear = nn.Linear(96, 160, bias=has_bias, dtype=dtype)
    linear.weight.data *= torch.logspace(-2, 2, 160).unsqueeze(1).to(dtype)  # one scale for all would lose most of them
    x = torch.randn(1, 4, 96, dtype=dtype)
    with torch.inference_mode():
        got, exact = Int8Linear(linear)(x), linear.double()(x.double())
    assert got.dtype == dtype and got.shape == exact.shape
    errors_O = (got - exact).flatten(0, 1).norm(dim=0) / exact.flatten(0, 1).norm(dim=0)
    # Normal inputs of 256 steps over some 6 deviations and weights of 255 steps: each rounds by about 0.7 %.
    assert errors_O.median() < 0.02


def test_what_is_not_a_number_does_not_stop_a_draft() -> None:
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1e300]], dtype=torch.float64)
    for layer in ROUNDED.values():
        assert layer(nn.Linear(4, 2))(x).shape == (1, 2)


@pytest.mark.skipif(not packs(torch.bfloat16), reason="oneDNN has no bfloat16 kernel for this CPU")
def test_a_packed_layer_gives_the_same_copy() -> None:
    linear, x = nn.Linear(96, 160, dtype=torch.bfloat16), torch.randn(2, 96, dtype=torch.bfloat16)
    with torch.inference_mode():
        for layer in ROUNDED.values():
            assert torch.equal(layer(PackedLinear(linear))(x), layer(linear)(x))


@pytest.mark.parametrize("family", every_family(sorted(set(FAMILIES) - set(WITHOUT_LINEAR_LAYERS)), also=("mixtral",)))
@pytest.mark.parametrize("precision", ROUNDED)
def test_lossless_in_every_family(family: str, precision: Precision) -> None:
    decoder = decoder_of(family)
    reference = {len(ids): autoregress(decoder, [ids], ending=ENDING)[0].tokens for ids in (SHORT, LONG)}
    sets = [NOTHING, EVERYTHING, *random_sets(N_LAYERS, 3, seed=family)]
    heads = itertools.cycle([None, torch.arange(0, VOCAB, 6)])
    n_drafted = 0
    for skip, head, rule, ids in zip(sets, heads, itertools.cycle(RULES), itertools.cycle((LONG, SHORT)), strict=False):
        noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(len(skip)))
        bridges = {("attn", i): Bridge(1e4 * noise, (torch.outer(noise, noise),)) for i in skip.attn}
        plan = DraftPlan(skip, bridges, head=head, kind="linear", precision=precision)  # type: ignore[arg-type]
        drafter = ModelDraft(decoder.bind(plan))
        (result,) = speculate(decoder, [ids], drafter=drafter, stops=[rule.begin()], ending=ENDING)
        assert result.tokens == reference[len(ids)], f"plan={plan} rule={rule}"
        n_drafted += result.drafted
    assert n_drafted


@pytest.mark.parametrize(("precision", "worst"), [("int8", 0.2), ("int4", 0.6)])
def test_a_rounded_draft_is_mostly_right_and_not_the_model_itself(precision: Precision, worst: float) -> None:
    decoder, ids_BT = decoder_of("llama"), torch.tensor([LONG])
    logits = [
        forward(ids_BT, starts=[0], cache=decoder.new_cache(n_rows=1, capacity=len(LONG)))
        for forward in (decoder.full, decoder.bind(DraftPlan(NOTHING, precision=precision)))
    ]
    error = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert 0 < error < worst  # six sublayers of some percent each; another model's logits are off by 1.4


@pytest.mark.parametrize("family", WITHOUT_LINEAR_LAYERS)
@pytest.mark.parametrize("precision", ROUNDED)
def test_a_model_without_linear_layers_is_refused(family: str, precision: Precision) -> None:
    with pytest.raises(InputError, match=f"{precision} was asked for.* hold no plain linear layers; use same"):
        decoder_of(family).bind(DraftPlan(SkipSet.parse("a1", N_LAYERS), precision=precision))


@pytest.mark.parametrize("precision", ROUNDED)
def test_a_device_without_a_kernel_is_refused_in_one_line(precision: str) -> None:
    with pytest.raises(
        InputError, match=f"{precision} .* weights on mps, but its kernels run on a CPU and on CUDA; use same"
    ) as refusal:
        check_kernel(precision, torch.device("mps"))
    assert "\n" not in str(refusal.value)


def test_all_plans_share_the_copies_and_the_model_keeps_its_weights() -> None:
    decoder = Decoder(toy("llama"))
    before = {name: (id(m), m.weight.clone()) for name, m in decoder.model.named_modules() if type(m) is nn.Linear}
    one = copies(decoder, DraftPlan(NOTHING, precision="int8"))
    other = copies(decoder, DraftPlan(SkipSet.parse("a1", N_LAYERS), precision="int8"))
    assert len(one) == 7 * N_LAYERS + 1  # the head is one, too
    assert other < one and len(one - other) == 4  # queries, keys, values and output of the skipped attention
    for name, (identity, weight) in before.items():
        module = decoder.model.get_submodule(name)
        assert id(module) == identity and torch.equal(module.weight, weight)  # type: ignore[arg-type]


def test_memory_is_what_the_copies_and_the_rest_take() -> None:
    decoder, skip = decoder_of("llama"), SkipSet.parse("a1 m0,1", N_LAYERS)
    plan = DraftPlan(skip, precision="int8")
    attn = [(32, 32), (16, 32), (16, 32), (32, 32)]
    mlp, head = [(64, 32), (64, 32), (32, 64)], [(VOCAB, 32)]
    kept = 2 * attn + mlp + head
    rounded_bytes = sum(o * (i + 4) for o, i in kept)  # a scale of 4 bytes a channel
    norms = 8 * WIDTH * (2 * N_LAYERS + 1)
    assert decoder.weight_bytes(skip) == 8 * sum(o * i for o, i in kept) + norms
    assert decoder.weight_bytes(plan) == rounded_bytes + norms
    assert decoder.extra_bytes(plan) == rounded_bytes
    assert decoder.extra_bytes(DraftPlan.from_skip_set(skip)) == 0
    # Two float32 a group, which take as much as the weights; two bfloat16 take half as much.
    outputs = [(o + -o % 16, i) for o, i in kept]
    assert decoder.extra_bytes(DraftPlan(skip, precision="int4")) == sum(o * (i // 2 + i // 4) for o, i in outputs)


def test_a_tied_embedding_counts_where_it_is_the_head() -> None:
    decoder = decoder_of("llama-tied")
    halved = DraftPlan(NOTHING, head=torch.arange(VOCAB // 2))
    embedding = 8 * VOCAB * WIDTH
    assert decoder.weight_bytes(NOTHING) - decoder.weight_bytes(halved) == embedding // 2


@pytest.mark.parametrize("head", [None, torch.arange(9)], ids=["whole", "trimmed"])
@pytest.mark.parametrize("precision", ROUNDED)
def test_only_the_word_is_saved_and_the_weights_are_rounded_again(
    precision: Precision, head: torch.Tensor | None, tmp_path: Path
) -> None:
    decoder = decoder_of("llama")
    plan = DraftPlan(SkipSet.parse("a1", N_LAYERS), head=head, precision=precision)
    save_plan(tmp_path, plan, model="a toy", decoder=decoder, facts={})
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text())["precision"] == precision
    assert (tmp_path / "plan.safetensors").exists() == (head is not None)
    # Another attention kernel is off by an ulp of float64, which one of float32 can grow from.
    other = Decoder(toy("llama", FAMILIES["llama"].attentions[-1]))
    assert load_plan(tmp_path, other) == plan != DraftPlan(plan.skip, head=head)
    mine, theirs = (
        d.bind(plan)(torch.tensor([LONG]), starts=[0], cache=d.new_cache(n_rows=1, capacity=len(LONG)))
        for d in (decoder, other)
    )
    assert torch.equal(mine, theirs)


def table(**parts: float) -> CostTable:
    return CostTable((8,), (2.0,), 3.0, 1.0, (16.0,), (16.0, 17.0), **parts)


def test_an_int8_draft_saves_at_each_kept_sublayer_and_at_the_head() -> None:
    costs = table(attn_saved_s=0.5, mlp_saved_s=1.0, head_saved_s=0.25)
    skip = SkipSet.parse("a1 m0,1", N_LAYERS)
    same_s = costs.draft_s(skip, 8)
    assert same_s == 1.0 + 2 * 2.0 + 1 * 3.0
    assert costs.draft_s(DraftPlan(skip, precision="int8"), 8) == same_s - 2 * 0.5 - 1 * 1.0 - 0.25
    assert costs.draft_s(DraftPlan(skip, head=torch.arange(9)), 8) == same_s - 0.25


def test_a_table_from_before_int8_still_reads(tmp_path: Path) -> None:
    body = table().to_dict()
    old = {name: value for name, value in body.items() if name not in ("attn_saved_s", "mlp_saved_s")}
    (tmp_path / "costs.json").write_text(json.dumps({"costs": old}))
    assert CostTable.read(tmp_path / "costs.json") == table()


def test_what_int8_saves_is_measured_for_each_kind_of_sublayer() -> None:
    decoder, ran = Decoder(toy("llama")), [0.0]

    def tick(*_: object) -> None:
        ran[0] += 1.0

    for module in decoder.model.modules():
        if type(module) is nn.Linear:  # each takes a second; the int8 copies take none
            module.register_forward_hook(tick)
    watch = Stopwatch(clock=lambda: ran[0])
    plain_s = 7.0 * N_LAYERS + 1
    costs = CostTable((8,), (4.0,), 3.0, 1.0, (plain_s,), (plain_s, plain_s))
    found = measure_drafts(decoder, costs, has_maps=False, head=None, precision="int8", repeats=2, stopwatch=watch)
    assert (found.attn_saved_s, found.mlp_saved_s, found.head_saved_s) == pytest.approx((4.0, 3.0, 1.0))
    assert found.draft_s(DraftPlan(NOTHING, precision="int8"), 8) == pytest.approx(0.0)


def test_a_search_turns_a_skip_set_into_a_plan_in_int8() -> None:
    skip, head = SkipSet.parse("a1", N_LAYERS), torch.arange(9)
    assert Drafts(Fixed(3), precision="int8")(skip).plan == DraftPlan(skip, precision="int8")
    trimmed = Drafts(Fixed(3), head=9, heads={9: head}, precision="int8")
    assert trimmed(skip).plan == trimmed.outline(skip) == DraftPlan(skip, head=head, precision="int8")


SMALL = (
    *("searcher.n_trials=3", "objective.n_prompts=2", "objective.max_new_tokens=8"),
    *("finals.top=2", "finals.race=1", "finals.n_prompts=2"),
    *("costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=2"),
)


@pytest.mark.parametrize("precision", ROUNDED)
def test_it_is_searched_saved_and_decoded_with(precision: str, empty_folder: Path, toy: list[str]) -> None:
    ran = command("search", "draft=skip", *toy, *SMALL, f"precision={precision}")
    assert ran.status == 0, ran.err
    body = yaml.safe_load((ran.run / "plan.yaml").read_text())
    assert (body["precision"], body["kind"], body["tensors"]) == (precision, "skip", None)
    costs = CostTable.read(ran.run / "costs.json")
    assert costs.mlp_saved_s != 0.0
    decoded = command("decode", *toy, "prompt=why?", "max_new_tokens=8", f"skip={ran.run}")
    assert decoded.status == 0, decoded.err


def test_an_unknown_precision_is_refused_in_one_line(empty_folder: Path, toy: list[str]) -> None:
    ran = command("search", "draft=skip", *toy, *SMALL, "precision=int5")
    assert ran.status and ran.error_lines == [
        "selfspec: unknown precision 'int5'; did you mean 'int8'? available: int4, int8, same"
    ]
