"""Predictors on disk: a folder with `predictor.yaml`, which says for which draft it was trained, and the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from
from safetensors.torch import save as bytes_of

from selfspec.acceptance.predictors import Predictor, made
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.records.run_files import write_bytes, write_text

NAME, WEIGHTS = "predictor.yaml", "predictor.safetensors"


@dataclass(frozen=True, slots=True)
class Predictors:
    """A predictor for each source of drafts, and the draft that they are for.

    Attributes:
        by_source: `layer_skip`, `lookup`, `eagle`, ...: each source has its own acceptance.
        draft: digest of the draft's plan.
        model: `fingerprint` of the target.
        is_tree: whether siblings were among the examples.
        about: further facts: name of the model, held-out figures, costs.
    """

    by_source: Mapping[str, Predictor]
    draft: str
    model: str
    is_tree: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def of(self, source: str) -> Predictor | None:
        """The predictor of a source; None if it had no examples."""
        return self.by_source.get(source)


def fingerprint(decoder: Decoder) -> str:
    """Sums that identify the weights of a model, whether or not they are packed, in any dtype that holds them.

    They are those of the absolute weights of its last layer and of its embedding.
    """
    layers: Any = decoder.model.get_submodule(decoder.sublayers.path)
    model: Any = decoder.model
    # a packed layer shows its weight in its state alone
    parts = (layers[len(layers) - 1].state_dict().values(), [model.get_input_embeddings().weight])
    sums = (sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in part) for part in parts)
    return " ".join(f"{total:.6e}" for total in sums)


def save_predictors(folder: Path, found: Predictors) -> None:
    """Write the predictors into a folder; `load_predictors` reads them."""
    tensors = {
        f"{source}/{name}": tensor.detach().contiguous().cpu()
        for source, predictor in found.by_source.items()
        for name, tensor in predictor.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, bytes_of(tensors))
    body = {
        "sources": {s: {"kind": p.kind, **p.settings()} for s, p in found.by_source.items()},
        "draft": found.draft,
        "fingerprint": found.model,
        "is_tree": found.is_tree,
        **found.about,
    }
    write_text(folder / NAME, yaml.safe_dump(body, sort_keys=False, allow_unicode=True))


def find_predictors(path: Path | str) -> Path:
    """The folder of predictors that a path names: itself, or its only subfolder with `predictor.yaml`.

    Raises:
        InputError: if there is none, or more than one.
    """
    folder = Path(path).expanduser()
    if (folder / NAME).is_file():
        return folder
    inside = sorted(file.parent for file in folder.glob(f"*/{NAME}"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(str(Path(path) / one.name) for one in inside)
        raise InputError(f"stop.predictor={path} holds {len(inside)} predictors; name one of {names}")
    raise InputError(
        f"stop.predictor={path}: there is no {NAME}; selfspec train predictor=logistic skip=DRAFT makes one"
    )


def load_predictors(path: Path | str) -> Predictors:
    """The predictors of `save_predictors`.

    Raises:
        InputError: if they cannot be read.
    """
    folder = find_predictors(path)
    again = "train it again"
    try:
        body = yaml.safe_load((folder / NAME).read_text(encoding="utf-8"))
        tensors = tensors_from((folder / WEIGHTS).read_bytes())
        by_source = {}
        for source, entry in body.pop("sources").items():
            kind = entry.pop("kind")
            predictor = by_source[source] = made(kind, entry)
            own = {k.removeprefix(f"{source}/"): v for k, v in tensors.items() if k.startswith(f"{source}/")}
            predictor.load_state_dict(own)
        return Predictors(by_source, body.pop("draft"), body.pop("fingerprint"), body.pop("is_tree"), body)
    except OSError as error:
        raise InputError(f"cannot read the predictor {folder} ({error.strerror}); {again}") from None
    except (yaml.YAMLError, SafetensorError, UnicodeDecodeError) as error:
        raise InputError(f"the predictor {folder} is damaged ({' '.join(str(error).split())}); {again}") from None
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{folder / NAME} is not a whole predictor ({type(error).__name__}: {why}); {again}") from None


def check_fits(path: Path | str, found: Predictors, *, draft: str, model: str, is_tree: bool) -> None:
    """Refuse predictors of another draft.

    Raises:
        InputError: if they were trained for other weights, another draft, or chains instead of trees.
    """
    if found.model != model:
        raise InputError(
            f"stop.predictor={path} is for other weights of the target ({found.about.get('model', 'unknown')}); load "
            "that model, or train a predictor for this one"
        )
    if found.draft != draft:
        raise InputError(
            f"stop.predictor={path} is for another draft ({found.about.get('skip', found.draft)}); choose that draft, "
            "or train a predictor for this one: selfspec train predictor=... skip=DRAFT"
        )
    if found.is_tree != is_tree:
        there, here = (("trees" if tree else "chains") for tree in (found.is_tree, is_tree))
        raise InputError(
            f"stop.predictor={path} was trained on {there}, and this draft is of {here}; train it with tree="
            f"{'best_first' if is_tree else 'chain'}"
        )
