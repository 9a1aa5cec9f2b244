"""Plans on disk: a YAML file that names the model of the plan, and a file of tensors.

Bridges fit one set of weights in one dtype. A plan is therefore refused for any other model, whose drafts it would only
make worse. Tensors other than those that were saved with the plan are refused as well.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from
from safetensors.torch import save as bytes_of
from torch import Tensor

from selfspec.drafters.lookup import BETWEEN
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import write_bytes, write_text
from selfspec.skipping.plan import DraftPlan

log = logging.getLogger(__name__)

NAME = "plan.yaml"
_KEYS = ("n_layers", "hidden_size", "dtype", "weights", "skip", "kind", "precision", "bridges", "head_size", "tensors")


def save_plan(
    path: Path | str, plan: DraftPlan, *, model: str, decoder: Decoder, facts: Mapping[str, Any], **provenance: Any
) -> None:
    """Write `plan`, the weights that it is for, and any facts about its origin.

    Args:
        path: the YAML file, or its folder; the file of tensors gets the same name.
        plan: the plan to write.
        model: name of the model.
        decoder: the model.
        facts: `Loaded.facts` of the model, which identify its weights.
        **provenance: objective, value, run, date, calibration text, ...
    """
    file = _file(Path(path))
    body = {"model": model, **_identity(decoder, facts), **plan.to_dict(), "tensors": None}
    tensors = plan.tensors()
    if tensors:
        data = bytes_of(tensors)
        beside = file.with_suffix(".safetensors")
        body["tensors"] = {"file": beside.name, "sha256": hashlib.sha256(data).hexdigest()}
        write_bytes(beside, data)  # first, so that a YAML file never names missing tensors
    write_text(
        file,
        yaml.safe_dump(body | provenance, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True),
    )


def load_plan(path: Path | str, decoder: Decoder, facts: Mapping[str, Any] | None = None) -> DraftPlan:
    """The plan of a file written by `save_plan`, or of the folder that holds one.

    Args:
        path: the file, or its folder.
        decoder: the model that it is for.
        facts: `Loaded.facts` of the model; without them revision and digest of the weights are not compared.

    Raises:
        InputError: if it cannot be read, is for other weights or another dtype, or its tensors were changed.
    """
    file = _file(Path(path))
    body = read_plan_file(file)
    for name, here in _identity(decoder, facts or {}).items():
        if name == "weights" and facts is None:
            continue
        there = body.get(name)
        if name == "weights" and isinstance(there, Mapping) and not any(there.values()):
            log.warning("%s does not say which weights it is for; whether they are these is not known", file)
        elif there != here:
            raise InputError(
                f"{file} is for {body.get('model', 'a model')} with {name}={_shown(there)}, but this model has "
                f"{_shown(here)}; load the model it is for, or make a plan for this one"
            )
    tensors = _tensors(file, body["tensors"])
    _check_tensors(file, tensors, body, decoder.n_vocab)
    try:
        return DraftPlan.from_dict(body, tensors)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not a whole plan ({type(error).__name__}: {error}); save it again") from None


def _check_tensors(file: Path, tensors: Mapping[str, Tensor], body: Mapping[str, Any], n_vocab: int) -> None:
    """Refuse tensors that were already invalid when they were saved, which a digest does not show."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{file}: its tensor {name} holds nan or infinite numbers; make the plan again")
    for name in ("head", "memory"):
        size, ids = body.get(f"{name}_size"), tensors.get(name)
        if size is None or ids is None:
            continue
        if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise InputError(f"{file}: its {name} is not a list of token ids ({ids.dtype}, {ids.dim()} dimensions)")
        if ids.numel() != size:
            raise InputError(f"{file} says {name}_size={size}, but its {name} holds {ids.numel()}; save it again")
        least = BETWEEN if name == "memory" else 0
        if ids.numel() and not least <= int(ids.min()) <= int(ids.max()) < n_vocab:
            worst = int(ids.max()) if int(ids.max()) >= n_vocab else int(ids.min())
            raise InputError(
                f"{file}: its {name} holds token {worst}, but the model's vocabulary has {n_vocab}; make the plan again"
            )


def _file(path: Path) -> Path:
    path = path.expanduser()
    return path if path.suffix in (".yaml", ".yml") else path / NAME


def _identity(decoder: Decoder, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that must be equal where a plan is used: shape, dtype and weights of the model."""
    weights = facts.get("weights") or {}
    return {
        "model_type": str(decoder.config.model_type),
        "n_layers": decoder.n_layers,
        "hidden_size": int(decoder.config.hidden_size),
        "dtype": str(decoder.dtype)[6:],
        "weights": {name: weights.get(name) for name in ("revision", "sha256")},
    }


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {str(v)[:12]}" for k, v in value.items() if v is not None) or "no known revision"
    return str(value)


def read_plan_file(file: Path) -> dict[str, Any]:
    """Content of a plan's YAML file, without its tensors.

    Raises:
        InputError: if the file is not a plan.
    """
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the plan {file} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise InputError(f"{file} is not YAML; a plan has the keys {', '.join(_KEYS)}") from None
    missing = [k for k in _KEYS if k not in body] if isinstance(body, dict) else list(_KEYS)
    if missing:
        raise InputError(f"{file} is not a plan: it lacks {', '.join(missing)}; `save_plan` writes one")
    return dict(body)


def _tensors(file: Path, entry: Any) -> dict[str, Tensor]:
    """The tensors that `file` names, after a check of their digest."""
    if entry is None:
        return {}
    if not isinstance(entry, Mapping) or not {"file", "sha256"} <= set(entry):
        raise InputError(f"{file} is not a plan: its tensors need file and sha256; save it again")
    beside = file.parent / Path(str(entry["file"])).name
    try:
        data = beside.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {beside} ({error.strerror}), the tensors of {file.name}; copy both") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise InputError(
            f"{beside} has sha256 {digest[:12]}, but {file.name} names {str(entry['sha256'])[:12]}; "
            "one of them is of another plan: copy both again"
        )
    try:
        return tensors_from(data)
    except SafetensorError as error:
        raise InputError(f"{beside} is not a safetensors file ({error}); save the plan again") from None
