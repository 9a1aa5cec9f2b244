"""Fitted bridges: exact where a sublayer is what a bridge can be, and never worse than nothing on their own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from search.fitting.bridge_fitting import BridgeFitter, choose_ridge
from search.fitting.observing import Observed, _positions, observe
from search.replay.references import Reference
from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan, sublayer
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG, prompt
from tests.toys import every_family, toy

WIDTH = 32
# Norms behind the sublayers, before or after the sum; and a layer whose MLP is two modules.
NOT_SUMS = {"gemma2", "gemma3", "olmo2", "opt", "opt-post-norm"}


def texts(n: int, *, n_tokens: int = 60) -> list[Reference]:
    """Random tokens serve: what is fitted is the model's sublayers, not its words."""
    return [Reference(prompt(20, seed=i), prompt(n_tokens, seed=100 + i), n_tokens) for i in range(n)]


def observed(decoder: Decoder, *, n_tokens: int = 400) -> Observed:
    return observe(decoder, texts(8), n_tokens=n_tokens)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_toy(attn: tuple[Tensor, Tensor] | None, mlp: tuple[Tensor, Tensor] | None) -> Decoder:
    """Layer 1's sublayers are fixed affine maps."""
    model = toy("llama")
    layer = model.model.layers[1]
    if attn:
        layer.self_attn.forward = lambda hidden_states, **kwargs: (linear(hidden_states, *attn), None)
    if mlp:
        layer.mlp.forward = lambda hidden_states: linear(hidden_states, *mlp)
    return Decoder(model)


def accepted(decoder: Decoder, plan: DraftPlan) -> tuple[int, int]:
    """(accepted, drafted) of a decode, which must be plain decoding's."""
    drafter, ending = ModelDraft(decoder.bind(plan)), Ending(24)
    (result,) = speculate(decoder, [LONG], drafter=drafter, stops=[Fixed(4).begin()], ending=ending)
    assert result.tokens == autoregress(decoder, [LONG], ending=ending)[0].tokens
    return result.accepted, result.drafted


def squared_error(seen: Observed, first: int, last: int, bridge: Bridge | None) -> float:
    """Of a bridge, or of nothing, against what the run adds."""
    y_ND = sum_of(seen, first, last)
    x_ND = seen.inputs[first]
    assert x_ND is not None
    if bridge is None:
        return float(y_ND.square().sum())
    for matrix in bridge.matrices:
        x_ND = x_ND @ matrix.T
    return float((y_ND - (x_ND if bridge.matrices else 0.0) - bridge.bias).square().sum())


def sum_of(seen: Observed, first: int, last: int) -> Tensor:
    outputs = [y for y in seen.outputs[first : last + 1] if y is not None]
    return torch.stack(outputs).sum(0)


# Exactness


@pytest.mark.parametrize("skip", ["a1", "m1", "a1 m1"])
def test_a_sublayer_that_is_linear_is_reproduced_and_every_draft_accepted(skip: str) -> None:
    weights = {kind: (0.3 * noise(WIDTH, WIDTH, seed=i), noise(WIDTH, seed=i + 2)) for i, kind in enumerate("am")}
    decoder = linear_toy(weights["a"], weights["m"])
    plan = BridgeFitter(observed(decoder)).plan(SkipSet.parse(skip, 3), merge=False)
    for (kind, _), bridge in plan.bridges.items():
        w_DD, b_D = weights[kind[0]]
        assert (bridge.matrices[0] - w_DD).abs().max() < 1e-8
        assert (bridge.bias - b_D).abs().max() < 1e-8
    n_accepted, n_drafted = accepted(decoder, plan)
    assert n_accepted == n_drafted > 0
    worse, n_drafted = accepted(decoder, DraftPlan.from_skip_set(plan.skip))
    assert worse < n_drafted, "nothing stands in and nothing is rejected: this test proves nothing"


