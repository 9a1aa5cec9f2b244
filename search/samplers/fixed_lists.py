"""A searcher that proposes a given list of skip sets, and two such lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search.samplers.base import Bits, BitSampler, Exhausted
from selfspec.skipping.skip_set import SkipSet, evenly_spaced

Sets = Sequence[SkipSet] | Callable[[int], Sequence[SkipSet]]


class Listed(BitSampler):
    """Proposes the sets of a list in order, projected to feasible ones, without those that have a result.

    Args:
        seed: has no effect, since the order is fixed.
        sets: the list, most promising first; or a function from the number of layers to it.
    """

    def __init__(self, seed: int = 0, *, sets: Sets) -> None:
        super().__init__(seed)
        self._sets = sets

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """The next set of the list without a result."""
        sets = self._sets(len(order[0]) // 2) if callable(self._sets) else self._sets
        for bits in (self.project(skip.bits()) for skip in sets):
            if bits not in known:
                return bits
        raise Exhausted


def uniform(n_layers: int) -> list[SkipSet]:
    """Sets of 1, 2, ... whole layers, evenly spaced, never the first or the last, up to all others."""
    return [evenly_spaced(n_layers, n) for n in range(1, n_layers - 1)]


def early_exit(n_layers: int) -> list[SkipSet]:
    """Early exits: skip layers E to the last, for E from the last layer down to 1.

    Source: Elhoushi et al. 2024, LayerSkip (arXiv:2404.16710), whose models are trained for it; other models lose much
    acceptance.
    """
    every = [frozenset(range(first, n_layers)) for first in range(n_layers - 1, 0, -1)]
    return [SkipSet(n_layers, layers, layers) for layers in every]
