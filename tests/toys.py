"""Tiny random models of many architectures, in float64: a new architecture is one line in the list.

They hold nothing but noise, so that no test passes because a bias is zero or a head is the identity. Two tokens of
nearly equal logits are as rare in them as in any random model, so that tokens can be compared for equality although
a few norms and softmaxes inside transformers round to float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from selfspec.models.attention import GROUPED

VOCAB = 64
WINDOW = 8  # of the sliding-window toys: shorter than the tests' long prompts

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,  # a tied head on a small random model mostly repeats its input
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Tried, not tuned: outputs vary, drafts are right now and then, and no bias rules the head.
_MATRIX_NOISE, _EMBEDDING_NOISE, _VECTOR_NOISE = 0.35, 0.7, 0.1


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture or variant: transformers' name of it, its settings, and what it offers."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    attentions: tuple[str, ...] = ("eager", "sdpa")
    takes_batches: bool = True  # of prompts of different lengths


_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_LATENT = {  # keys and values of different widths
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
_LOCAL = {"attention_types": [[["global", "local", "global"], 1]], "window_size": WINDOW, "num_layers": 3}
_EAGER = ("eager",)
_GROUPED = ("eager", "sdpa", GROUPED)

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", attentions=_GROUPED),
    "llama-tied": Family("llama", {"tie_word_embeddings": True}),
    "llama-wide-heads": Family("llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "mistral": Family("mistral", {"sliding_window": None}),
    "mistral-window": Family("mistral", {"sliding_window": WINDOW}, _GROUPED),
    "qwen2": Family("qwen2"),
    "qwen2-mixed-window": Family(
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, _GROUPED
    ),
    "qwen3": Family("qwen3", {"head_dim": 16}),
    "gemma2": Family("gemma2", {"head_dim": 16, "sliding_window": WINDOW, "final_logit_softcapping": 5.0}, _EAGER),
    "gemma3": Family("gemma3_text", {"head_dim": 16, "sliding_window": WINDOW, "layer_types": _MIXED}, _GROUPED),
    "phi3": Family("phi3"),
    "phi3-window": Family("phi3", {"sliding_window": WINDOW}),
    "phi": Family("phi"),
    "gpt2": Family("gpt2", {"tie_word_embeddings": True}),
    "gpt-neox": Family("gpt_neox"),
    "gpt-neox-sequential": Family("gpt_neox", {"use_parallel_residual": False}),
    "opt": Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "tie_word_embeddings": True}),
    "opt-post-norm": Family("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "olmo2": Family("olmo2"),
    "smollm3": Family("smollm3", {"no_rope_layer_interval": 2, "tie_word_embeddings": True}),
    "cohere": Family("cohere", {"tie_word_embeddings": True}),
    "stablelm": Family("stablelm"),
    "stablelm-parallel": Family(
        "stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}
    ),
    "falcon-grouped": Family("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-multi-query": Family("falcon", {"multi_query": True, "parallel_attn": True}),
    "falcon-sequential": Family("falcon", {"multi_query": False, "parallel_attn": False}),
    "falcon-alibi": Family(
        "falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}, takes_batches=False
    ),
    "gptj": Family("gptj", {"rotary_dim": 4}, _EAGER),
    "mixtral": Family("mixtral", _EXPERTS, _GROUPED),
    "qwen3-moe": Family(
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [1],
        },
    ),
    "deepseek-v3": Family("deepseek_v3", _LATENT, _EAGER),
    "bloom": Family("bloom", attentions=_EAGER, takes_batches=False),
    "gpt-neo": Family("gpt_neo", _LOCAL, _EAGER, takes_batches=False),
    "gpt-oss": Family(
        "gpt_oss", {"head_dim": 16, "sliding_window": WINDOW, "rope_parameters": _ROTARY, **_EXPERTS}, _EAGER
    ),
}


# Where decoders differ: plain, a window, windows and full attention in turn, learnt positions and a parallel residual.
STRUCTURES = ("llama", "mistral-window", "gemma3", "gpt2", "falcon-grouped", "phi3-window")


def slow_unless(value: Any, *, in_every_run: Collection[Any] = STRUCTURES) -> Any:
    """A parameter of a test, marked `slow` unless it is one of the few that stand for all."""
    values = value if isinstance(value, tuple) else (value,)
    return value if value in in_every_run else pytest.param(*values, marks=pytest.mark.slow)


def every_family(names: Iterable[str] = FAMILIES, *, also: Collection[str] = ()) -> list[Any]:
    """The families as parameters: slow but for the representatives, and `also` where others take a way of their own."""
    return [slow_unless(name, in_every_run=(*STRUCTURES, *also)) for name in names]


def every_kernel(names: Iterable[str] = FAMILIES, *, also: Collection[str] = ()) -> list[Any]:
    """As `every_family`, each family with each of its attention kernels."""
    return [
        pytest.param(
            name, kernel, id=f"{name}-{kernel}", marks=[] if name in (*STRUCTURES, *also) else pytest.mark.slow
        )
        for name in names
        for kernel in FAMILIES[name].attentions
    ]


def toy(family: str, attention: str = "eager", **overrides: Any) -> PreTrainedModel:
    """The tiny model of a family: the same weights at every call, whatever the attention kernel."""
    chosen = FAMILIES[family]
    return build(chosen.model_type, attention, **(chosen.settings | overrides))


def build(model_type: str, attention: str = "eager", *, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A tiny model of any architecture of transformers, with noise in every parameter."""
    config = AutoConfig.for_model(model_type, **(_SHAPE | settings))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=attention,
            experts_implementation="eager",  # the fused kernels for experts know no float64
            dtype=torch.float64,
        ).eval()
        embedding = model.get_input_embeddings().weight
        for parameter in model.parameters():
            noise = (
                _VECTOR_NOISE if parameter.dim() == 1 else _EMBEDDING_NOISE if parameter is embedding else _MATRIX_NOISE
            )
            parameter += noise * torch.randn_like(parameter)
    return model