def test_a_merged_run_is_the_sum_of_its_sublayers() -> None:
    w_DD, b_D, c_D = 0.3 * noise(WIDTH, WIDTH), noise(WIDTH, seed=1), noise(WIDTH, seed=2)
    decoder = linear_toy((w_DD, b_D), (torch.zeros(WIDTH, WIDTH, dtype=torch.float64), c_D))
    plan = BridgeFitter(observed(decoder)).plan(SkipSet.parse("a1 m1", 3))
    assert list(plan.bridges) == [("attn", 1)]
    (bridge,) = plan.bridges.values()
    assert (bridge.matrices[0] - w_DD).abs().max() < 1e-8
    assert (bridge.bias - b_D - c_D).abs().max() < 1e-8
    n_accepted, n_drafted = accepted(decoder, plan)
    assert n_accepted == n_drafted > 0


@pytest.mark.parametrize("merge", [False, True])
def test_the_mean_is_the_mean(merge: bool) -> None:
    seen = observed(Decoder(toy("llama")))
    plan = BridgeFitter(seen).plan(SkipSet.parse("a1,2 m1", 3), kind="mean", merge=merge)
    expected = {2: (2, 4)} if merge else {i: (i, i) for i in (2, 3, 4)}
    assert list(plan.bridges) == [sublayer(first) for first in expected]
    for first, last in expected.values():
        bridge = plan.bridges[sublayer(first)]
        assert not bridge.matrices
        assert (bridge.bias - sum_of(seen, first, last).mean(0)).abs().max() < 1e-12


@pytest.mark.parametrize("n_tokens", [9, 40, 400])  # fewer than there are parameters, as many, and more
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi", "bloom"])
def test_on_its_own_data_linear_beats_mean_beats_nothing(family: str, n_tokens: int) -> None:
    seen = observed(Decoder(toy(family)), n_tokens=n_tokens)
    fits = BridgeFitter(seen)
    for first in range(6):
        for last in range(first, 6):
            bridges = [fits.bridge(first, last, kind=kind) for kind in ("linear", "mean")]
            errors = [squared_error(seen, first, last, bridge) for bridge in (*bridges, None)]
            assert errors[0] <= errors[1] * (1 + 1e-12) and errors[1] <= errors[2] * (1 + 1e-12), f"{first}-{last}"


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(("kind", "rank"), [("mean", None), ("linear", None), ("lowrank", 5), ("lowrank", 99)])
def test_blanks_stand_where_bridges_would_and_are_of_their_size(kind: str, rank: int | None, merge: bool) -> None:
    fits, skip = BridgeFitter(observed(Decoder(toy("llama")))), SkipSet.parse("a1,2 m1", 3)
    plan = fits.plan(skip, kind=kind, merge=merge, rank=rank)
    blanks = fits.blanks(skip, kind=kind, merge=merge, rank=rank)
    assert list(blanks) == list(plan.bridges)
    for at, bridge in plan.bridges.items():
        assert [t.shape for t in blanks[at].tensors] == [t.shape for t in bridge.tensors]
        assert [t.dtype for t in blanks[at].tensors] == [t.dtype for t in bridge.tensors]


def test_a_map_of_full_rank_is_the_linear_one_and_error_falls_with_rank() -> None:
    seen = observed(Decoder(toy("llama")))
    fits = BridgeFitter(seen)
    whole = fits.bridge(2, 4)
    ranks = {rank: fits.bridge(2, 4, kind="lowrank", rank=rank) for rank in (1, 4, 16, WIDTH)}
    up_DR, down_RD = ranks[WIDTH].matrices[::-1]
    assert (up_DR @ down_RD - whole.matrices[0]).abs().max() < 1e-8
    errors = [squared_error(seen, 2, 4, bridge) for bridge in ranks.values()]
    assert errors == sorted(errors, reverse=True)
    assert [b.matrices[0].shape for b in ranks.values()] == [(rank, WIDTH) for rank in ranks]


# The ridge


def test_cross_validation_picks_a_larger_ridge_where_there_is_noise() -> None:
    x_ND, w_DD = noise(300, WIDTH), noise(WIDTH, WIDTH, seed=1)
    chosen = []
    for scale in (0.0, 1.0, 30.0):
        y_ND = x_ND @ w_DD + scale * noise(300, WIDTH, seed=2)
        fit = _eigen(x_ND, y_ND)
        chosen.append(choose_ridge(*fit, 300, torch.float64) / float(fit[0].mean()))
    assert chosen[0] < 1e-12
    assert chosen[0] < chosen[1] < chosen[2]


