"""Starts of a search: skip sets that are scored before the searcher proposes any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from search.space import Space
from selfspec.errors import InputError, unknown_name
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet, deepest_attention, evenly_spaced
from selfspec.skipping.skip_set_files import load_skip_set, published, read_skip_set

N_BEST = 5  # number of sets to take from an earlier search; chosen, not tuned


def warm_starts(space: Space, kinds: Sequence[str], paths: Iterable[Path] = ()) -> list[SkipSet]:
    """The starts of these kinds and of earlier runs, in this order, projected onto the space, without repeats.

    Args:
        space: the search space.
        kinds: names in `KINDS`.
        paths: skip set files, or folders of searches (see `from_path`).

    Raises:
        InputError: for an unknown kind, or an earlier run of another model.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of start", kind, list(KINDS))
    starts = [skip for kind in kinds for skip in KINDS[kind](space.n_layers)]
    starts += [skip for path in paths for skip in from_path(path, space.n_layers)]
    return list(dict.fromkeys(map(space.project, starts)))


def nothing(n_layers: int) -> list[SkipSet]:
    """Skip nothing, which is the reference of all other sets."""
    return [SkipSet(n_layers)]


def uniform(n_layers: int) -> list[SkipSet]:
    """A quarter of the layers, evenly spaced."""
    return [evenly_spaced(n_layers, max(0, min(n_layers // 4, n_layers - 2)))]


def attention(n_layers: int) -> list[SkipSet]:
    """The attention of the deepest half."""
    return [deepest_attention(n_layers, n_layers // 2)]


def singles(n_layers: int) -> list[SkipSet]:
    """The 2·n_layers sets that skip one sublayer each; their scores are the importance map."""
    n_bits = 2 * n_layers
    return [SkipSet.from_bits([i == j for i in range(n_bits)]) for j in range(n_bits)]


def published_sets(n_layers: int) -> list[SkipSet]:
    """The skip sets that ship with this package, moved to the same relative depths in this model."""
    return list(dict.fromkeys(at_depth(load_skip_set(name), n_layers) for name in published()))


def from_path(path: Path, n_layers: int, *, n_best: int = N_BEST) -> list[SkipSet]:
    """The skip set of a file, or the best sets of an earlier search, which may be unfinished.

    Args:
        path: a file written by `save_skip_set`, or the folder of a search.
        n_layers: number of layers of the model.
        n_best: number of sets of a search, best first.

    Raises:
        InputError: if there is none, or it is for a model with another number of layers.
    """
    rows_path = path / run_files.TRIALS
    if not rows_path.is_file():
        return [read_skip_set(path, n_layers=n_layers)]
    facts = _facts(path)
    if facts.get("n_layers") != n_layers:
        model, theirs = facts.get("model", "a model"), facts.get("n_layers", "an unknown number of")
        raise InputError(
            f"{path} is a search for {model} of {theirs} layers; this model has {n_layers}: give a search of this model"
        )
    rows = [row for row in run_files.read_rows(rows_path) if row["state"] == "complete"]
    if not rows:
        raise InputError(f"{path} has no trial that was scored to its end; start from another search")
    best = sorted(rows, key=lambda row: -float(row["value"]))
    return list(dict.fromkeys(SkipSet.parse(row["skip"], n_layers) for row in best))[:n_best]


def _facts(folder: Path) -> dict[str, object]:
    """Facts of the run in its provenance."""
    path = folder / run_files.PROVENANCE
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return dict(body["run"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"cannot read {path}, so the model of {folder} is unknown; give a skip_set.yaml") from None


def at_depth(skip: SkipSet, n_layers: int) -> SkipSet:
    """The set that skips at the same relative depths in a model of `n_layers` layers."""

    def moved(layers: Iterable[int]) -> frozenset[int]:
        return frozenset(round(i * (n_layers - 1) / max(skip.n_layers - 1, 1)) for i in layers)

    return SkipSet(n_layers, moved(skip.attn), moved(skip.mlp))


KINDS: dict[str, Callable[[int], list[SkipSet]]] = {
    "nothing": nothing,
    "uniform": uniform,
    "attention": attention,
    "published": published_sets,
    "singles": singles,
}
"""Kinds of starts by name; each is a function from the number of layers to skip sets."""
