"""Time calls in units of another call, in turn with it: most noise of a machine is drift."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from selfspec.measure.stopwatch import Stopwatch


class InterleavedTimer:
    """Times calls in turn, in units of one call that runs before and after every pair of them.

    The speed of a machine drifts by a third within minutes, but the ratio of neighbouring calls hardly changes. A ratio
    is therefore computed in every turn, and the median of the ratios counts.

    Args:
        unit: the call that is the unit, such as a plain token.
        repeats: number of turns, after a warm-up turn.
        stopwatch: measures the seconds.
    """

    def __init__(self, unit: Callable[[], None], repeats: int, stopwatch: Stopwatch) -> None:
        self._unit, self._repeats, self._stopwatch = unit, repeats, stopwatch
        self._units: list[float] = []

    @property
    def unit_s(self) -> float:
        """Median seconds of the unit, over all of its calls."""
        return statistics.median(self._units)

    def units(self, calls: dict[str, Callable[[], None]]) -> dict[str, float]:
        """The cost of each call, in units."""
        ratios: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(self._repeats + 1):
            units = [self._seconds(self._unit)]
            for pair in _pairs(list(calls.items()), turn):
                seconds = {name: self._seconds(call) for name, call in pair}
                units.append(self._seconds(self._unit))
                if turn:
                    for name, value in seconds.items():
                        ratios[name].append(2 * value / (units[-2] + units[-1]))
            self._units += units if turn else []
        return {name: statistics.median(values) for name, values in ratios.items()}

    def _seconds(self, call: Callable[[], None]) -> float:
        began = self._stopwatch.now()
        call()
        return self._stopwatch.now() - began


def _pairs(items: list[tuple[str, Callable[[], None]]], turn: int) -> Iterator[list[tuple[str, Callable[[], None]]]]:
    """Pairs of calls, rotated in each turn: the first call of a pair finds the caches of a unit, and is slower."""
    first = turn % max(1, len(items))
    items = items[first:] + items[:first]
    for i in range(0, len(items), 2):
        yield items[i : i + 2]
