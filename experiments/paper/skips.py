"""Appendix C of the paper: which sublayers each set skips; and, not in the paper, how far any two sets agree."""

from __future__ import annotations

from experiments.paper.evidence import Evidence
from experiments.paper.section import Cell, Section, Table, Value
from experiments.results import figures
from experiments.results.overlap import jaccard
from selfspec.skipping.skip_set import SkipSet

NOTE = "Jaccard overlap: sublayers that both sets skip, over those that either skips; no value where neither does."


def skip_map(evidence: Evidence) -> Section:
    """The sets of the arms and the sets that the searches returned."""
    stem, title = "skip_map", "Skip sets (App. C)"
    if not evidence.sets:
        return Section(stem, title, to_do="selfspec search, or selfspec evaluate skip=SET")
    body: list[list[Value]] = [
        [name, f"`{skip}`", len(skip.attn), len(skip.mlp), 2 * skip.n_layers] for name, skip in evidence.sets.items()
    ]
    table = Table(["set", "skip", "attention", "MLP", "of sublayers"], body)
    return Section(stem, title, table, {stem: figures.skip_map(evidence.sets)})


def overlap(evidence: Evidence) -> Section:
    """One row for every pair of different sets of one depth."""
    stem, title = "overlap", "Overlap of skip sets"
    sets = [(name, skip) for skip, name in {skip: name for name, skip in evidence.sets.items() if len(skip)}.items()]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :] if a[1].n_layers == b[1].n_layers]
    if not pairs:
        return Section(stem, title, to_do="selfspec report with two sets of one depth: sets=SET,SET")
    body: list[list[Value]] = [[a, b, *map(Cell, overlaps(x, y))] for (a, x), (b, y) in pairs]
    return Section(stem, title, Table(["set", "other set", "all", "attention", "MLP"], body), notes=[NOTE])


def overlaps(a: SkipSet, b: SkipSet) -> list[float]:
    """Jaccard indices of all sublayers, of attention and of MLP, each in [0, 1]."""
    attn, mlp = ([SkipSet(s.n_layers, attn=s.attn) for s in (a, b)], [SkipSet(s.n_layers, mlp=s.mlp) for s in (a, b)])
    return [jaccard(a, b), jaccard(*attn), jaccard(*mlp)]
