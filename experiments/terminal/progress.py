"""Progress of a run on the terminal: finished steps, time left, and results so far. It is silent if nobody watches.

The panel changes only when a step ends: a clock that runs during a step would disturb the seconds that the step
measures. Log lines appear above the panel.
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
SPEED_OVER_S = 3600.0  # seconds over which the speed is averaged; longer than a step, so that a speed always exists


class Advance(Protocol):
    """A function that callers call at the end of a step, with the row of the step if it has one."""

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
    """A live panel of `total` steps, of which `done` are finished; it draws nothing unless somebody watches.

    Args:
        label: name of a step, shown before its number.
        total, done: numbers of steps.
        show: function that draws the rows so far below the bar.
        rows: rows of the finished steps.
        console: console of the panel; None means standard error.
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
    """Whether a person may watch: the terminal can be redrawn and no continuous integration runs."""
    return console.is_interactive and not os.environ.get("CI")
