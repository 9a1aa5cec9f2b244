"""Write a trained EAGLE-3 head in the format of the speculators library, which serving engines read.

The weights come first and the configuration last, so a folder with a configuration is whole.
"""

# N tokens that the draft's head scores, V vocabulary, D hidden size

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from selfspec.errors import InputError
from selfspec.heads.eagle import Eagle
from selfspec.heads.layer import LayerSize
from selfspec.heads.modules import module_of
from selfspec.heads.published import CONFIG, NAMES, TYPE
from selfspec.heads.trained import EMBEDDING, ROWS
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import write_bytes, write_json
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.trimmed_head import head_rows

WEIGHTS = "model.safetensors"
ALGORITHM = "eagle3"
VERSION = "0.9.0"  # of the library, whose files these are like


def write_speculators(folder: Path, plan: DraftPlan, decoder: Decoder, *, verifier: str, n_drafted: int) -> None:
    """Write the head of a plan.

    The draft scores its fixed vocabulary alone there, not the tokens of its text as well.

    Args:
        folder: an existing folder.
        plan: a plan with a trained head.
        decoder: the model that it drafts for.
        verifier: hub id or folder of the model.
        n_drafted: tokens of a draft.

    Raises:
        InputError: if the format has no place for the head.
    """
    module = _exportable(plan, decoder)
    rows_ND, embedding_VD = _output(plan, decoder)
    found = module.state_dict()
    if isinstance(module.join, nn.Identity):  # one layer is read as it is; the format always has a map
        found["join.weight"] = torch.eye(module.layer.size.hidden, dtype=decoder.dtype)
    tensors = {NAMES[ALGORITHM][name]: tensor for name, tensor in found.items()}
    tensors |= {"lm_head.weight": rows_ND, "embed_tokens.weight": embedding_VD}
    if plan.head is not None:
        scored_N = plan.head.cpu().long()
        tensors["d2t"] = scored_N - torch.arange(len(scored_N))
        tensors["t2d"] = torch.zeros(decoder.n_vocab, dtype=torch.bool).index_fill_(0, scored_N, True)
    write_bytes(folder / WEIGHTS, bytes_of({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))
    write_json(folder / CONFIG, _config(module, len(rows_ND), decoder, verifier, n_drafted))


def _exportable(plan: DraftPlan, decoder: Decoder) -> Eagle:
    head = plan.trained
    if head is None:
        raise InputError("this draft has no trained head to export; selfspec train drafter=eagle3 trains one")
    module = module_of(head, decoder)
    is_form = isinstance(module, Eagle) and head.settings.get("fusion") == "attention"
    wanted = is_form and head.settings.get("input_norm") and head.settings.get("output_norm")
    if not isinstance(module, Eagle) or not wanted or head.settings.get("two_readouts"):
        raise InputError(
            f"a head of kind {head.kind} with {dict(head.settings)} has no place in the format; train eagle3"
        )
    if min(module.layers) < 0:
        raise InputError(
            f"the head reads layers {list(module.layers)}, and the format has no name for the input of the output head "
            f"(-1); train with layers from 0 to {decoder.n_layers - 1}"
        )
    return module


def _output(plan: DraftPlan, decoder: Decoder) -> tuple[Tensor, Tensor]:
    """Rows of the draft's output head [N, D], and its embedding [V, D]."""
    assert plan.trained is not None
    model: Any = decoder.model
    rows_VD, bias_V = head_rows(model.get_output_embeddings())
    if bias_V is not None:
        raise InputError("the output head of this model has a bias, for which the format has no place")
    rows_ND = plan.trained.weights.get(ROWS)
    if rows_ND is None:
        rows_ND = rows_VD if plan.head is None else rows_VD[plan.head.to(rows_VD.device)]
    embedding_VD = plan.trained.weights.get(EMBEDDING)
    if embedding_VD is None:  # called, not read: some models scale what they look up
        ids_V = torch.arange(decoder.n_vocab, device=decoder.device)
        embedding_VD = model.get_input_embeddings()(ids_V)
    return rows_ND.to(decoder.dtype), embedding_VD.to(decoder.dtype)


def _config(module: Eagle, n_scored: int, decoder: Decoder, verifier: str, n_drafted: int) -> dict[str, Any]:
    settings = module.settings
    proposal = {"proposal_type": "greedy", "speculative_tokens": n_drafted, "verifier_accept_k": 1}
    return {
        "architectures": ["Eagle3Speculator"],
        TYPE: ALGORITHM,
        "speculators_version": VERSION,
        "speculators_config": {
            "algorithm": ALGORITHM,
            "default_proposal_method": "greedy",
            "proposal_methods": [{**proposal, "accept_tolerance": 0.0}],
            "verifier": {"name_or_path": verifier, "architectures": list(decoder.config.architectures or [])},
        },
        "transformer_layer_config": _layer(module.layer.size, decoder),
        "draft_vocab_size": n_scored,
        "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in module.layers],  # 0 is the embedding
        "norm_before_residual": bool(settings.get("norm_before_residual", False)),
        "norm_before_fc": bool(settings.get("norm_before_join", False)),
        "norm_output": bool(settings.get("normed_feature", False)),
        "dtype": str(decoder.dtype)[6:],
        "tie_word_embeddings": False,
    }


def _layer(size: LayerSize, decoder: Decoder) -> dict[str, Any]:
    if size.angles:
        raise InputError(
            "the rotary positions of this head are scaled, which is not written; export heads trained here"
        )
    return {
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_kv_heads,
        "head_dim": size.head_size,
        "num_hidden_layers": 1,
        "vocab_size": decoder.n_vocab,
        "max_position_embeddings": decoder.context_length,
        "rms_norm_eps": size.eps,
        "rope_theta": size.theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "dtype": str(decoder.dtype)[6:],
    }
