"""One row for each skip set: the table that compares the sets of searches and evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfspec.skipping.skip_set import SkipSet


def set_row(skip: SkipSet, *, run: str, model: str, data: str, objective: str, **found: Any) -> Mapping[str, Any]:
    """The row of a set: its source, its numbers, and its sublayers as columns `a0`, `m0`, `a1`, ...; 1 means skipped.

    Args:
        skip: the set.
        run, model, data, objective: source of `value`; values of two objectives cannot be compared.
        **found: `value` and other numbers.
    """
    layers = range(skip.n_layers)
    bits = {f"{kind}{i}": int(i in of) for i in layers for kind, of in (("a", skip.attn), ("m", skip.mlp))}
    about = {"run": run, "model": model, "data": data, "objective": objective, "skip": str(skip)}
    return {**about, "fraction_skipped": skip.fraction, **found, **bits}
