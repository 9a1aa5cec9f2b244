"""A point of the search space: a skip set, and values of the other dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from selfspec.skipping.skip_set import SkipSet

Value = bool | int | float | str | None
TRAINED = "trained"  # the dimension of trained drafts, which take the place of all layers


@dataclass(frozen=True, slots=True)
class Point:
    """A point that a trial scores, written as `a3,5-9 m7; head=2048 precision=int4`.

    Attributes:
        skip: the skipped sublayers.
        settings: value of each other dimension by name, without dimensions whose condition is not met.
    """

    skip: SkipSet
    settings: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def from_draft(cls, draft: SkipSet | Point) -> Point:
        """The point of a skip set without other dimensions; a point itself."""
        return draft if isinstance(draft, Point) else cls(draft)

    @classmethod
    def from_row(cls, row: Mapping[str, Any], n_layers: int) -> Point:
        """The point of a trial's row, or of a trial's attributes in the study."""
        return cls(SkipSet.parse(row["skip"], n_layers), row.get("settings") or {})

    def __hash__(self) -> int:
        return hash((self.skip, frozenset(self.settings.items())))

    def __str__(self) -> str:
        return "; ".join([str(self.skip), *([settings_text(self.settings)] if self.settings else [])])


def row_text(row: Mapping[str, Any]) -> str:
    """The point of a trial's row, as text."""
    return "; ".join([str(row["skip"]), *([settings_text(row["settings"])] if row.get("settings") else [])])


def settings_text(settings: Mapping[str, Value]) -> str:
    """Settings as text: `head=2048 precision=int4`."""
    return " ".join(f"{name}={value_text(value)}" for name, value in settings.items())


def value_text(value: Value) -> str:
    """A value as in a configuration; floats to four digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
