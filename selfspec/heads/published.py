"""Read published EAGLE, EAGLE-3 and HASS heads: a folder with `config.json` and weights becomes a plan.

Two forms are known: that of the speculators library, which serving engines read, and that of the papers' own code.
A head brings what it has of its own: an output head over a draft vocabulary, an embedding, another size of its layer.
"""

# N tokens that the draft's head scores, V vocabulary, D hidden size

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from selfspec.errors import InputError
from selfspec.heads.layer import LayerSize
from selfspec.heads.modules import build_module, size_of
from selfspec.heads.trained import EMBEDDING, ROWS, TrainedHead
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.trimmed_head import head_rows

log = logging.getLogger(__name__)

CONFIG = "config.json"
BESIDE = "selfspec.json"  # of an exported head: the run that trained it, and digests of the prompts that the run saw
TYPE = "speculators_model_type"
IN_LAYER = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "mlp_norm": "post_attention_layernorm",
}
"""Parts of the layer: our name, and theirs below `layers.0`."""
_LAYER = {f"layer.{ours}.weight": f"layers.0.{theirs}.weight" for ours, theirs in IN_LAYER.items()}
NAMES: Mapping[str, Mapping[str, str]] = {
    "eagle": {**_LAYER, "fc.weight": "fc.weight", "fc.bias": "fc.bias"},
    "eagle3": {
        **_LAYER,
        "embed_norm.weight": "layers.0.input_layernorm.weight",
        "feature_norm.weight": "layers.0.hidden_norm.weight",
        "join.weight": "fc.weight",
        "join_norm.weight": "input_norm.weight",
        "output_norm.weight": "norm.weight",
    },
}
"""By algorithm: our name of a tensor, and the published one."""
_FORMERLY = {"model.": "", "midlayer.": "layers.0.", "transformer.": "layers.0.", "fusion_fc.": "fc."}
_UNKNOWN_SWITCHES = ("fc_norm", "layernorms")  # of newer heads, which compute something else


def published_folder(path: Path) -> Path | None:
    """The folder of a published head that a path names; None if there is none.

    Its `config.json` names the format, or describes a model of one layer.
    """
    folder = path.parent if path.name == CONFIG else path
    if not (folder / CONFIG).is_file():
        return None
    body = _config(folder)
    return folder if TYPE in body or body.get("num_hidden_layers") == 1 else None


def read_published(folder: Path, decoder: Decoder) -> DraftPlan:
    """The plan of a published head.

    Args:
        folder: with `config.json`, and `model.safetensors` or `pytorch_model.bin`.
        decoder: the model that it drafts for.

    Raises:
        InputError: if it cannot be read, computes something that is not known here, or is for another model.
    """
    body = _config(folder)
    tensors = {_now(name): tensor for name, tensor in _tensors(folder).items()}
    layer = dict(body.get("transformer_layer_config") or body)
    algorithm = body.get(TYPE) or ("eagle3" if "norm.weight" in tensors else "eagle")
    if algorithm not in NAMES:
        raise InputError(f"{folder} holds a head of type {algorithm}; {', '.join(NAMES)} can be read")
    switched = [name for name in _UNKNOWN_SWITCHES if body.get(name)]
    if switched:
        raise InputError(f"{folder} has {switched[0]}, which is not known here; heads without it can be read")
    size = _size(folder, layer)
    _check_model(folder, size, layer, tensors, decoder)
    settings = _settings(algorithm, body, size, tensors, decoder)
    output = {name: tensors.pop(name, None) for name in ("lm_head.weight", "embed_tokens.weight", "d2t", "t2d")}
    ours = {theirs: ours for ours, theirs in NAMES[algorithm].items()}
    strange = sorted(name for name in tensors if name not in ours and not name.startswith("verifier_"))
    if strange:
        raise InputError(f"{folder} holds {strange[0]}, which a head of type {algorithm} has no place for here")
    weights = {ours[name]: tensor for name, tensor in tensors.items() if name in ours}
    if algorithm == "eagle":
        weights.setdefault("fc.bias", torch.zeros(size.hidden))
    _check_shapes(folder, settings, weights, decoder)
    ids_N, own = _output(folder, output, decoder)
    everything = SkipSet.from_bits([True] * (2 * decoder.n_layers))
    made_for = ((body.get("speculators_config") or {}).get("verifier") or {}).get("name_or_path")
    log.info("%s: a published %s head, made for %s", folder, algorithm, made_for or "a model it does not name")
    return DraftPlan(everything, head=ids_N, trained=TrainedHead("eagle", settings, weights | own))


