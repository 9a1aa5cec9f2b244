"""The kinds of values that settings accept, read from annotations: those of the schema, and those of the classes that
options build.

A word is read once, by the kind of its setting, so nothing is guessed from how it looks. A value of a YAML file is
checked by the same rules. A kind that is no plain value (a model, a function) accepts everything.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

from experiments.config.schema_groups import Bounds, Built, Open
from experiments.config.words import Typed, as_text, parsed
from selfspec.errors import InputError, unknown_name
from selfspec.targets import TARGET, current

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
    options = _options(kind)
    found = [_text(o) for o in options if o is not NoneType and not (o is int and float in options)]
    return " or ".join(found) + (", or null" if NoneType in options else "")


def _text(kind: Any) -> str:
    kind, bounds = _bounded(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(map(str, args[:-1])) + f" or {args[-1]}" if args[1:] else str(args[0])
    if _is_list(kind):
        inner = _bounded(args[0])[0] if args else Any
        return f"a list of {'lists' if _is_list(inner) else PLURAL.get(inner, 'values')}: [A, B]"
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
    options = _options(kind)
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
    if isinstance(value, Typed) and "${" in value and str not in _options(kind):
        return value
    errors = []
    for option in _options(kind):
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
    whole, (kind, bounds) = kind, _bounded(kind)
    if kind is Any:
        return _free(value, name)
    if kind is Built or is_dataclass(kind) or _is_dict(kind):
        if not isinstance(value, dict):
            raise KindError(name, value, whole)
        return _settings(value, kind, name)
    if _is_list(kind):
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
    for option in filter(is_dataclass, _options(kind)):
        yield from (f"{name}{f.name}" for f in fields(option) if f.default is MISSING and f.name not in value)
    for key, inner in value.items():
        yield from missing(inner, known.get(key, others), f"{name}{key}.")


def members(kind: Any, value: Any) -> tuple[dict[str, Any], Any]:
    """The settings below one of this kind by name, and the kind of settings with other names; None: there are none.

    Args:
        kind: an annotation.
        value: what the setting holds; the class that it names decides.
    """
    present = dict.fromkeys(value, Any) if isinstance(value, dict) else {}
    for option in _options(kind):
        if is_dataclass(option):
            hints = get_type_hints(option, include_extras=True)
            own = {f.name: hints[f.name] for f in fields(option)}
            return ({**present, **own} if issubclass(option, Open) else own), None  # type: ignore[arg-type]
        if TARGET in present and (option in (Any, Built) or _is_dict(option)):
            hidden = {key: Any for key in present if key.startswith("_")} | {TARGET: str}
            taken = parameters(value[TARGET])
            return ({**present, **hidden}, Any) if taken is None else ({**taken, **hidden}, None)
        if option is Built:
            return present, None
        if _is_dict(option):
            return {}, get_args(option)[1] if get_args(option) else Any
        if option is Any and isinstance(value, dict):
            return {}, Any
    return {}, None


def parameters(target: Any) -> dict[str, Any] | None:
    """The kinds of what a class or function takes, by name; None if it takes any name, or cannot be imported."""
    try:
        built = get_object(current(str(target)))
        taken = inspect.signature(built).parameters.values()
    except Exception:  # what builds it tells the reason
        return None
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        return None
    homes = [sys.modules[c.__module__] for c in reversed(getattr(built, "__mro__", (built,)))]
    scope = {name: value for home in homes for name, value in vars(home).items()}
    return {p.name: _understood(p.annotation, scope) for p in taken}


def passed_on(tree: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The settings that an option passes on to a class by a reference, with the kind that the class declares."""
    if not isinstance(tree, dict):
        return
    kinds = (parameters(tree[TARGET]) or {}) if TARGET in tree else {}
    for key, value in tree.items():
        yield from passed_on(value, (*at, key))
        if key in kinds and isinstance(value, str) and (found := re.fullmatch(r"\$\{(\.*)([\w.]+)\}", value)):
            up = at[: len(at) + 1 - len(found[1])] if found[1] else ()
            yield ".".join((*up, found[2])), kinds[key]


def _understood(annotation: Any, scope: dict[str, Any]) -> Any:
    """An annotation that says which plain values are accepted; `Any` in place of others."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, scope)  # a class may postpone its annotations
        except Exception:  # a name for type checkers only
            return Any
    if annotation in (Path, None):
        return str if annotation else NoneType
    if get_origin(annotation) in (Literal, Annotated) or (isinstance(annotation, type) and annotation in WORDS):
        return annotation
    if not (_is_list(annotation) or _is_dict(annotation) or get_origin(annotation) in (Union, UnionType)):
        return Any
    parts = tuple(part if part is Ellipsis else _understood(part, scope) for part in get_args(annotation))
    if _is_list(annotation) or _is_dict(annotation):
        return get_origin(annotation)[parts] if parts else annotation
    return Any if Any in parts else Union[parts]  # noqa: UP007 - of parts that are not known here


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (NoneType if kind is None else kind,)


def _bounded(kind: Any) -> tuple[Any, Bounds | None]:
    if get_origin(kind) is not Annotated:
        return kind, None
    inner, *more = get_args(kind)
    return inner, next((m for m in more if isinstance(m, Bounds)), None)


def _is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (list, tuple, Sequence)


def _is_dict(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (dict, Mapping)


def is_nested(kind: Any) -> bool:
    """Whether values of this kind hold other values."""
    if get_origin(kind) in (Union, UnionType):
        return any(map(is_nested, get_args(kind)))
    return kind in (Any, Built) or is_dataclass(kind) or _is_list(kind) or _is_dict(kind)
