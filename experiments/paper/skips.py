"""Appendix C of the paper: which sublayers each set skips; and beyond it, how far any two sets agree."""

from __future__ import annotations

from collections.abc import Iterable

from experiments import figures
from experiments.paper.evidence import Evidence
from experiments.paper.section import Cell, Section, Table, Value
from selfspec.metrics import ratio
from selfspec.skip import SkipSet

NOTE = "Jaccard overlap: sublayers that both sets skip, over those that either skips; no value where neither does."


def skip_map(evidence: Evidence) -> Section:
    """The sets of the arms, and what the searches handed on."""
    stem, title = "skip_map", "Skip sets (App. C)"
    if not evidence.sets:
        return Section(stem, title, to_do="selfspec search, or selfspec evaluate skip=SET")
    body: list[list[Value]] = [
        [name, f"`{skip}`", len(skip.attn), len(skip.mlp), 2 * skip.n_layers] for name, skip in evidence.sets.items()
    ]
    table = Table(["set", "skip", "attention", "MLP", "of sublayers"], body)
    return Section(stem, title, table, {stem: figures.skip_map(evidence.sets)})


def overlap(evidence: Evidence) -> Section:
    """Every pair of different sets of one depth."""
    stem, title = "overlap", "Overlap of skip sets"
    sets = [(name, skip) for skip, name in {skip: name for name, skip in evidence.sets.items() if len(skip)}.items()]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :] if a[1].n_layers == b[1].n_layers]
    if not pairs:
        return Section(stem, title, to_do="selfspec report with two sets of one depth: sets=SET,SET")
    body: list[list[Value]] = [[a, b, *map(Cell, jaccard(x, y))] for (a, x), (b, y) in pairs]
    return Section(stem, title, Table(["set", "other set", "all", "attention", "MLP"], body), notes=[NOTE])


def jaccard(a: SkipSet, b: SkipSet) -> tuple[float, float, float]:
    """Overlap of all sublayers, of attention and of MLP, in [0, 1]; nan where neither skips any."""
    attn, mlp = _counts(a.attn, b.attn), _counts(a.mlp, b.mlp)
    return ratio(attn[0] + mlp[0], attn[1] + mlp[1]), ratio(*attn), ratio(*mlp)


def _counts(a: Iterable[int], b: Iterable[int]) -> tuple[int, int]:
    return len(set(a) & set(b)), len(set(a) | set(b))
