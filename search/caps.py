"""The space of a search, with caps on what its drafts cost and how large they are.

Caps judge all that a draft is made of. With another head or precision a draft is another one, so what a skip set must
be then depends on the other dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from search.constraints import Constraints
from search.costs.draft_tables import DraftCosts
from search.dimensions import Dimension
from search.draft_of_point import Drafts
from search.point import Point, Value, settings_text
from search.space import Settings, Space
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet

SIZED = ("draft", "head", "precision")  # dimensions that change what a draft costs and how large it is


def capped_space(
    decoder: Decoder,
    dimensions: Sequence[Dimension],
    constraints: Mapping[str, Any],
    *,
    drafts: Drafts,
    costs: DraftCosts | None,
    context: int,
) -> Space:
    """What is searched.

    Args:
        decoder: the model.
        dimensions: besides the skip set.
        constraints: arguments of `Constraints`, without measures.
        drafts: what a point is drafted with.
        costs: of drafts; None where the objective takes the time itself.
        context: tokens, at which drafts are priced.

    Raises:
        InputError: if the constraints leave nothing to search, or cap costs that nobody measures.
    """
    dims, n_layers = tuple(dimensions), decoder.n_layers
    caps = _Caps(decoder, constraints, drafts, costs, context)
    default = Space(n_layers, dimensions=dims).point(SkipSet(n_layers))
    everywhere = caps.at(default.settings)
    sized = [d for d in dims if d.name in SIZED]
    if not sized or (everywhere.max_cost is None and everywhere.max_memory is None):
        return Space(n_layers, everywhere, dims)
    known: dict[tuple[Any, ...], Constraints] = {}

    def at(settings: Settings) -> Constraints:
        mine = {d.name: settings[d.name] for d in sized if d.name in settings}
        key = tuple(mine.items())
        if key not in known:
            known[key] = caps.at(mine)
        return known[key]

    for values in itertools.product(*(d.domain.extremes for d in sized)):
        settings = dict(zip([d.name for d in sized], values, strict=True))
        try:
            at(settings).check(n_layers)
        except InputError as error:
            raise InputError(f"space, with {settings_text(settings)}: {error}") from None
    return Space(n_layers, everywhere, dims, at)


class _Caps:
    """Constraints on drafts whose other settings have certain values."""

    def __init__(
        self, decoder: Decoder, settings: Mapping[str, Any], drafts: Drafts, costs: DraftCosts | None, context: int
    ) -> None:
        self._decoder, self._settings, self._drafts = decoder, settings, drafts
        self._costs, self._context = costs, context

    def at(self, values: Mapping[str, Value]) -> Constraints:
        """What a skip set must be where the other dimensions have these values."""
        settings, decoder, drafts = dict(self._settings), self._decoder, self._drafts
        if settings.get("max_cost") is not None:
            if self._costs is None:
                raise InputError(
                    f"constraints.max_cost={settings['max_cost']} needs a cost table, which this objective does not "
                    "measure; use objective=expected_speedup"
                )
            settings["cost"] = cache(lambda skip: self._cost(Point(skip, values)))
        if settings.get("max_memory") is not None:
            whole = decoder.weight_bytes(SkipSet(decoder.n_layers))
            settings["memory"] = cache(lambda skip: decoder.weight_bytes(drafts.outline(Point(skip, values))) / whole)
        return Constraints(**settings)

    def _cost(self, point: Point) -> float:
        assert self._costs is not None
        plan = self._drafts.outline(point)
        return self._costs.for_plan(plan).draft_cost(plan, self._context)
