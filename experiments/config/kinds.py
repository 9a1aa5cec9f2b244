"""From a word or a value of a YAML file to the value of a setting, by the kind of the setting alone.

A word is read once, so nothing is guessed from how it looks. Kinds are annotations (`experiments.config.annotations`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from experiments.config.annotations import alternatives, bounded, is_dict, is_list, is_nested, members
from experiments.config.schema_groups import Built
from experiments.config.words import Typed, as_text, parsed
from selfspec.errors import InputError, unknown_name

WHOLE = re.compile(r"[+-]?\d+(_\d+)*")
NUMBER = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
TRUTH = {"true": True, "false": False}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}
PLURAL = {int: "whole numbers", float: "numbers", str: "texts"}


class KindError(InputError):
    """A value that a setting does not accept; `name` is that of the setting, and `value` the value or a part of it."""

    def __init__(self, name: str, value: Any, kind: Any) -> None:
        super().__init__(f"{name}={shown(value)} was asked for, but it must be {text(kind)}")
        self.name, self.value = name, value


def text(kind: Any) -> str:
    """A kind in words: `a whole number from 1 on, or null`."""
    options = alternatives(kind)
    found = [_text(o) for o in options if o is not NoneType and not (o is int and float in options)]
    return " or ".join(found) + (", or null" if NoneType in options else "")


def _text(kind: Any) -> str:
    kind, bounds = bounded(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(map(str, args[:-1])) + f" or {args[-1]}" if args[1:] else str(args[0])
    if is_list(kind):
        inner = bounded(args[0])[0] if args else Any
        return f"a list of {'lists' if is_list(inner) else PLURAL.get(inner, 'values')}: [A, B]"
    if kind in WORDS:
        most = "" if bounds is None or bounds.most is None else f" to {bounds.most:g}"
        return WORDS[kind] + ("" if bounds is None else f" from {bounds.least:g}{most or ' on'}")
    return "settings: {NAME: VALUE}"


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(inner)}" for name, inner in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def from_word(word: str, kind: Any, name: str) -> Any:
    """The value of a word for the setting `name`; a reference such as `${seed}` stays `Typed`, except in free text.

    Raises:
        InputError: if the setting does not accept it.
    """
    options = alternatives(kind)
    is_text = str in options and not (any(map(is_nested, options)) and word.lstrip().startswith(("[", "{")))
    if not is_text:
        return read(parsed(word), kind, name)
    if word == "null" and NoneType not in options:  # in quotes it is a text
        raise KindError(name, word, kind)
    return None if word == "null" else read(as_text(word), kind, name)


def read(value: Any, kind: Any, name: str) -> Any:
    """The value that a setting gets.

    Args:
        value: a plain value, or one of `experiments.config.words.parsed`.
        kind: an annotation.
        name: whole name of the setting, for errors.

    Raises:
        InputError: if the setting does not accept it.
    """
    if isinstance(value, Typed) and "${" in value and str not in alternatives(kind):
        return value
    errors = []
    for option in alternatives(kind):
        try:
            return _read(value, option, name)
        except InputError as error:
            errors += [(option, error)] if option is not NoneType else []
    for option, found in errors:  # an error of a part of the value, or of the only names, says more
        is_whole = isinstance(found, KindError) and found.value is value
        if not is_whole and (len(errors) == 1 or get_origin(option) is not Literal):
            raise found
    raise KindError(name, value, kind)


def _read(value: Any, kind: Any, name: str) -> Any:
    whole, (kind, bounds) = kind, bounded(kind)
    if kind is Any:
        return _free(value, name)
    if kind is Built or is_dataclass(kind) or is_dict(kind):
        if not isinstance(value, dict):
            raise KindError(name, value, whole)
        return _settings(value, kind, name)
    if is_list(kind):
        return _list(value, kind, name)
    if get_origin(kind) is Literal:
        known = {shown(choice): choice for choice in get_args(kind)}
        if shown(value) not in known:
            raise unknown_name(name, shown(value), list(known))
        return known[shown(value)]
    found = _scalar(value, kind)
    least, most = (bounds.least, bounds.most) if bounds else (None, None)
    is_out = found is not None and ((least is not None and found < least) or (most is not None and found > most))
    if is_out or (found is None and kind is not NoneType) or (kind is NoneType and not _is_null(value)):
        raise KindError(name, value, whole)
    return found


def _scalar(value: Any, kind: Any) -> Any:
    """The value as a kind of `WORDS`; None if it is of another kind."""
    if kind is str:
        return str(value) if isinstance(value, str) else None
    if isinstance(value, Typed):
        if kind is bool:
            return TRUTH.get(value.lower())
        form = {int: WHOLE, float: NUMBER}.get(kind)
        with suppress(ValueError):  # more digits than Python reads
            value = kind(value) if form and form.fullmatch(value) else value
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is float and isinstance(value, int | float):
        with suppress(OverflowError):
            return float(value) if math.isfinite(value) else None
    return value if kind is int and isinstance(value, int) else None


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, Typed) and value.lower() == "null")


def _free(value: Any, name: str) -> Any:
    """A value of no declared kind: a word without quotes is what it looks like."""
    if isinstance(value, dict):
        return _settings(value, dict[str, Any], name)
    if isinstance(value, list):
        return [_free(inner, name) for inner in value]
    if not isinstance(value, Typed):
        return value
    if _is_null(value):
        return None
    if NUMBER.fullmatch(value) and not WHOLE.fullmatch(value):
        return float(value)
    guesses = (_scalar(value, kind) for kind in (bool, int))
    return next((guess for guess in guesses if guess is not None), str(value))


def _list(value: Any, kind: Any, name: str) -> list[Any]:
    args = get_args(kind) or (Any,)
    is_fixed = get_origin(kind) is tuple and args[-1] is not Ellipsis
    if not isinstance(value, list | tuple) or (is_fixed and len(args) != len(value)):
        raise KindError(name, value, kind)
    return [read(inner, args[i] if is_fixed else args[0], name) for i, inner in enumerate(value)]


def _settings(value: Mapping[str, Any], kind: Any, name: str) -> dict[str, Any]:
    known, others = members(kind, value)
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in known and others is None:
            raise unknown_name("setting", f"{prefix}{key}", [f"{prefix}{other}" for other in known])
    return {key: read(inner, known.get(key, others), f"{prefix}{key}") for key, inner in value.items()}


def missing(value: Any, kind: Any, name: str = "") -> Iterator[str]:
    """The names of the settings that a value of this kind must have and lacks."""
    if not isinstance(value, dict):
        return
    known, others = members(kind, value)
    for option in filter(is_dataclass, alternatives(kind)):
        yield from (f"{name}{f.name}" for f in fields(option) if f.default is MISSING and f.name not in value)
    for key, inner in value.items():
        yield from missing(inner, known.get(key, others), f"{name}{key}.")
