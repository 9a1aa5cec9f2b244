"""Searchers that walk from skip set to skip set, beginning with skipping nothing.

The greedy walk is a generator that requests one value at a time. For each trial it runs from its beginning with the
known values, until it requests an unknown one: that set is the proposal.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from search.samplers.base import FAILED, Bits, BitSampler, Exhausted, Unit, flipped, swaps
from selfspec.errors import InputError

Walk = Generator[Bits, float, None]  # yields a set, and receives its value

TINY = 1e-300  # avoids a division by zero
FIRST_HEAT, LAST_HEAT = 1.0, 0.01  # temperatures, in typical differences of two values; chosen, not tuned


class Greedy(BitSampler):
    """Adds the best sublayer while that helps, then tries removals and exchanges; ends if no such step helps.

    Additions are lazy: sublayers are tried in the order of their last known gain, and the first one whose new gain is
    still the largest is added. Most additions therefore need a few trials instead of one for each sublayer.

    Source: Minoux 1978, Accelerated greedy algorithms for maximizing submodular set functions. Speedup is not
    exactly submodular, so at the end every addition, removal and exchange is tried again.
    """

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """The first set of the greedy walk without a known value."""
        walk = self._walk(self.project((False,) * len(order[0])))
        try:
            wanted = next(walk)
            while wanted in known:
                wanted = walk.send(known[wanted])
        except StopIteration:
            raise Exhausted from None
        return wanted

    def _walk(self, here: Bits) -> Walk:
        value = yield here
        units = self.units(here)
        gains = dict.fromkeys(units, math.inf)  # gain of adding a unit; for a skipped one, of its addition
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
        """Add sublayers until none is expected to help, and update `gains`."""
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
        """Feasible additions, removals and exchanges; of each kind the most promising one first."""
        on = sorted((u for u in units if here[u[0]]), key=gains.__getitem__)
        off = sorted((u for u in units if not here[u[0]]), key=gains.__getitem__, reverse=True)
        steps = [*off, *on, *swaps(here, [*on, *off])]
        return [step for step in steps if self.allows(here, step)]


class Anneal(BitSampler):
    """Simulated annealing: flips or exchanges sublayers, and accepts a worse set less often as it cools down.

    The position of the walk follows from the finished trials, so it includes starts and survives an interruption. The
    random numbers of acceptance are the same for every seed, since a sampler knows only the seed of its trial; the
    proposals differ.

    Args:
        seed: seed of the trial.
        n_trials: number of trials over which it cools down.

    Source: Kirkpatrick, Gelatt and Vecchi 1983, Optimization by simulated annealing.
    """

    def __init__(self, seed: int, *, n_trials: int) -> None:
        if n_trials < 1:
            raise InputError(f"annealing over n_trials={n_trials}; it cools down over at least 1 trial")
        super().__init__(seed)
        self._n_trials = n_trials

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """A neighbour of the walk's position without a known value."""
        return self.unknown(known, self._stand(known, order), rng)

    def _stand(self, known: Mapping[Bits, float], order: Sequence[Bits]) -> Bits:
        """Position of the walk after the known trials."""
        luck = np.random.default_rng(0).random(len(order))
        steps: list[float] = []  # absolute differences, sorted
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
