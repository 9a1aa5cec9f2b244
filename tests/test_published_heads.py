"""Heads in published formats: what is exported computes the same elsewhere, and what others trained the same here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from selfspec.errors import InputError
from selfspec.heads.modules import build_module, module_of, size_of
from selfspec.heads.output import OutputHead
from selfspec.heads.published import published_folder, read_published
from selfspec.heads.speculators_format import write_speculators
from selfspec.heads.trained import EMBEDDING, OWN, ROWS
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from tests.test_heads import noisy, trained

N = 7  # tokens of a text


@pytest.fixture(scope="module")
def decoder(model_folder: Path) -> Decoder:
    return Decoder(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval())


@pytest.fixture
def plan(decoder: Decoder) -> DraftPlan:
    """An EAGLE-3 head of noise over 40 tokens."""
    found = trained(decoder, "eagle3")
    assert found.trained is not None
    weights = {name: tensor.float() for name, tensor in found.trained.weights.items()}
    return replace(found, head=torch.arange(3, 203, 5), trained=replace(found.trained, weights=weights))


def text(decoder: Decoder, n_layers: int = 3) -> tuple[list[int], list[Tensor]]:
    """Token ids, and hidden states of noise."""
    rng = torch.Generator().manual_seed(2)
    hidden = [torch.randn(1, N, int(decoder.config.hidden_size), generator=rng) for _ in range(n_layers)]
    return torch.randint(0, decoder.n_vocab, (N,), generator=rng).tolist(), hidden


@torch.no_grad()
def logits(plan: DraftPlan, decoder: Decoder, n_depths: int = 3) -> list[Tensor]:
    """What our draft says at each slot and depth, for the tokens that it scores, [T, N]."""
    assert plan.trained is not None
    module = module_of(plan.trained, decoder)
    own = {name: tensor for name, tensor in plan.trained.weights.items() if name in OWN}
    output = OutputHead(decoder, plan.head, own=own)
    ids, hidden = text(decoder, len(module.layers))
    said = module.unroll(hidden, output.embed(ids), n_depths)
    scored = slice(None) if plan.head is None else plan.head
    return [output.logits(one.to_head[0])[:, scored] for one in said]


def export(folder: Path, plan: DraftPlan, decoder: Decoder, model_folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_speculators(folder, plan, decoder, verifier=str(model_folder), n_drafted=3)
    return folder


def edit(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """Change what a published folder says."""
    body = json.loads((folder / "config.json").read_text())
    layer = {**body.get("transformer_layer_config", {}), **config.pop("layer", {})}
    (folder / "config.json").write_text(json.dumps({**body, **config, "transformer_layer_config": layer}))
    file = folder / "model.safetensors"
    save_file({k: v for k, v in {**load_file(file), **(tensors or {})}.items() if v.numel()}, file)
    return folder


@torch.no_grad()
def library_logits(folder: Path, decoder: Decoder) -> list[Tensor]:
    """What the speculators library computes from a folder."""
    library = pytest.importorskip(
        "speculators.models.eagle3", reason="needs the library speculators, see docs/training.md"
    )
    config = library.Eagle3SpeculatorConfig.from_pretrained(folder)
    config.transformer_layer_config._attn_implementation = "eager"
    model = library.Eagle3DraftModel.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    assert not any(weight.isnan().any() for weight in model.parameters())
    found: list[Tensor] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: found.append(output[0]))
    ids, hidden = text(decoder, len(config.eagle_aux_hidden_state_layer_ids))
    documents = torch.zeros(1, N, dtype=torch.long)
    model(torch.cat(hidden, -1), torch.tensor([ids]), documents, ttt_steps=3)
    return found


def assert_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Their slot i at depth d is our slot i + d."""
    assert len(ours) == len(theirs) == 3
    for depth, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a[depth:], b[: N - depth], rtol=1e-4, atol=1e-4, msg=f"depth {depth}")


def test_the_library_drafts_what_we_draft(
    decoder: Decoder, plan: DraftPlan, model_folder: Path, tmp_path: Path
) -> None:
    assert_alike(logits(plan, decoder), library_logits(export(tmp_path, plan, decoder, model_folder), decoder))


def test_a_head_of_the_library_drafts_the_same_here(
    decoder: Decoder, plan: DraftPlan, model_folder: Path, tmp_path: Path
) -> None:
    """With all that is optional: own output head and embedding, normed residuals and inputs, scaled positions."""
    d, rng = int(decoder.config.hidden_size), torch.Generator().manual_seed(5)
    own = {
        "lm_head.weight": torch.randn(40, d, generator=rng),
        "embed_tokens.weight": torch.randn(decoder.n_vocab, d, generator=rng),
        "input_norm.weight": torch.rand(3 * d, generator=rng) + 0.5,
    }
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    layer = {"rope_parameters": {**scaled, "original_max_position_embeddings": 16, "rope_theta": 1e4}}
    folder = export(tmp_path, plan, decoder, model_folder)
    edit(folder, own, norm_before_residual=True, norm_before_fc=True, norm_output=True, layer=layer)
    found = read_published(folder, decoder)
    assert found.trained is not None and {ROWS, EMBEDDING} <= set(found.trained.weights)
    assert found.trained.settings["layer"]["angles"]
    assert_alike(logits(found, decoder), library_logits(folder, decoder))


