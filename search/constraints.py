"""Constraints of skip sets: bounds on how much is skipped, and where, and on the cost of the draft.

Every proposal is projected onto the nearest allowed skip set, so no searcher needs to know the constraints.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

GOLDEN = (math.sqrt(5) - 1) / 2
DIGITS = 12  # costs that are equal to so many digits differ only by rounding

Measure = Callable[[SkipSet], float]
Unit = tuple[int, ...]  # bits that are skipped together: one sublayer, or both of a layer
Values = tuple[float, ...]  # one for each cap


@dataclass(frozen=True, slots=True)
class Constraints:
    """The allowed skip sets of a model. Counts are of sublayers; by default every skip set is allowed.

    Attributes:
        n_skipped: exact number of skipped sublayers; None: any.
        min_skipped, max_skipped: an integer number of sublayers, or a fraction of all of them (a float in (0, 1]).
        keep_first, keep_last: number of whole layers at the ends that are never skipped.
        only: the kind that may be skipped; None: both.
        whole_layers: skip attention and MLP of a layer together or not at all.
        max_cost: largest cost of one drafted token, in plain tokens; needs `cost`.
        max_memory: largest number of weight bytes that the draft reads, as a fraction of the model's; needs `memory`.
        cost, memory: these fractions for a skip set; they must not rise if more is skipped.
        importance: loss by skipping each sublayer, in the order of `SkipSet.bits`. The least important sublayer is
            skipped first, and the most important one is restored first. Without it the choice is spread evenly over
            the model, by multiples of the golden ratio.

    Raises:
        InputError: if the settings contradict each other; `check` refuses those that contradict a model.
    """

    n_skipped: int | None = None
    min_skipped: int | float = 0
    max_skipped: int | float = 1.0
    keep_first: int = 0
    keep_last: int = 0
    only: Literal["attention", "mlp"] | None = None
    whole_layers: bool = False
    max_cost: float | None = None
    max_memory: float | None = None
    cost: Measure | None = None
    memory: Measure | None = None
    importance: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("min_skipped", "max_skipped"):
            value = getattr(self, name)
            if value < 0 or (isinstance(value, float) and value > 1):
                raise InputError(f"{name}={value}; give a whole number of sublayers, or a fraction of all up to 1.0")
        for name in ("n_skipped", "keep_first", "keep_last"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{name}={getattr(self, name)}; give 0 or more")
        if self.only not in (None, "attention", "mlp"):
            raise InputError(f"only={self.only}; give attention, mlp or null")
        if self.only and self.whole_layers:
            raise InputError(f"whole_layers skips both kinds together, but only={self.only}; leave one of them out")
        for name, measure in (("max_cost", self.cost), ("max_memory", self.memory)):
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise InputError(f"{name}={limit}; give a fraction above 0")
            if limit is not None and measure is None:
                raise InputError(f"{name}={limit}, but there are no costs of skip sets; leave it out or give costs")

    def check(self, n_layers: int) -> None:
        """Check that a model of `n_layers` layers has a nonempty allowed skip set.

        Raises:
            InputError: if no skip set is allowed, or only the empty one.
        """
        if self.importance is not None and len(self.importance) != 2 * n_layers:
            raise InputError(f"{len(self.importance)} importances for {2 * n_layers} sublayers; give one for each")
        size, (low, high) = 1 + self.whole_layers, self._range(n_layers)
        if low > high or high == 0:
            raise InputError(
                f"the constraints ask for {max(low, 1) * size} or more skipped sublayers, but leave at most "
                f"{high * size} of {2 * n_layers}; loosen them"
            )
        self._cheapest(n_layers)

    def allows(self, skip: SkipSet) -> bool:
        """Whether `skip` meets all constraints."""
        units, (low, high) = self._units(skip.n_layers), self._range(skip.n_layers)
        bits = skip.bits()
        n_units = sum(all(bits[i] for i in unit) for unit in units)
        is_made_of_units = n_units * (1 + self.whole_layers) == len(skip)
        return is_made_of_units and low <= n_units <= high and _excess(self._over(skip)) == 0

    def project(self, skip: SkipSet) -> SkipSet:
        """The nearest allowed set to `skip`, which is `skip` itself if it is allowed. Deterministic and idempotent.

        Sublayers that may not be skipped are restored; with `whole_layers`, so is every other layer of which only one
        sublayer is skipped. Then as few sublayers as possible are restored or skipped to meet the bounds. If the draft
        costs too much, more is skipped, the largest saving first; if no more may be skipped, small savings are
        exchanged for large ones.

        Raises:
            InputError: if no set is allowed (see `check`).
        """
        if self.allows(skip):
            return skip
        bits, size, (low, high) = skip.bits(), 1 + self.whole_layers, self._range(skip.n_layers)
        skipped = {unit: sum(bits[i] for i in unit) for unit in self._units(skip.n_layers)}
        units = sorted(skipped, key=lambda unit: (-skipped[unit], self._turn(unit)))
        n_units = min(max(sum(skipped.values()) // size, low), high)
        found = self._cheapen(skip.n_layers, units, n_units)
        return self._cheapest(skip.n_layers) if found is None else found

    def _units(self, n_layers: int) -> list[Unit]:
        """The units that may be skipped."""
        layers = range(self.keep_first, n_layers - self.keep_last)
        if self.whole_layers:
            return [(2 * i, 2 * i + 1) for i in layers]
        kinds = {None: (0, 1), "attention": (0,), "mlp": (1,)}[self.only]
        return [(2 * i + kind,) for i in layers for kind in kinds]

    def _range(self, n_layers: int) -> tuple[int, int]:
        """Smallest and largest number of skipped units."""
        low, high = (
            round(bound * 2 * n_layers, 9) if isinstance(bound, float) else bound
            for bound in (self.min_skipped, self.max_skipped)
        )
        if self.n_skipped is not None:
            low, high = max(low, self.n_skipped), min(high, self.n_skipped)
        size = 1 + self.whole_layers
        return math.ceil(low / size), min(math.floor(high / size), len(self._units(n_layers)))

    def _turn(self, unit: Unit) -> float:
        """Rank of a unit; units with smaller ranks are skipped first."""
        if self.importance is not None:
            return sum(self.importance[i] for i in unit)
        return unit[0] // len(unit) * GOLDEN % 1  # so the first k units are spread evenly over the model

    @property
    def _caps(self) -> list[tuple[str, float, Measure]]:
        caps = (("max_cost", self.max_cost, self.cost), ("max_memory", self.max_memory, self.memory))
        return [(name, limit, measure) for name, limit, measure in caps if limit is not None and measure is not None]

    def _over(self, skip: SkipSet) -> Values:
        """Excess over each cap; negative if the cap holds."""
        return tuple(round(measure(skip) - limit, DIGITS) for _, limit, measure in self._caps)

    def _savings(self, units: Sequence[Unit], n_layers: int) -> dict[Unit, Values]:
        """Saving by skipping each unit alone, for each cap."""
        full = self._over(SkipSet(n_layers))
        return {unit: _sum(full, self._over(_set(n_layers, [unit])), sign=-1) for unit in units}

    def _cheapen(self, n_layers: int, units: Sequence[Unit], n_units: int) -> SkipSet | None:
        """The first `n_units` units, changed until all caps hold; None if no change reduces the excess."""
        taken = list(units[:n_units])
        found = _set(n_layers, taken)
        over = self._over(found)
        if _excess(over) == 0:
            return found
        saving = self._savings(units, n_layers)
        _, high = self._range(n_layers)
        while _excess(over) > 0:
            # Of units with the same saving only the first one is tried.
            new = {saving[unit]: unit for unit in reversed(units) if unit not in taken}
            old = {saving[unit]: unit for unit in taken} if len(taken) >= high else {(0.0,) * len(over): None}
            if not new:
                return None
            pairs = itertools.product(new, old)
            saved, lost = min(pairs, key=lambda pair: _excess(_sum(_sum(over, pair[0], sign=-1), pair[1])))
            taken = [*(unit for unit in taken if unit != old[lost]), new[saved]]
            before, found = over, _set(n_layers, taken)
            over = self._over(found)
            if _excess(over) >= _excess(before):
                return None
        return found

    def _cheapest(self, n_layers: int) -> SkipSet:
        """The set with as many skipped units as allowed, and the largest savings.

        Raises:
            InputError: if a cap does not hold even then.
        """
        _, high = self._range(n_layers)
        units = self._units(n_layers)
        saving = self._savings(units, n_layers)
        units.sort(key=lambda unit: (-sum(saving[unit]), self._turn(unit)))
        found = self._cheapen(n_layers, units, high)
        if found is None:
            most = _set(n_layers, units[:high])
            limits = " and ".join(
                f"{name}={limit}, where skipping {len(most)} sublayers, all that may be, leaves {measure(most):.3f}"
                for name, limit, measure in self._caps
            )
            raise InputError(f"no draft is cheap enough for {limits}; raise it, or loosen the other constraints")
        return found


def _set(n_layers: int, units: Iterable[Unit]) -> SkipSet:
    skipped = {i for unit in units for i in unit}
    return SkipSet.from_bits([i in skipped for i in range(2 * n_layers)])


def _sum(a: Values, b: Values, *, sign: int = 1) -> Values:
    return tuple(round(x + sign * y, DIGITS) for x, y in zip(a, b, strict=True))


def _excess(over: Values) -> float:
    """Total excess over the caps."""
    return sum(max(0.0, value) for value in over)
