"""The kinds of values that settings accept, read from the schema: for messages, least numbers and free text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

from experiments.config.schema import LEAST, VERBS
from selfspec.errors import InputError, unknown_name


@dataclass(frozen=True, slots=True)
class Setting:
    """The values that a setting accepts.

    Attributes:
        kind: type of the value.
        is_optional: the value may be null.
        least: the least allowed number; None allows any.
    """

    kind: Any
    is_optional: bool
    least: float | None

    @property
    def text(self) -> str:
        """The accepted values in words: `a whole number from 1 on, or null`."""
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        found = words.get(self.kind, "a list")
        found += "" if self.least is None else f" from {self.least:g} on"
        return found + (", or null" if self.is_optional else "")

    def refusal(self, name: str, value: Any, default: Any) -> InputError:
        """The error for a value that the setting does not accept."""
        if isinstance(self.kind, type) and issubclass(self.kind, StrEnum):
            return unknown_name(name, str(value), [str(v) for v in self.kind])
        return InputError(f"{name}={value} was asked for, but it must be {self.text}; its default is {default}")


@cache
def settings(verb: str) -> dict[str, Setting]:
    """The settings of a verb with a known kind, by whole name: `searcher.n_trials`."""
    return dict(_settings(VERBS[verb]))


def _settings(schema: type, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    hints = get_type_hints(schema)
    for f in fields(schema):
        options = [kind for kind in get_args(hints[f.name]) if kind is not type(None)]
        is_optional = type(None) in get_args(hints[f.name])
        kind = options[0] if is_optional else hints[f.name]
        name = f"{prefix}{f.name}"
        if is_dataclass(kind):
            yield from _settings(kind, f"{name}.")  # type: ignore[arg-type]
        elif kind is not Any:
            yield name, Setting(kind, is_optional, f.metadata.get(LEAST))


def check_least(verb: str, cfg: DictConfig) -> None:
    """Refuse a number below the least allowed one.

    Raises:
        InputError: for the first such number.
    """
    for name, setting in settings(verb).items():
        value = OmegaConf.select(cfg, name)
        if setting.least is not None and value is not None and value < setting.least:
            raise InputError(f"{name}={value}; it is {setting.text}")


@cache
def free_text() -> frozenset[str]:
    """The settings with free text, in which commas and brackets have no meaning."""
    found = {name for verb in VERBS for name, setting in settings(verb).items() if setting.kind is str}
    return frozenset(found | {"data.path", "costs.path"})