def test_what_is_exported_is_read_as_it_was(
    decoder: Decoder, plan: DraftPlan, model_folder: Path, tmp_path: Path
) -> None:
    folder = export(tmp_path, plan, decoder, model_folder)
    found = read_published(folder, decoder)
    assert found.trained is not None and not set(OWN) & set(found.trained.weights)  # they are the target's own
    assert found.head is not None and plan.head is not None and torch.equal(found.head, plan.head)
    for a, b in zip(logits(found, decoder), logits(plan, decoder), strict=True):
        torch.testing.assert_close(a, b)
    whole = replace(plan, head=None)
    again = read_published(export(tmp_path, whole, decoder, model_folder), decoder)
    assert again.head is None
    torch.testing.assert_close(logits(again, decoder)[0], logits(whole, decoder)[0])


class PublishedEagle(nn.Module):
    """EAGLE-1 as its paper's code computes it: a Llama layer without its first norm, behind a linear map."""

    def __init__(self, config: LlamaConfig, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=bias)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, 0)])
        self.layers[0].input_layernorm = nn.Identity()
        self.angles = LlamaRotaryEmbedding(config)

    def forward(self, embeds: Tensor, hidden: Tensor) -> Tensor:
        x = self.fc(torch.cat([embeds, hidden], -1))
        positions = torch.arange(N)[None]
        mask = torch.full((N, N), -torch.inf).triu(1)[None, None]
        out = self.layers[0](x, attention_mask=mask, position_embeddings=self.angles(x, positions))
        return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize("form", ["speculators", "paper", "paper, with pickled weights"])
@torch.no_grad()
def test_eagle_and_hass_heads_draft_the_same_here(decoder: Decoder, form: str, tmp_path: Path) -> None:
    config = LlamaConfig(**{**decoder.config.to_dict(), "num_hidden_layers": 1, "intermediate_size": 24})
    config._attn_implementation = "eager"
    head = PublishedEagle(config, bias=form != "paper").eval()
    noisy(head)  # type: ignore[arg-type]
    head.float()
    tensors = head.state_dict()
    body = {"model_type": "llama", **config.to_diff_dict()}
    if form == "speculators":
        new = {"fc.": "fusion_fc.", "layers.0.": "transformer."}
        tensors = {n.replace(a, b): t for n, t in tensors.items() for a, b in new.items() if n.startswith(a)}
        body = {"speculators_model_type": "eagle", "fusion_bias": True, "transformer_layer_config": body}
    (tmp_path / "config.json").write_text(json.dumps(body))
    if "pickled" in form:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    assert published_folder(tmp_path) == published_folder(tmp_path / "config.json") == tmp_path
    plan = read_published(tmp_path, decoder)
    ids, (hidden,) = text(decoder, 1)
    output = OutputHead(decoder)
    theirs = output.logits(head(output.embed(ids), hidden)[0])
    torch.testing.assert_close(logits(plan, decoder, 1)[0], theirs, rtol=1e-4, atol=1e-4)


def test_heads_without_a_place_in_the_format_are_refused(
    decoder: Decoder, plan: DraftPlan, model_folder: Path, tmp_path: Path
) -> None:
    assert plan.trained is not None
    last = {**plan.trained.settings, "layers": [0, 1, -1]}
    module = build_module("eagle", size_of(decoder), last)
    for other, said in (
        (trained(decoder, "eagle"), "train eagle3"),
        (trained(decoder, "chain"), "train eagle3"),
        (replace(plan, trained=None), "no trained head"),
        (replace(plan, trained=module.value()), "input of the output head"),
    ):
        with pytest.raises(InputError, match=said):
            export(tmp_path, other, decoder, model_folder)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"speculators_model_type": "dflash"}, {}, "type dflash"),
        ({"fc_norm": True}, {}, "fc_norm"),
        ({"layer": {"model_type": "qwen3"}}, {}, "type qwen3"),
        ({"layer": {"num_hidden_layers": 2}}, {}, "2 layers"),
        ({"layer": {"hidden_size": 48}}, {}, "hidden size 48"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}, {}, r"a model of 4 layers has 1\.\.4"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, {}, "join.weight of shape"),
        ({}, {"t2d": torch.ones(9)}, "a vocabulary of 9 tokens"),
        ({}, {"d2t": torch.full((40,), 9999)}, "outside the model's vocabulary"),
        ({}, {"lm_head.weight": torch.ones(9, 16)}, "9 rows"),
        ({}, {"layers.0.self_attn.q_norm.weight": torch.ones(8)}, "q_norm"),
        ({}, {"fc.weight": torch.empty(0)}, "but holds none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_foreign_head_is_one_line(
    config: dict[str, Any], tensors: dict[str, Tensor], said: str, decoder: Decoder, plan: DraftPlan,
    model_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    folder = edit(export(tmp_path, plan, decoder, model_folder), tensors, **config)
    with pytest.raises(InputError, match=said):
        read_published(folder, decoder)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot read the weights"):
        read_published(folder, decoder)
