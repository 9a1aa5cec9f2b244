"""How skip sets agree: what two of them share, and what one has that no other has. Knows sets alone."""

from __future__ import annotations

from collections.abc import Mapping

from selfspec.measure.metrics import ratio
from selfspec.skipping.skip_set import SkipSet


def n_shared(a: SkipSet, b: SkipSet) -> int:
    """Sublayers that both skip."""
    return len(a.attn & b.attn) + len(a.mlp & b.mlp)


def jaccard(a: SkipSet, b: SkipSet) -> float:
    """Sublayers that both skip over those that either skips, in [0, 1]; nan where neither skips any."""
    return ratio(n_shared(a, b), len(a.attn | b.attn) + len(a.mlp | b.mlp))


def only_in(sets: Mapping[str, SkipSet]) -> dict[str, SkipSet]:
    """What each of the labelled sets skips that none of the others does."""
    found = {}
    for label, skip in sets.items():
        others = [other for name, other in sets.items() if name != label]
        attn = skip.attn.difference(*(other.attn for other in others))
        found[label] = SkipSet(skip.n_layers, attn, skip.mlp.difference(*(other.mlp for other in others)))
    return found