def test_cross_validation_equals_its_definition() -> None:
    """The trace and the residuals of the hat matrix itself, on a grid of the same ridges."""
    x_ND, y_ND = noise(120, 8), noise(120, 8, seed=1) + noise(120, 8) @ noise(8, 8, seed=3) / 4
    values_D, along_D, total = _eigen(x_ND, y_ND)
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    mean = float(values_D.mean())

    def score(ridge: float) -> float:
        hat_NN = x_ND @ torch.linalg.solve(x_ND.T @ x_ND + ridge * torch.eye(8, dtype=torch.float64), x_ND.T)
        left = 120 - 1 - float(hat_NN.trace())
        return float(120 * (y_ND - hat_NN @ y_ND).square().sum() / left**2)

    grid = [mean * 10 ** (k / 2) for k in range(-28, 5)]
    best = min(grid, key=score)
    assert choose_ridge(values_D, along_D, total, 120, torch.float64) == pytest.approx(best)
    assert grid[0] < best < grid[-1]


def test_few_tokens_are_not_spent_on_many_parameters() -> None:
    """With as many parameters as tokens everything is explained, and nothing is known."""
    x_ND, y_ND = noise(WIDTH - 2, WIDTH), noise(WIDTH - 2, WIDTH, seed=1)
    values_D, along_D, total = _eigen(x_ND, y_ND)
    assert choose_ridge(values_D, along_D, total, len(x_ND), torch.float64) > 0.01 * float(values_D.mean())


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])  # the mean of the last is not exact
def test_an_input_that_never_changes_gives_the_mean(value: float) -> None:
    same = torch.full((50, WIDTH), value, dtype=torch.float64)
    y_ND = noise(50, WIDTH)
    bridge = BridgeFitter(Observed((same, same), (y_ND, y_ND), (True,))).bridge(0, 0)
    assert not bridge.matrices[0].any()
    assert torch.allclose(bridge.bias, y_ND.mean(0))


def _eigen(x_ND: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor, float]:
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    values_D, vectors_DD = torch.linalg.eigh(x_ND.T @ x_ND)
    return values_D, (vectors_DD.T @ x_ND.T @ y_ND).square().sum(1), float(y_ND.square().sum())


# What is observed


@pytest.mark.parametrize("family", every_family(also=("opt", "bloom", "gemma2")))  # sums of their own
@torch.inference_mode()
def test_every_family_is_observed_and_planned_for(family: str) -> None:
    """Runs merge exactly where outputs are added unchanged, and the plan can be bound."""
    decoder = Decoder(toy(family))
    fits = BridgeFitter(observed(decoder, n_tokens=200))
    assert fits.observed.outline.adds == (family not in NOT_SUMS,) * 3
    plan = fits.plan(SkipSet.parse("a1,2 m1", 3))
    expected = {"opt": ["attn", "attn"], "opt-post-norm": ["attn", "attn"]}.get(family, ["attn", "mlp", "attn"])
    assert [kind for kind, _ in plan.bridges] == (expected if family in NOT_SUMS else ["attn"])
    accepted(decoder, plan)


@pytest.mark.parametrize("family", ["llama", "bloom", "phi", "gpt-neox-sequential", "gpt-oss"])
@torch.inference_mode()
def test_the_outputs_are_what_the_stream_gains(family: str) -> None:
    model = toy(family)
    seen = observe(Decoder(model), texts(1), n_tokens=60)
    ids = [*texts(1)[0].prompt, *texts(1)[0].tokens]
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    rows = slice(len(texts(1)[0].prompt) - 1, len(ids) - 1)
    for i in range(2):  # the last state is behind the last norm
        gain_ND = (states[i + 1] - states[i])[0, rows]
        assert (sum_of(seen, 2 * i, 2 * i + 1) - gain_ND).abs().max() < 1e-4  # norms in float32; see the contract


def test_tokens_are_those_from_which_drafts_begin() -> None:
    assert _positions(20, 5, 100) == list(range(1, 24))  # neither the first nor the last
    assert _positions(20, 5, 5) == [19, 20, 21, 22, 23]
    assert _positions(20, 5, 7) == list(range(17, 24))
    assert _positions(20, 10, 5) == [19, 21, 23, 25, 27]
    assert _positions(1, 3, 9) == [1, 2]
    assert _positions(20, 5, 0) == []


