"""Searchers that walk from skip set to skip set, beginning with skipping nothing.

A greedy walk is an algorithm that asks for one value at a time. It is run from its beginning for each trial, against
what is known, until it asks for a value that nobody knows: that set is the proposal.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from search.samplers.base import FAILED, Bits, BitSampler, Exhausted, Unit, flipped, swaps
from selfspec.errors import InputError

Walk = Generator[Bits, float, None]  # yields a set, is sent its value

TINY = 1e-300  # keeps a division by no heat a number
FIRST_HEAT, LAST_HEAT = 1.0, 0.01  # temperatures, in typical differences of two values; chosen, not tuned


class Greedy(BitSampler):
    """Adds the best sublayer while that helps, then tries removals, then exchanges; ends where no such step helps.

    Additions are lazy: sublayers are tried in the order of the gain they had when they were last tried, and the first
    one whose gain stays on top is taken, so that most additions cost a few trials instead of one per sublayer.

    Source: Minoux 1978, Accelerated greedy algorithms for maximizing submodular set functions. Speedup is not quite
    submodular, so the end is checked: every addition, removal and exchange is tried afresh.
    """

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """See `BitSampler`."""
        walk = self._walk(self.project((False,) * len(order[0])))
        try:
            asked = next(walk)
            while asked in known:
                asked = walk.send(known[asked])
        except StopIteration:
            raise Exhausted from None
        return asked

    def _walk(self, here: Bits) -> Walk:
        value = yield here
        units = self.units(here)
        gains = dict.fromkeys(units, math.inf)  # of adding or, where it is skipped, of having added it
        while True:
            here, value = yield from self._add(here, value, gains)
            for step in self._steps(here, units, gains):
                near = yield (there := flipped(here, step))
                if near > value:
                    here, value = there, near
                    break
            else:
                return

    def _add(self, here: Bits, value: float, gains: dict[Unit, float]) -> Generator[Bits, float, tuple[Bits, float]]:
        """Add sublayers until none is expected to help; `gains` learns what each was worth."""
        while True:
            fresh: dict[Unit, float] = {}
            units = [u for u in gains if not here[u[0]] and self.allows(here, u)]
            while (best := max(units, key=gains.__getitem__, default=None)) not in fresh:
                if best is None or gains[best] <= 0:
                    return here, value
                fresh[best] = yield flipped(here, best)
                gains[best] = fresh[best] - value if value > FAILED else fresh[best]
            if gains[best] <= 0:
                return here, value
            here, value = flipped(here, best), fresh[best]

    def _steps(self, here: Bits, units: Sequence[Unit], gains: Mapping[Unit, float]) -> list[Unit]:
        """Additions, removals and exchanges that may be run, the most promising of each first."""
        on = sorted((u for u in units if here[u[0]]), key=gains.__getitem__)
        off = sorted((u for u in units if not here[u[0]]), key=gains.__getitem__, reverse=True)
        steps = [*off, *on, *swaps(here, [*on, *off])]
        return [step for step in steps if self.allows(here, step)]


class Anneal(BitSampler):
    """Simulated annealing: flips or exchanges sublayers, and keeps a worse set the less readily the later it is.

    Where the walk stands follows from what was told, so it takes in starts and survives an interruption. Chance enters
    what is kept by the same numbers for every seed, since a sampler knows no more than the seed of its trial; what is
    proposed differs.

    Args:
        seed: of the trial.
        n_trials: over which it cools down.

    Source: Kirkpatrick, Gelatt and Vecchi 1983, Optimization by simulated annealing.
    """

    def __init__(self, seed: int, *, n_trials: int) -> None:
        if n_trials < 1:
            raise InputError(f"annealing over n_trials={n_trials}; it cools down over at least 1 trial")
        super().__init__(seed)
        self._n_trials = n_trials

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """See `BitSampler`."""
        return self.unknown(known, self._stand(known, order), rng)

    def _stand(self, known: Mapping[Bits, float], order: Sequence[Bits]) -> Bits:
        """Where the walk is after what was told."""
        luck = np.random.default_rng(0).random(len(order))
        steps: list[float] = []  # sizes of differences, rising
        here = order[0]
        for k, there in enumerate(order[1:]):
            change = known[there] - known[here] if known[here] > FAILED else math.inf
            if math.isfinite(change):
                bisect.insort(steps, abs(change))
            heat = FIRST_HEAT * (LAST_HEAT / FIRST_HEAT) ** min(1.0, k / self._n_trials)
            typical = steps[len(steps) // 2] if steps else 0.0
            if change >= 0 or luck[k] < math.exp(change / max(heat * typical, TINY)):
                here = there
        return here
