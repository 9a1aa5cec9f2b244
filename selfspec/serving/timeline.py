"""The time of a simulation: measured work without the waits, the real time, or seconds that an engine tells.

A wait for the next request takes no time of the machine if the simulation is not real: the clock jumps there.
"""

from __future__ import annotations

import threading
from typing import Protocol

from selfspec.measure.stopwatch import Stopwatch


class Timeline(Protocol):
    """Seconds since the simulation began."""

    def now(self) -> float:
        """Seconds since the begin."""
        ...

    def wait_until(self, at_s: float) -> None:
        """Return when it is `at_s`, or at once if it is later already."""
        ...


class MeasuredTime:
    """Work takes the seconds that it takes here; a wait is skipped.

    Args:
        watch: measures the seconds.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self._began, self._skipped = watch, watch.now(), 0.0

    def now(self) -> float:
        """Seconds of work, and those of waits that were skipped."""
        return self._watch.now() - self._began + self._skipped

    def wait_until(self, at_s: float) -> None:
        """Skip the seconds up to `at_s`."""
        self._skipped += max(0.0, at_s - self.now())


class RealTime:
    """Work and waits take the seconds that they take.

    Args:
        watch: measures the seconds.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self._began = watch, watch.now()

    def now(self) -> float:
        """Seconds since the begin."""
        return self._watch.now() - self._began

    def wait_until(self, at_s: float) -> None:
        """Sleep up to `at_s`."""
        if (left := at_s - self.now()) > 0:
            threading.Event().wait(left)


class SimulatedTime:
    """Nothing takes time by itself; an engine tells the seconds of its work.

    Attributes:
        seconds: since the begin.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Seconds that were told, and those of waits."""
        return self.seconds

    def wait_until(self, at_s: float) -> None:
        """Jump to `at_s`."""
        self.seconds = max(self.seconds, at_s)

    def spend(self, seconds: float) -> None:
        """Work of this length was done."""
        self.seconds += seconds
