"""Skip sets on disk: a small YAML file with the name of the model and the origin of the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from selfspec.errors import InputError
from selfspec.records.run_files import write_text
from selfspec.skipping.skip_set import SkipSet

NAME = "skip_set.yaml"


def save_skip_set(path: Path | str, skip: SkipSet, *, model: str, **provenance: Any) -> None:
    """Write `skip`, the name of its model, and facts about its origin (objective, value, run, date)."""
    body = {
        "model": model,
        "n_layers": skip.n_layers,
        "attn": sorted(skip.attn),
        "mlp": sorted(skip.mlp),
        "skip": str(skip),
        **provenance,
    }
    write_text(
        Path(path), yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    )


def read_skip_set(path: Path, *, n_layers: int | None = None) -> SkipSet:
    """The skip set of a file written by `save_skip_set`, or of the folder of such a file.

    Args:
        path: the file, or its folder.
        n_layers: number of layers of the model, if known.

    Raises:
        InputError: if it cannot be read, or is for another number of layers.
    """
    file = path / NAME if path.is_dir() else path
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the skip set {file} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{file} is not YAML; a skip set has the keys model, n_layers, attn and mlp") from None
    if not isinstance(body, Mapping) or not {"n_layers", "attn", "mlp"} <= set(body):
        raise InputError(f"{file} is not a skip set; one has the keys model, n_layers, attn and mlp")
    layers = body["attn"], body["mlp"]
    if not (type(body["n_layers"]) is int and all(map(_is_numbers, layers))):
        raise InputError(f"{file} is not a skip set: n_layers must be a whole number, attn and mlp lists of such")
    if n_layers is not None and body["n_layers"] != n_layers:
        raise InputError(
            f"{file} is for {body.get('model', 'a model')} of {body['n_layers']} layers; this model has {n_layers}: "
            "search one for this model"
        )
    try:
        return SkipSet(body["n_layers"], frozenset(body["attn"]), frozenset(body["mlp"]))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


def published() -> list[str]:
    """The names of the skip sets that ship with this package, `model/system`."""
    root = resources.files("selfspec").joinpath("published")
    return sorted(f"{m.name}/{f.name.removesuffix('.yaml')}" for m in root.iterdir() if m.is_dir() for f in m.iterdir())


def load_skip_set(name: str | Path, *, n_layers: int | None = None) -> SkipSet:
    """A published skip set by name, or the set of a file or folder.

    Args:
        name: `llama-2-13b/draft-and-verify`, or a path.
        n_layers: number of layers of the model, if known.

    Raises:
        InputError: if there is no such set, or it is for another number of layers.
    """
    path = Path(name).expanduser()
    if path.exists():
        return read_skip_set(path, n_layers=n_layers)
    names = published()
    if str(name) not in names:
        raise unknown_draft(str(name))
    with resources.as_file(resources.files("selfspec").joinpath(f"published/{name}.yaml")) as file:
        return read_skip_set(file, n_layers=n_layers)


def unknown_draft(name: str, *, runs: Sequence[str] | None = None) -> InputError:
    """The error for a name that stands for no draft, with the nearest name that does.

    Args:
        name: as the user wrote it.
        runs: names of the runs that were looked through, where runs may be named too.
    """
    near = get_close_matches(name, [*published(), *(runs or ())], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    kinds = "no such file or folder, no published set" + ("" if runs is None else ", no run")
    shown = "" if runs is None else "; `selfspec runs list` shows the runs"
    return InputError(
        f"unknown draft {name!r}: {kinds}; {hint}a set is written like 'a3,5-9 m7', and published are "
        f"{', '.join(published())}{shown}"
    )
