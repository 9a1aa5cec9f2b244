"""One row per skip set: the table in which the sets of searches and evaluations are put side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfspec.skipping.skip_set import SkipSet


def set_row(skip: SkipSet, *, run: str, model: str, data: str, objective: str, **found: Any) -> Mapping[str, Any]:
    """Whose set it is, what was found of it, and its sublayers as columns: `a0`, `m0`, `a1`, ...; 1 is skipped.

    Args:
        skip: the set.
        run, model, data, objective: where `value` comes from; values of two objectives cannot be compared.
        **found: `value` and other numbers.
    """
    layers = range(skip.n_layers)
    bits = {f"{kind}{i}": int(i in of) for i in layers for kind, of in (("a", skip.attn), ("m", skip.mlp))}
    about = {"run": run, "model": model, "data": data, "objective": objective, "skip": str(skip)}
    return {**about, "fraction_skipped": skip.fraction, **found, **bits}
