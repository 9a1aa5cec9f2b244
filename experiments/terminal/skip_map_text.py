"""The sublayers that a set skips, in block characters for a terminal: one row for attention, one for the MLPs."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from selfspec.skipping.skip_set import SkipSet

SKIPPED, KEPT = "█", "·"


def rows(skip: SkipSet) -> tuple[str, str]:
    """Two texts with one character for each layer, the first layer first: attention, and MLPs."""
    attn, mlp = ("".join(SKIPPED if i in of else KEPT for i in range(skip.n_layers)) for of in (skip.attn, skip.mlp))
    return attn, mlp


def ruler(n_layers: int) -> str:
    """A text with the number of every tenth layer, above the character of that layer."""
    return "".join(f"{i:<10}" for i in range(0, n_layers, 10)).rstrip()


def skip_map(*sets: tuple[str, SkipSet]) -> Table:
    """The maps of labelled sets, one below the other; a layer stands in the same column of all maps."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_column(overflow="fold")
    grid.add_row("", "layer", Text(ruler(max(skip.n_layers for _, skip in sets)), style="dim"))
    for label, skip in sets:
        attn, mlp = rows(skip)
        grid.add_row(Text(label), "attention", Text(attn, style="cyan"))
        grid.add_row("", "MLP", Text(mlp, style="yellow"))
    return grid
