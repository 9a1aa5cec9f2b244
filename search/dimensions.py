"""Dimensions of the search space besides the skip set: a choice of values, or a range of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.point import Value, value_text
from selfspec.errors import InputError, unknown_name

When = Mapping[str, tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several unordered values; the first is the default."""

    values: tuple[Value, ...]

    def at(self, fraction: float) -> Value:
        """The value at a place in [0, 1], in which each value has an equal part."""
        return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]

    def place(self, value: Value) -> float:
        """The middle of the value's part of [0, 1]."""
        return (self.values.index(value) + 0.5) / len(self.values)

    def holds(self, value: Value) -> bool:
        """Whether the value is one of the choice."""
        return any(value == v and type(value) is type(v) for v in self.values)

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Values to test for validity: all."""
        return self.values


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`, an integer if both are; with `log`, uniform on a logarithmic scale."""

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.log and self.low <= 0) or not math.isfinite(self.high - self.low):
            raise InputError(
                f"low={self.low}, high={self.high}, log={self.log}: low is not above high, nor 0 or less where log"
            )

    @property
    def is_whole(self) -> bool:
        """Whether the range holds only integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, fraction: float) -> Value:
        """The value at a place in [0, 1]."""
        low, high = (self.low, self.high + 1) if self.is_whole else (self.low, self.high)
        found = low * (high / low) ** fraction if self.log else low + (high - low) * fraction
        return min(int(found), int(self.high)) if self.is_whole else min(max(found, self.low), self.high)

    def place(self, value: Value) -> float:
        """The place of a value in [0, 1]; for an integer the middle of its part."""
        assert isinstance(value, int | float)
        low, high, x = float(self.low), float(self.high), float(value)
        if self.is_whole:
            high, x = high + 1, x + 0.5
        if high == low:
            return 0.5
        return math.log(x / low) / math.log(high / low) if self.log else (x - low) / (high - low)

    def holds(self, value: Value) -> bool:
        """Whether the value lies in the range."""
        is_number = isinstance(value, int if self.is_whole else int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high  # type: ignore[operator]

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Values to test for validity: both ends."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Dimension:
    """A setting that a search chooses.

    Attributes:
        name: name of the setting: `head`, `precision`, `stop.max_draft`, ...
        domain: its possible values.
        default: its value in starts, and for searchers that see only skip sets.
        when: condition: the dimensions named here must have one of these values. Otherwise the setting is that of the
            run.
    """

    name: str
    domain: Choice | Range
    default: Value
    when: When = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.domain.holds(self.default):
            raise InputError(f"space.{self.name}: the default {value_text(self.default)} is none of its values")


def dimensions(settings: Mapping[str, Any], *, own: Mapping[str, Value] | None = None) -> tuple[Dimension, ...]:
    """The dimensions of a configuration, in an order in which each one comes after those that it depends on.

    Args:
        settings: by name `[a, b]`, `{values: [a, b]}` or `{low: 1, high: 9, log: false}`; the latter two may have
            `default` and `when: {OTHER: VALUE}`. `{stop: {max_draft: ...}}` means `stop.max_draft`.
        own: the run's own settings by name. They are the defaults of ranges that hold them; otherwise the default of a
            range is its low end.

    Raises:
        InputError: if an entry has another form, or depends on an unknown dimension or value.
    """
    found = {name: _dimension(name, body, own or {}) for name, body in _flat(settings).items()}
    for d in found.values():
        for other, values in d.when.items():
            if other not in found or other == d.name:
                raise unknown_name(f"dimension (space.{d.name}.when)", other, [n for n in found if n != d.name])
            for value in values:
                if not found[other].domain.holds(value):
                    raise InputError(f"space.{d.name}.when: {other} is never {value_text(value)}")
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(found):
        ready = [d for d in found.values() if d.name not in ordered and d.when.keys() <= ordered.keys()]
        if not ready:
            raise InputError(f"space: {', '.join(n for n in found if n not in ordered)} depend on each other")
        ordered |= {d.name: d for d in ready}
    return tuple(ordered.values())


def active(dimensions: Sequence[Dimension], values: Mapping[str, Value]) -> dict[str, Value]:
    """The values of those dimensions whose conditions are met, in the order of the dimensions."""
    found: dict[str, Value] = {}
    for d in dimensions:
        if all(other in found and found[other] in values_ for other, values_ in d.when.items()):
            found[d.name] = values[d.name]
    return found


def choices(dimensions: Sequence[Dimension], name: str, own: Any) -> list[Any]:
    """Every value that a setting may have in a search: the run's `own`, and those of its dimension."""
    found = [own]
    for d in dimensions:
        if d.name == name and isinstance(d.domain, Choice):
            found += [v for v in d.domain.values if v not in found]
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, body in settings.items():
        is_group = isinstance(body, Mapping) and not {"values", "low", "high"} & body.keys()
        found |= _flat(body, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": body}
    return found


def _dimension(name: str, body: Any, own: Mapping[str, Value]) -> Dimension:
    body = {"values": body} if isinstance(body, list | tuple) else body
    is_choice = isinstance(body, Mapping) and "values" in body
    known = {"values", "default", "when"} if is_choice else {"low", "high", "log", "default", "when"}
    if not isinstance(body, Mapping) or set(body) - known or not (is_choice or {"low", "high"} <= set(body)):
        raise InputError(
            f"space.{name}={body}; write [a, b], {{values: [a, b]}} or {{low: 1, high: 9, log: false}}, with "
            "default: and when: {OTHER: VALUE} if wanted"
        )
    when = {str(k): tuple(v) if isinstance(v, list | tuple) else (v,) for k, v in (body.get("when") or {}).items()}
    try:
        if not is_choice:
            domain = Range(body["low"], body["high"], bool(body.get("log", False)))
            default = own[name] if domain.holds(own.get(name)) else domain.low
            return Dimension(name, domain, body.get("default", default), when)
    except (InputError, TypeError) as error:
        raise InputError(f"space.{name}: {error}") from None
    values = tuple(body["values"] or ())
    if not values or len({(type(v), v) for v in values if _is_plain(v)}) < len(values):
        raise InputError(f"space.{name}={list(values)}; give one value or more, plain ones, each once")
    return Dimension(name, Choice(values), body.get("default", values[0]), when)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