@pytest.mark.parametrize("n_tokens", [8, 50, 401, 10**6])
def test_there_are_never_more_tokens_than_asked_for(n_tokens: int) -> None:
    seen = observe(Decoder(toy("llama")), texts(3), n_tokens=n_tokens)
    assert {len(t) for t in (*seen.inputs, *seen.outputs) if t is not None} == {min(n_tokens, 3 * 78)}
    assert seen.n_bytes == min(n_tokens, 3 * 78) * 12 * WIDTH * 8


@pytest.mark.parametrize(("given", "n_tokens"), [([], 10), (texts(2), 0), ([Reference([1], [2], 1)], 10)])
def test_texts_without_tokens_are_refused(given: Sequence[Reference], n_tokens: int) -> None:
    with pytest.raises(InputError, match="no token to fit to"):
        observe(Decoder(toy("llama")), given, n_tokens=n_tokens)


@torch.inference_mode()
def test_the_model_is_unchanged_by_observing() -> None:
    model = toy("llama")
    decoder, ids_BT = Decoder(model), torch.tensor([LONG])
    before_BTV = model(ids_BT).logits
    held = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    BridgeFitter(observed(decoder)).plan(SkipSet.parse("a1 m1", 3))
    assert torch.equal(model(ids_BT).logits, before_BTV)
    assert all(t.data_ptr() == held[n][0] and torch.equal(t, held[n][1]) for n, t in model.state_dict().items())
    assert not any("forward" in module.__dict__ for module in model.modules())


# Plans


def test_the_same_texts_give_the_same_plan_whatever_was_fitted_before() -> None:
    skips = [SkipSet.parse(text, 3) for text in ("a1 m1", "m0,1 a1,2", "a0-2 m0-2")]
    first, second = (BridgeFitter(observed(Decoder(toy("llama")))) for _ in range(2))
    forward = [first.plan(skip) for skip in skips]
    assert forward == [second.plan(skip) for skip in reversed(skips)][::-1]
    assert forward == [BridgeFitter(first.observed, cached_bytes=0).plan(skip) for skip in skips]


def test_fitted_bridges_are_remembered_up_to_their_bytes() -> None:
    fits = BridgeFitter(observed(Decoder(toy("llama"))), cached_bytes=3 * (WIDTH + 1) * WIDTH * 8)
    first = fits.bridge(0, 0)
    for last in (1, 2):
        fits.bridge(0, last)
        assert fits.bridge(0, 0) is first
    fits.bridge(0, 3)
    assert fits.bridge(0, 0) is first
    second = fits.bridge(0, 1)
    assert fits.bridge(0, 1) is second
    assert len(fits._bridges) == 3


def test_bridges_are_of_the_models_dtype() -> None:
    decoder = Decoder(toy("llama").bfloat16())
    fits = BridgeFitter(observed(decoder))
    assert fits.observed.outline.adds == (True,) * 3
    for kind, rank in (("mean", None), ("linear", None), ("lowrank", 4)):
        plan = fits.plan(SkipSet.parse("a1 m1", 3), kind=kind, rank=rank)
        assert {t.dtype for b in plan.bridges.values() for t in b.tensors} == {torch.bfloat16}
        decoder.bind(plan)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"kind": "lineal"}, "did you mean 'linear'"),
        ({"kind": "lowrank"}, "rank of at least 1"),
        ({"kind": "lowrank", "rank": 0}, "rank of at least 1"),
        ({"rank": 4}, "other kinds take none"),
    ],
)
def test_kind_and_rank_that_do_not_go_together_are_refused(settings: dict[str, Any], why: str) -> None:
    fits = BridgeFitter(observed(Decoder(toy("llama")), n_tokens=16))
    with pytest.raises(InputError, match=why):
        fits.plan(SkipSet.parse("a1", 3), **settings)
    with pytest.raises(InputError, match="4 layers, but one of 3"):
        fits.plan(SkipSet(4))
    assert fits.plan(SkipSet.parse("a1", 3), kind="skip") == DraftPlan.from_skip_set(SkipSet.parse("a1", 3))
