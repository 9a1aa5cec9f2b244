"""Trained parts in place of skipped runs: training computes what the draft decodes with, and the output is the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import load_spec, save_spec
from selfspec.engine.hidden_states import HEAD
from selfspec.engine.protocols import Drafter
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.models.packing import pack, packs
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Threshold
from selfspec.training.bridged import Bridged, kept_layers, own_weights, with_adapters
from selfspec.training.collect import collect
from selfspec.training.overfit import ENOUGH, check_overfit
from selfspec.training.store import Store
from selfspec.training.trainer import Trainer, Training
from tests.contracts.architecture import LONG, ROUNDING
from tests.contracts.drafter import DrafterContract
from tests.test_engine import decoder_of
from tests.test_training import COSTS, HOW, prompts
from tests.toys import toy

SKIP = "a1 m1"
FORMS = ("low_rank", "gated_mlp", "layer")


def linear(decoder: Decoder, skip: str = SKIP, seed: int = 0) -> DraftPlan:
    """A plan with a linear bridge of noise for the first run of a skip set."""
    rng = torch.Generator().manual_seed(seed)
    width = int(decoder.config.hidden_size)
    plan = DraftPlan(SkipSet.parse(skip, decoder.n_layers))
    bridge = Bridge(*(0.1 * torch.randn(shape, generator=rng) for shape in [(width,)]))
    bridge = replace(bridge, matrices=(0.1 * torch.randn((width, width), generator=rng),))
    return replace(plan, bridges={plan.skipped[0]: bridge}, kind="linear")


def begun(decoder: Decoder, form: str) -> DraftPlan:
    """What training in a form begins with."""
    if form != "layer":
        return with_adapters(linear(decoder), form, 3, seed=0)
    plan = linear(decoder, "a2 m2")
    return replace(plan, kind="bridged", tuned=own_weights(decoder, [1]))


def noisy(decoder: Decoder, form: str) -> DraftPlan:
    """A plan of a form whose trained parts are far from their beginning."""
    module = Bridged(decoder, begun(decoder, form))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=rng)
    return module.into(DraftPlan(module.skip))


@pytest.mark.parametrize(
    ("family", "form"),
    [*(("llama", form) for form in FORMS), ("mistral-window", "layer"), ("gpt2", "gated_mlp"), ("gemma3", "low_rank")],
)
@torch.no_grad()
def test_training_computes_what_the_draft_decodes(family: str, form: str) -> None:
    target = decoder_of(family)
    plan, n_depths = noisy(target, form), 3
    text, draft = torch.tensor([LONG]), target.bind(plan)
    unrolled = Bridged(target, plan).predict(text, [], lambda ids: ids, n_depths)
    n = text.shape[1] - 1
    for slot in (0, 1, n // 2, n - n_depths):
        cache = target.new_cache(n_rows=1, capacity=n + 1)
        target.full(text[:, : slot + 1], starts=[0], cache=cache)  # the target's keys before the last token
        for depth in range(n_depths):
            at = slot + 1 + depth
            output = draft.output(text[:, at : at + 1], starts=[at], cache=cache, hidden=(HEAD,))
            found = unrolled[depth].to_head[:, at - 1]
            assert (found - output.hidden[HEAD][:, 0]).abs().max() < ROUNDING, f"slot {slot}, depth {depth}"


@torch.no_grad()
def test_training_begins_with_the_draft_of_linear_maps() -> None:
    target = decoder_of()
    text = torch.tensor([LONG])

    def logits(plan: DraftPlan) -> torch.Tensor:
        cache = target.new_cache(n_rows=1, capacity=text.shape[1])
        return target.bind(plan)(text, starts=[0], cache=cache)

    for form in ("low_rank", "gated_mlp"):
        assert torch.equal(logits(begun(target, form)), logits(linear(target)))
    assert torch.equal(logits(begun(target, "layer")), logits(linear(target, "a2 m2")))


class TestBridged(DrafterContract):
    """A draft with a trained layer, and a gated adapter in place of the next one."""

    structures = ("llama", "mistral-window")

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        plan = replace(
            noisy(decoder, "layer"), bridges=with_adapters(linear(decoder, "a2 m2"), "gated_mlp", 3, seed=0).bridges
        )
        return build_drafter(DraftSpec(plan, self.rule(), sample_draft=sample), decoder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store.create(tmp_path_factory.mktemp("stores"), "toy", {"layers": list(HOW.layers)})
    collect(decoder_of(), found, prompts(), HOW)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_training_raises_the_acceptance_and_keeps_the_target(store: Store, form: str) -> None:
    decoder = decoder_of()
    before = {name: weight.clone() for name, weight in decoder.model.state_dict().items()}
    how = Training(bf16=False, depths=1, epochs=16, slots=512, check_every=1000, patience=None, lr=3e-2)
    trainer = Trainer(decoder, Bridged(decoder, begun(decoder, form)), [store], torch.arange(64), how, COSTS)
    trainer.held = trainer.texts[:12]  # noise teaches nothing about other noise
    at_first = trainer.check().conditional[0]
    assert trainer.run().conditional[0] > at_first + 0.1
    assert all(torch.equal(weight, before[name]) for name, weight in decoder.model.state_dict().items())


def test_a_copy_learns_a_text_by_heart_and_the_parts_stay(store: Store) -> None:
    module = Bridged(decoder_of(), begun(decoder_of(), "layer"))
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    assert check_overfit(decoder_of(), module, store, Training(bf16=False, depths=1)).acceptance >= ENOUGH
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


def test_first_whole_layers_of_runs_are_kept() -> None:
    for skip, left, layers in (
        ("a1 m1", "none", [1]),
        ("a1 m1 a2 m2", "a2 m2", [1]),
        ("m0 a1 m1 a2", "m0 a2", [1]),
        ("a0 m0 a1 a2 m2", "a1", [0, 2]),
        ("m0 a1", "m0 a1", []),
    ):
        assert kept_layers(SkipSet.parse(skip, 3)) == (SkipSet.parse(left, 3), layers)


@pytest.mark.parametrize("form", FORMS)
def test_a_trained_plan_survives_its_files(form: str, tmp_path: Path) -> None:
    target = decoder_of()
    plan = replace(noisy(target, form), head=torch.tensor([1, 4, 9]))
    spec = DraftSpec(plan, Threshold(3, threshold=0.2))
    facts: Mapping[str, Any] = {"weights": {"revision": None, "sha256": "0"}}
    save_spec(tmp_path, spec, model="toy", decoder=target, facts=facts)
    assert load_spec(tmp_path, target, facts) == spec
    assert plan != replace(begun(target, form), head=plan.head) and target.extra_bytes(plan) > 0


@pytest.mark.skipif(not packs(torch.float32), reason="this torch has no oneDNN")
def test_packed_and_rounded_targets_train_and_draft() -> None:
    model = toy("llama").float()
    pack(model)
    target = Decoder(model)
    for form in FORMS:
        module = Bridged(target, begun(target, form))
        module.predict(torch.tensor([LONG]), [], lambda ids: ids, 2)[1].to_head.square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
        for precision in ("same", "int8"):
            plan = replace(module.into(DraftPlan(module.skip)), precision=precision)  # type: ignore[arg-type]
            cache = target.new_cache(n_rows=1, capacity=len(LONG))
            with torch.inference_mode():
                assert bool(target.bind(plan)(torch.tensor([LONG]), starts=[0], cache=cache).isfinite().all())


def test_impossible_parts_are_one_line() -> None:
    target = decoder_of()
    with pytest.raises(InputError, match="nothing to train"):
        Bridged(target, DraftPlan(SkipSet.parse(SKIP, 3)))
    with pytest.raises(InputError, match="low_rank"):
        with_adapters(linear(target), "lowrank", 3, seed=0)
    with pytest.raises(InputError, match="no plain linear layers"):
        own_weights(decoder_of("gpt2"), [1])
    with pytest.raises(InputError, match="width=0"):
        with_adapters(linear(target), "low_rank", 0, seed=0)
    with pytest.raises(InputError, match="a1, which is skipped"):
        replace(linear(target), tuned=own_weights(target, [1]))
    with pytest.raises(InputError, match="adapter for a hidden size of 4"):
        Bridge(torch.zeros(4), (), (torch.zeros(2, 4), torch.zeros(2, 4)))
