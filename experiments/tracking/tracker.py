"""Trackers: they show the values of a run, keep its files, and are closed at its end.

A failing tracker loses no result: the first failure is logged, and the run goes on without the tracker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from selfspec.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns, in their present state; None and nan are empty cells."""

    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file."""

    path: Path


@dataclass(frozen=True, slots=True)
class Chart:
    """A plotly figure; it is drawn only for a tracker that shows it."""

    draw: Callable[[], Any]


Loggable = float | str | Table | Picture | Chart | None


class Tracker(Protocol):
    """Listens to one run."""

    def show(self, values: Mapping[str, Loggable]) -> None:
        """Show values that belong together, such as the values of one trial; None means a missing value."""
        ...

    def keep(self, name: str, files: Sequence[Path], *, kind: str, is_best: bool) -> None:
        """Keep the present contents of files under a name that may already hold earlier versions."""
        ...

    def finish(self, *, failed: bool = False) -> str | None:
        """End the run; a second call has no effect. Returns a line for the user if something is left to do."""
        ...


class NoTracker:
    """Ignores all calls, so that no caller checks whether there is a tracker."""

    def show(self, values: Mapping[str, Loggable]) -> None:
        """Show nothing."""

    def keep(self, name: str, files: Sequence[Path], *, kind: str, is_best: bool) -> None:
        """Keep nothing."""

    def finish(self, *, failed: bool = False) -> str | None:
        """Leave nothing to do."""
        return None


class SafeTracker:
    """Passes all calls to the tracker of `make()` until a call fails; the failure is logged once."""

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self._tracker: Tracker = NoTracker()
        try:
            self._tracker = make()
        except InputError:
            raise
        except Exception as error:  # whatever a tracker does, the run goes on
            self._give_up(error)

    def show(self, values: Mapping[str, Loggable]) -> None:
        """Show the values, unless the tracker has failed."""
        self._try(lambda: self._tracker.show(values))

    def keep(self, name: str, files: Sequence[Path], *, kind: str, is_best: bool) -> None:
        """Keep the files, unless the tracker has failed."""
        self._try(lambda: self._tracker.keep(name, files, kind=kind, is_best=is_best))

    def finish(self, *, failed: bool = False) -> str | None:
        """End the run, unless the tracker has failed; returns the tracker's line for the user."""
        return self._try(lambda: self._tracker.finish(failed=failed))

    def _try(self, call: Callable[[], str | None]) -> str | None:
        try:
            return call()
        except Exception as error:  # whatever a tracker does, the run goes on
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        log.warning("the tracker failed and is left out from here on; the run folder is complete (%s)", error)
        self._tracker = NoTracker()
