"""A searcher that proposes skip sets which somebody else put in order, and the two oldest such lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search.samplers.base import Bits, BitSampler, Exhausted
from selfspec.skipping.skip_set import SkipSet, evenly_spaced

Sets = Sequence[SkipSet] | Callable[[int], Sequence[SkipSet]]


class Listed(BitSampler):
    """Proposes the sets in their order, each once, made feasible; those that were told already are left out.

    Args:
        seed: has no effect, since nothing is drawn.
        sets: the most promising first; or what makes them from the number of layers.
    """

    def __init__(self, seed: int = 0, *, sets: Sets) -> None:
        super().__init__(seed)
        self._sets = sets

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """See `BitSampler`."""
        sets = self._sets(len(order[0]) // 2) if callable(self._sets) else self._sets
        for bits in (self.project(skip.bits()) for skip in sets):
            if bits not in known:
                return bits
        raise Exhausted


def uniform(n_layers: int) -> list[SkipSet]:
    """Whole layers, evenly spaced, never the first or the last: 1 of them, 2, ... up to all but those two."""
    return [evenly_spaced(n_layers, n) for n in range(1, n_layers - 1)]


def early_exit(n_layers: int) -> list[SkipSet]:
    """The draft ends after layer E - 1, and layers E to the last are left out: for E from the last layer down to 1.

    Source: Elhoushi et al. 2024, LayerSkip (arXiv:2404.16710), whose models are trained for it; others lose much.
    """
    every = [frozenset(range(first, n_layers)) for first in range(n_layers - 1, 0, -1)]
    return [SkipSet(n_layers, layers, layers) for layers in every]