def published_layers(body: Mapping[str, Any], n_layers: int) -> list[int]:
    """The layers that an EAGLE-3 head reads: its ids count from the embedding, which is 0.

    Raises:
        InputError: if it reads the embedding, or a layer that the model lacks.
    """
    ids = body.get("eagle_aux_hidden_state_layer_ids") or [2, n_layers // 2, n_layers - 3]
    if min(ids) < 1 or max(ids) > n_layers:
        raise InputError(f"the head reads layers {list(ids)}; a model of {n_layers} layers has 1..{n_layers}")
    return [int(i) - 1 for i in ids]


def _config(folder: Path) -> dict[str, Any]:
    try:
        body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {folder / CONFIG} ({error})") from None
    if not isinstance(body, dict):
        raise InputError(f"{folder / CONFIG} is no object of settings")
    return body


def _tensors(folder: Path) -> dict[str, Tensor]:
    files, old = sorted(folder.glob("*.safetensors")), folder / "pytorch_model.bin"
    try:
        if files:
            return {name: tensor for file in files for name, tensor in load_file(file).items()}
        return dict(torch.load(old, map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read the weights of the head in {folder} ({why})") from None


def _now(name: str) -> str:
    """Name of a tensor in the format's present version."""
    for before, now in _FORMERLY.items():
        name = now + name.removeprefix(before) if name.startswith(before) else name
    return name


def _size(folder: Path, layer: Mapping[str, Any]) -> LayerSize:
    if layer.get("model_type", "llama") != "llama" or layer.get("hidden_act", "silu") != "silu":
        raise InputError(f"{folder} has a layer of type {layer.get('model_type')}; layers of type llama can be read")
    if layer.get("num_hidden_layers", 1) != 1:
        raise InputError(f"{folder} has {layer['num_hidden_layers']} layers; heads of one layer can be read")
    config = LlamaConfig(**{key: value for key, value in layer.items() if key not in ("architectures", "model_type")})
    rotary = LlamaRotaryEmbedding(config)
    if rotary.attention_scaling != 1:
        raise InputError(f"{folder} scales its rotary positions ({rotary.rope_type}); that is not known here")
    head_size = int(config.head_dim or config.hidden_size // config.num_attention_heads)
    theta = float(config.rope_parameters["rope_theta"])
    plain = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = rotary.inv_freq.float()
    return LayerSize(
        hidden=config.hidden_size,
        mlp=config.intermediate_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=int(config.num_key_value_heads or config.num_attention_heads),
        head_size=head_size,
        theta=theta,
        eps=float(config.rms_norm_eps),
        angles=[] if torch.allclose(angles, plain, rtol=1e-5, atol=0) else angles.tolist(),
    )


def _check_model(
    folder: Path, size: LayerSize, layer: Mapping[str, Any], tensors: Mapping[str, Tensor], decoder: Decoder
) -> None:
    hidden = int(decoder.config.hidden_size)
    if size.hidden != hidden:
        raise InputError(f"{folder} is for a model of hidden size {size.hidden}, this one has {hidden}")
    n_vocab = len(tensors["t2d"]) if "t2d" in tensors else int(layer.get("vocab_size", decoder.n_vocab))
    if n_vocab != decoder.n_vocab:
        raise InputError(f"{folder} is for a vocabulary of {n_vocab} tokens, this model has {decoder.n_vocab}")


def _settings(
    algorithm: str, body: Mapping[str, Any], size: LayerSize, tensors: Mapping[str, Tensor], decoder: Decoder
) -> dict[str, Any]:
    """Settings of the module `eagle` that compute what the head does."""
    target = asdict(size_of(decoder))
    own = {name: value for name, value in asdict(size).items() if value != target[name] and (value or target[name])}
    if algorithm == "eagle":
        return {"layers": [-1], "fusion": "linear", "layer": own}
    return {
        "layers": published_layers(body, decoder.n_layers),
        "fusion": "attention",
        "input_norm": True,
        "output_norm": True,
        "norm_before_residual": bool(body.get("norm_before_residual", False)),
        "norm_before_join": "input_norm.weight" in tensors,
        "normed_feature": bool(body.get("norm_output", False)),
        "layer": own,
    }


def _check_shapes(folder: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor], decoder: Decoder) -> None:
    with torch.device("meta"):
        wanted = build_module("eagle", size_of(decoder, settings), settings).state_dict()
    for name, tensor in wanted.items():
        if name not in weights or weights[name].shape != tensor.shape:
            found = list(weights[name].shape) if name in weights else "none"
            raise InputError(f"{folder} should hold {name} of shape {list(tensor.shape)}, but holds {found}")


def _output(
    folder: Path, output: Mapping[str, Tensor | None], decoder: Decoder
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Tokens that the draft scores in rising order, or None for all; and its own rows and embedding."""
    model: Any = decoder.model
    rows_ND, offsets_N = output["lm_head.weight"], output["d2t"]
    ids_N = None if offsets_N is None else torch.arange(len(offsets_N)) + offsets_N.cpu().long()
    n_scored = decoder.n_vocab if ids_N is None else len(ids_N)
    if rows_ND is not None and len(rows_ND) != n_scored:
        raise InputError(f"{folder}: its output head has {len(rows_ND)} rows for a draft vocabulary of {n_scored}")
    if ids_N is not None:
        ids_N, order_N = ids_N.sort()
        rows_ND = None if rows_ND is None else rows_ND[order_N]
        if bool((ids_N.diff() <= 0).any()) or int(ids_N[0]) < 0 or int(ids_N[-1]) >= decoder.n_vocab:
            raise InputError(f"{folder}: its map d2t names a token twice, or one outside the model's vocabulary")
    weight_VD, _ = head_rows(model.get_output_embeddings())
    every = torch.arange(decoder.n_vocab, device=weight_VD.device)
    of_model = {ROWS: weight_VD if ids_N is None else weight_VD[ids_N.to(weight_VD.device)]}
    of_file = {ROWS: rows_ND, EMBEDDING: output["embed_tokens.weight"]}
    if of_file[EMBEDDING] is not None:  # called, not read: some models scale what they look up
        of_model[EMBEDDING] = model.get_input_embeddings()(every)
    # what equals the target's is not kept twice, and the draft may then score tokens of its text as well
    own = {name: t for name, t in of_file.items() if t is not None and not _equal(t, of_model[name])}
    return ids_N, own


def _equal(own: Tensor, target: Tensor) -> bool:
    return own.shape == target.shape and torch.equal(own.to(target), target)
