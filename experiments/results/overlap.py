"""The agreement of skip sets: the sublayers that two sets share, and the sublayers of one set alone."""

from __future__ import annotations

from collections.abc import Mapping

from selfspec.measure.metrics import ratio
from selfspec.skipping.skip_set import SkipSet


def n_shared(a: SkipSet, b: SkipSet) -> int:
    """Number of sublayers that both sets skip."""
    return len(a.attn & b.attn) + len(a.mlp & b.mlp)


def jaccard(a: SkipSet, b: SkipSet) -> float:
    """Sublayers that both sets skip over sublayers that either skips, in [0, 1]; nan if neither skips any."""
    return ratio(n_shared(a, b), len(a.attn | b.attn) + len(a.mlp | b.mlp))


def only_in(sets: Mapping[str, SkipSet]) -> dict[str, SkipSet]:
    """For each labelled set the sublayers that no other set skips."""
    found = {}
    for label, skip in sets.items():
        others = [other for name, other in sets.items() if name != label]
        attn = skip.attn.difference(*(other.attn for other in others))
        found[label] = SkipSet(skip.n_layers, attn, skip.mlp.difference(*(other.mlp for other in others)))
    return found
