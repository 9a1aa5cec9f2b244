"""Every architecture of the toys keeps the contract; what cannot be supported is refused in one clear line."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from transformers import PreTrainedModel

from selfspec.drafters.chain import ModelDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.masks import attention_mask
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.contracts.architecture import LONG, SHORT, ArchitectureContract, EssentialContract, without
from tests.toys import FAMILIES, STRUCTURES, build, every_kernel, toy

_shared_toy = cache(toy)  # the contract does not change a model
_SHARED = {
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "num_kv_shared_layers": 1,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
}


MY_ARCHITECTURE: Any = run_path(str(Path(__file__).parents[1] / "docs/examples/test_my_architecture.py"))
OTHERS = [name for name in FAMILIES if name not in STRUCTURES]


class TestExampleOfTheDocumentation(MY_ARCHITECTURE["TestMyArchitecture"]):  # type: ignore[misc]
    """As a user runs it."""


class OfFamily(EssentialContract):
    """The toy whose family and kernel a parameter names."""

    family: str

    @pytest.fixture
    def attention(self, family: str, kernel: str) -> str:
        """The attention kernel; the family is noted on the way."""
        self.family = family
        self.takes_batches = FAMILIES[family].takes_batches
        return kernel

    def make(self, attention: str) -> PreTrainedModel:
        return _shared_toy(self.family, attention)


@pytest.mark.parametrize(("family", "kernel"), every_kernel())
class TestFamily(OfFamily, ArchitectureContract):
    """Everything, of the representatives in every run."""


@pytest.mark.parametrize(("family", "kernel"), every_kernel(OTHERS, also=OTHERS))
class TestOtherFamily(OfFamily):
    """The essentials, of the others in every run."""

    n_random = 2


@pytest.mark.parametrize(
    ("model_type", "settings", "why"),
    [
        ("rwkv", {}, "no cache of keys and values"),
        ("openai-gpt", {}, "no cache of keys and values"),
        ("mamba", {}, "no cache of keys and values"),
        ("lfm2", {"layer_types": ["full_attention", "conv", "full_attention"]}, "cannot find the attention"),
        ("gemma4_text", _SHARED, "other layers' keys"),
        ("gpt_neox_japanese", {}, "cannot leave out"),
        ("xglm", {"d_model": 32, "ffn_dim": 64, "attention_heads": 4, "num_layers": 3}, "cannot find the attention"),
    ],
)
def test_what_cannot_be_skipped_or_taken_back_is_refused_in_one_line(
    model_type: str, settings: dict[str, Any], why: str
) -> None:
    model = build(model_type, **settings)
    with pytest.raises(InputError, match=why) as refusal:
        Decoder(model)
    assert model_type in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings", [{"_attn_implementation": "flex_attention"}, {"layer_types": ["chunked_attention", "full_attention"]}]
)
def test_batches_that_no_mask_of_ours_can_describe_are_refused(settings: dict[str, Any]) -> None:
    config = toy("llama").config
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(InputError, match="batches of several prompts"):
        attention_mask(config, torch.tensor([[3], [5]]), n_keys=6, dtype=torch.float64)


@torch.inference_mode()
def test_hooks_of_accelerate_run_in_the_draft_and_on_the_draft() -> None:
    """A model spread over devices has hooks in the place of every forward; they must not lead back to the model."""
    model = toy("llama")
    skip = SkipSet.parse("a1 m0,2", 3)
    ids_BT = torch.tensor([LONG])
    expected_BTV = without(model, skip)(ids_BT).logits
    called = []

    class Hook(ModelHook):
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            called.append(module)
            return args, kwargs

    for module in model.modules():
        add_hook_to_module(module, Hook())
    decoder = Decoder(model)
    called.clear()
    logits_BTV = decoder.bind(skip)(ids_BT, starts=[0], cache=decoder.new_cache(n_rows=1, capacity=len(LONG)))
    assert torch.equal(logits_BTV, expected_BTV), f"skip={skip}"
    assert called and not set(called) & set(model.modules())


@pytest.mark.parametrize("skip", ["none", "m2", "a0"])
def test_longrope_ends_where_its_angles_change(skip: str) -> None:
    """A draft that reached over that length would turn the positions of tokens that are not there yet."""
    n_prompt, limit = len(LONG), len(LONG) + 6
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 3.0, 8.0, 20.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": limit, **factors}
    model = toy("phi3", rope_parameters=rope, original_max_position_embeddings=limit)
    decoder = Decoder(model)
    drafter = ModelDraft(decoder.bind(SkipSet.parse(skip, decoder.n_layers)))
    result = speculate(decoder, [LONG], drafter=drafter, stops=[Fixed(4).begin()], ending=Ending(20))[0]
    theirs = model.generate(torch.tensor([LONG]), do_sample=False, max_new_tokens=limit - n_prompt)
    assert result.tokens == theirs[0, n_prompt:].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, frozenset()), ({"eos_token_id": 5}, {5}), ({"eos_token_id": [5, 7]}, {5, 7})],
)
def test_end_tokens_come_from_the_model(settings: dict[str, Any], expected: set[int]) -> None:
    assert Decoder(toy("llama", **settings)).eos_ids == expected


def test_a_model_of_another_depth_is_refused() -> None:
    with pytest.raises(InputError, match="4 layers, but this model has 3"):
        Decoder(toy("llama")).bind(SkipSet(4))


def test_toys_are_the_same_at_every_call() -> None:
    decoders = [Decoder(toy("llama")) for _ in range(2)]
    first, second = (autoregress(decoder, [SHORT], ending=Ending(8))[0].tokens for decoder in decoders)
    assert first == second


@torch.inference_mode()
def test_cache_grows_without_losing_what_it_holds() -> None:
    decoder = Decoder(toy("llama"))
    ids_BT = torch.tensor([LONG])
    cache: ClockCache = decoder.new_cache(n_rows=1, capacity=len(SHORT))
    decoder.full(ids_BT[:, :4], starts=[0], cache=cache)
    logits_BTV = decoder.full(ids_BT[:, 4:], starts=[4], cache=cache)
    assert (logits_BTV - decoder.model(ids_BT).logits[:, 4:]).abs().max() < 1e-4
