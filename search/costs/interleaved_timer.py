"""Time calls in units of another call, in turn with it: most noise of a machine is drift."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from selfspec.measure.phases import Step
from selfspec.measure.stopwatch import Stopwatch

MIN_REPEATS = 5  # turns before the spread of a call means anything; chosen, not tuned
SETTLED = 0.005  # largest relative error of a settled median; chosen, not tuned


class InterleavedTimer:
    """Times calls in turn, in units of one call that runs before and after every pair of them.

    The speed of a machine drifts by a third within minutes, but the ratio of neighbouring calls hardly changes. A ratio
    is therefore computed in every turn, and the median of the ratios counts.

    Args:
        unit: the call that is the unit, such as a plain token.
        repeats: largest number of turns, after a warm-up turn.
        stopwatch: measures the seconds.
        max_s: seconds that all calls of `units` together may take; there is always one turn.
        step: called with the number of calls that are done or no longer necessary.
    """

    def __init__(
        self,
        unit: Callable[[], None],
        repeats: int,
        stopwatch: Stopwatch,
        *,
        max_s: float = math.inf,
        step: Step | None = None,
    ) -> None:
        self._unit, self._repeats, self._stopwatch, self._max_s = unit, repeats, stopwatch, max_s
        self._step = step or (lambda n=1: None)
        self._units: list[float] = []

    @property
    def unit_s(self) -> float:
        """Median seconds of the unit, over all of its calls."""
        return statistics.median(self._units)

    def units(
        self, calls: dict[str, Callable[[], None]], *, share: float = 1.0, is_warm: bool = False
    ) -> dict[str, float]:
        """The cost of each call, in units. A call whose median is settled is not repeated further.

        Args:
            calls: the calls by name.
            share: fraction of the timer's seconds that these calls may take.
            is_warm: whether the calls ran before, so that they need no warm-up.
        """
        ratios: dict[str, list[float]] = {name: [] for name in calls}
        began = self._stopwatch.now()
        if not is_warm:
            for call in (self._unit, *calls.values()):
                call()
        for turn in range(self._repeats):
            begin = self._stopwatch.now()
            self._turn({name: call for name, call in calls.items() if not is_settled(ratios[name])}, turn, ratios)
            now = self._stopwatch.now()
            if all(map(is_settled, ratios.values())) or 2 * now - begin - began > share * self._max_s:
                break
        self._step(self._repeats * len(calls) - sum(map(len, ratios.values())))
        return {name: statistics.median(values) for name, values in ratios.items()}

    def _turn(self, calls: dict[str, Callable[[], None]], turn: int, ratios: dict[str, list[float]]) -> None:
        """Time each call once, and add its ratio."""
        units = [self._seconds(self._unit)]
        for pair in _pairs(list(calls.items()), turn):
            seconds = {name: self._seconds(call) for name, call in pair}
            units.append(self._seconds(self._unit))
            for name, value in seconds.items():
                ratios[name].append(2 * value / (units[-2] + units[-1]))
            self._step(len(pair))
        self._units += units

    def _seconds(self, call: Callable[[], None]) -> float:
        began = self._stopwatch.now()
        call()
        return self._stopwatch.now() - began


def is_settled(values: Sequence[float]) -> bool:
    """Whether further values would hardly change the median: its error, from the quartiles, is below `SETTLED`."""
    if len(values) < MIN_REPEATS:
        return False
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / math.sqrt(len(values)) <= SETTLED * middle


def _pairs(items: list[tuple[str, Callable[[], None]]], turn: int) -> Iterator[list[tuple[str, Callable[[], None]]]]:
    """Pairs of calls, rotated in each turn: the first call of a pair finds the caches of a unit, and is slower."""
    first = turn % max(1, len(items))
    items = items[first:] + items[:first]
    for i in range(0, len(items), 2):
        yield items[i : i + 2]
