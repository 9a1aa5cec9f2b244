"""The skip sets that a search may choose from, and their names as Optuna parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search.constraints import Constraints
from selfspec.errors import InputError
from selfspec.skip import SkipSet


@dataclass(frozen=True, slots=True)
class Space:
    """All skip sets of a model of `n_layers` layers: 2·n_layers booleans, `attn_00`, `mlp_00`, `attn_01`, ...

    What the constraints do not allow can be written in these booleans all the same: it is projected before it is run.

    Raises:
        InputError: for a model without layers, or constraints that leave nothing to search.
    """

    n_layers: int
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise InputError(f"a model of {self.n_layers} layers has nothing to search")
        self.constraints.check(self.n_layers)

    @property
    def names(self) -> list[str]:
        """One parameter name per sublayer, in the order of `SkipSet.bits`."""
        return [f"{kind}_{i:02d}" for i in range(self.n_layers) for kind in ("attn", "mlp")]

    def skip(self, values: Mapping[str, Any]) -> SkipSet:
        """The skip set of parameter values: booleans, or numbers of which those above ½ are true."""
        return SkipSet.from_bits([float(values[name]) > 0.5 for name in self.names])

    def project(self, skip: SkipSet) -> SkipSet:
        """The allowed set next to `skip`: itself if it is allowed."""
        return self.constraints.project(skip)
