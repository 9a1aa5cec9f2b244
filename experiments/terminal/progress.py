"""Progress of a run on the terminal: done of all, time left, and what is known so far. Silent where nobody watches.

Nothing runs between two steps, not even a clock that is drawn anew: it would take its share of the seconds that the
steps measure. So the panel changes when a step ends. Log lines pass above it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Row = Mapping[str, Any]
Show = Callable[[Sequence[Row]], RenderableType]
SPEED_OVER_S = 3600.0  # of which the time left is told; longer than a step takes, so that there is always a speed


class Advance(Protocol):
    """Called when a step is done, with its row if it has one."""

    def __call__(self, row: Row | None = None) -> None: ...


@contextmanager
def progress(
    label: str,
    total: int,
    *,
    done: int = 0,
    show: Show | None = None,
    rows: Sequence[Row] = (),
    console: Console | None = None,
) -> Iterator[Advance]:
    """A live panel of `total` steps, of which `done` are done; nothing unless somebody watches a terminal.

    Args:
        label: what a step is, before its number.
        total, done: steps.
        show: what the panel tells of the rows so far, below its bar.
        rows: of the steps that are done.
        console: where it is drawn; by default standard error.
    """
    console = console or Console(stderr=True)
    if not is_watched(console):
        yield lambda row=None: None
        return
    known = list(rows)
    bar = Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        speed_estimate_period=SPEED_OVER_S,
    )
    task = bar.add_task(label, total=total, completed=done)

    def panel() -> Panel:
        return Panel(Group(bar, show(known)) if show and known else bar, border_style="dim", expand=False)

    with Live(panel(), console=console, auto_refresh=False) as live:

        def advance(row: Row | None = None) -> None:
            known.extend([row] if row else [])
            bar.advance(task)
            live.update(panel(), refresh=True)

        yield advance


def is_watched(console: Console) -> bool:
    """Whether a person may be looking: a terminal that can be redrawn, and no continuous integration."""
    return console.is_interactive and not os.environ.get("CI")
