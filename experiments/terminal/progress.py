"""Progress of a run: its phases, how far they are, and the time left; a bar on a terminal, lines in a pipe.

Trials, races and answers are drawn at once, with results so far. Any other phase is shown when it takes longer than a
few seconds. A panel changes when a step ends, and every few seconds during a long step; a thread that mostly sleeps
sees to the latter, so that the seconds that a step measures are not disturbed. Log lines appear above the panel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from selfspec.measure.phases import Step
from selfspec.measure.stopwatch import Stopwatch

Row = Mapping[str, Any]
Show = Callable[[Sequence[Row]], RenderableType]
FIRST_S, EVERY_S = 3.0, 15.0  # seconds of a phase before it is shown, and between two lines of a pipe
DRAW_S = 0.5  # seconds between two pictures of a phase with many short steps
WIDTH = 40  # columns of a bar
KNOWN = 0.02  # fraction of many short steps after which their pace is known; the first ones are slower; not tuned


class Advance(Protocol):
    """A function that callers call at the end of a step, with the row of the step if it has one."""

    def __call__(self, row: Row | None = None) -> None: ...


@dataclass(slots=True)
class _Phase:
    """A phase that goes on: `total` steps, of which `done` are finished, `before` of them in an earlier run."""

    name: str
    total: int
    began: float
    done: int = 0
    before: int = 0
    is_counted: bool = False
    show: Show | None = None
    rows: list[Row] = field(default_factory=list)
    is_shown: bool = False

    @property
    def count(self) -> str:
        """How far it is: `3/16`, or `40 %` where a single step means nothing."""
        if self.is_counted:
            return f"{self.done}/{self.total}"
        return f"{100 * self.done // self.total} %" if self.total else ""

    def left(self, now: float) -> str:
        """The time left, or the time so far if nothing can be said about it yet."""
        n_done, so_far = self.done - self.before, now - self.began
        if not n_done or (not self.is_counted and n_done < KNOWN * self.total):
            return f"{_clock(so_far)} so far"
        return f"{_clock(so_far)}, left {_clock(so_far / n_done * (self.total - self.done))}"


class Progress:
    """Shows the phases of a run, also those inside of others; called with a name and a total, it begins one (`Phases`).

    Args:
        console: where to show them; None: standard error.
        first_s, every_s: seconds of a phase before it is shown, and between two lines if nobody watches.
    """

    def __init__(self, console: Console | None = None, *, first_s: float = FIRST_S, every_s: float = EVERY_S) -> None:
        self._console = console or Console(stderr=True)
        self._is_watched = is_watched(self._console)
        self._first_s, self._every_s = first_s, every_s
        self._clock = Stopwatch()
        self._phases: list[_Phase] = []
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._drawn = self._clock.now()
        self._ended = threading.Event()

    @contextmanager
    def __call__(self, name: str, total: int) -> Iterator[Step]:
        """Begin a phase; see `Phases`."""

        def step(n: int = 1) -> None:
            phase.done = min(phase.done + n, phase.total)
            if self._is_watched and phase.is_shown and self._clock.now() - self._drawn >= DRAW_S:
                self._draw()

        with self._open(_Phase(name, total, self._clock.now())) as phase:
            yield step

    @contextmanager
    def steps(
        self, name: str, total: int, *, done: int = 0, show: Show | None = None, rows: Sequence[Row] = ()
    ) -> Iterator[Advance]:
        """A phase of steps that count, such as trials.

        Args:
            name: name of a step, shown before its number.
            total, done: numbers of steps.
            show: function that draws the rows so far below the bar.
            rows: rows of the finished steps.
        """

        def advance(row: Row | None = None) -> None:
            phase.rows.extend([row] if row else [])
            phase.done += 1
            if self._is_watched:
                self._draw()

        begun = _Phase(name, total, self._clock.now(), done, done, True, show, list(rows))
        with self._open(begun) as phase:
            if self._is_watched:
                self._draw()
            yield advance

    @contextmanager
    def _open(self, phase: _Phase) -> Iterator[_Phase]:
        with self._lock:
            self._phases.append(phase)
        if len(self._phases) == 1:
            self._ended = threading.Event()
            threading.Thread(target=self._beat, args=(self._ended,), daemon=True).start()
        try:
            yield phase
        finally:
            with self._lock:
                if self._live and not phase.is_counted:
                    self._draw()  # its last steps may have been too short for a picture
                self._phases.remove(phase)
                if not self._phases:
                    self._ended.set()
                if self._live and not any(p.is_shown for p in self._phases):
                    self._live.stop()
                    self._live = None

    def _beat(self, ended: threading.Event) -> None:
        """Show long phases while no step ends."""
        while not ended.wait(self._first_s):
            with self._lock:
                now = self._clock.now()
                old = [p for p in self._phases if now - p.began >= self._first_s]
                is_due = now - self._drawn >= self._every_s or any(not p.is_shown for p in old)
                if not old or not is_due or ended.is_set():
                    continue
                for phase in old:
                    phase.is_shown = True
                if self._is_watched:
                    self._draw()
                else:
                    self._drawn = now
                    inner = old[-1]
                    text = ", ".join(part for part in (inner.count, inner.left(now)) if part)
                    self._console.print(f"{inner.name}: {text}", markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        with self._lock:
            self._drawn = now = self._clock.now()
            shown = [p for p in self._phases if p.is_shown or p.is_counted]
            for phase in shown:
                phase.is_shown = True
            bars = Table.grid(padding=(0, 1))
            for p in shown:
                bar = ProgressBar(p.total or None, p.done, WIDTH, pulse=not p.total, animation_time=now)
                bars.add_row(p.name, p.count, bar, p.left(now))
            below = [p.show(p.rows) for p in shown if p.show and p.rows]
            panel = Panel(Group(bars, *below), border_style="dim", expand=False)
            if self._live is None:
                self._live = Live(panel, console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(panel, refresh=True)


def is_watched(console: Console) -> bool:
    """Whether a person may watch: the terminal can be redrawn and no continuous integration runs."""
    return console.is_interactive and not os.environ.get("CI")


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: `0:01:05`."""
    return str(timedelta(seconds=round(seconds)))
