"""The search space: skip sets and other dimensions, and their names as Optuna parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from search.constraints import Constraints
from search.dimensions import Dimension, active
from search.point import Point, Value
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

Settings = Mapping[str, Value]
BIT = re.compile(r"(attn|mlp)_\d+")


@dataclass(frozen=True, slots=True)
class Space:
    """All skip sets of a model of `n_layers` layers, with all values of the other dimensions.

    A skip set is 2·n_layers booleans, `attn_00`, `mlp_00`, `attn_01`, ... The booleans can express skip sets that the
    constraints exclude; these are projected before they run. A dimension whose condition is not met has a parameter as
    well, with its default.

    Attributes:
        n_layers: number of layers of the model.
        constraints: constraints of the skip sets.
        dimensions: the other dimensions, each after those that it depends on.
        constraints_at: constraints for given values of the other dimensions; None: always the same.

    Raises:
        InputError: if the model has no layers, or the constraints leave nothing to search.
    """

    n_layers: int
    constraints: Constraints = field(default_factory=Constraints)
    dimensions: tuple[Dimension, ...] = ()
    constraints_at: Callable[[Settings], Constraints] | None = None

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise InputError(f"a model of {self.n_layers} layers has nothing to search")
        self.constraints.check(self.n_layers)

    @property
    def names(self) -> list[str]:
        """One parameter name per sublayer, in the order of `SkipSet.bits`."""
        return [f"{kind}_{i:02d}" for i in range(self.n_layers) for kind in ("attn", "mlp")]

    @property
    def defaults(self) -> dict[str, Value]:
        """Default of each other dimension."""
        return {d.name: d.default for d in self.dimensions}

    def skip(self, values: Mapping[str, Any]) -> SkipSet:
        """The skip set of parameter values: booleans, or numbers where those above ½ mean true."""
        return SkipSet.from_bits([float(values[name]) > 0.5 for name in self.names])

    def point(self, skip: SkipSet, settings: Settings | None = None) -> Point:
        """The point of a skip set and settings; other dimensions have their defaults, inactive ones are left out."""
        return Point(skip, active(self.dimensions, self.defaults | dict(settings or {})))

    def project(self, skip: SkipSet) -> SkipSet:
        """The nearest allowed set to `skip`; `skip` itself if it is allowed."""
        return self.constraints.project(skip)

    def allowed(self, point: Point) -> Point:
        """The nearest allowed point to `point`, with the same settings."""
        at = self.constraints_at(point.settings) if self.constraints_at else self.constraints
        return replace(point, skip=at.project(point.skip))


def in_order(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the bits, in the order of `SkipSet.bits`, and names of the other parameters."""
    names = list(names)
    n_bits = sum(BIT.fullmatch(name) is not None for name in names)
    return Space(n_bits // 2).names if n_bits else [], [name for name in names if not BIT.fullmatch(name)]
