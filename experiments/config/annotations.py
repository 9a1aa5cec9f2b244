"""The kinds that annotations declare: those of the schema, and those of the classes that options build.

A kind is an annotation that says which plain values are accepted. `Any` stands for others (a model, a function).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from experiments.config.schema_groups import Bounds, Built, Open
from selfspec.targets import TARGET, imported

PLAIN = (bool, int, float, str, NoneType)


def members(kind: Any, value: Any) -> tuple[dict[str, Any], Any]:
    """The settings below one of this kind by name, and the kind of settings with other names; None: there are none.

    Args:
        kind: an annotation.
        value: what the setting holds; the class that it names decides.
    """
    present = dict.fromkeys(value, Any) if isinstance(value, dict) else {}
    for option in alternatives(kind):
        if is_dataclass(option):
            hints = get_type_hints(option, include_extras=True)
            own = {f.name: hints[f.name] for f in fields(option)}
            return ({**present, **own} if issubclass(option, Open) else own), None  # type: ignore[arg-type]
        if TARGET in present and (option in (Any, Built) or is_dict(option)):
            hidden = {key: Any for key in present if key.startswith("_")} | {TARGET: str}
            taken = parameters(value[TARGET])
            return ({**present, **hidden}, Any) if taken is None else ({**taken, **hidden}, None)
        if option is Built:
            return {**present, TARGET: str}, None
        if is_dict(option):
            return {}, get_args(option)[1] if get_args(option) else Any
        if option is Any and isinstance(value, dict):
            return {}, Any
    return {}, None


def parameters(target: Any) -> dict[str, Any] | None:
    """The kinds of what a class or function takes, by name; None if it takes any name, or cannot be imported."""
    try:
        built = imported(str(target), called="the class")
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
    if get_origin(annotation) is Annotated and _understood(get_args(annotation)[0], scope) is Any:
        return Any
    if get_origin(annotation) in (Literal, Annotated) or (isinstance(annotation, type) and annotation in PLAIN):
        return annotation
    if not (is_list(annotation) or is_dict(annotation) or get_origin(annotation) in (Union, UnionType)):
        return Any
    parts = tuple(part if part is Ellipsis else _understood(part, scope) for part in get_args(annotation))
    if is_list(annotation) or is_dict(annotation):
        return get_origin(annotation)[parts] if parts else annotation
    return Any if Any in parts else Union[parts]  # noqa: UP007 - of parts that are not known here


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The kinds of which a value has one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (NoneType if kind is None else kind,)


def bounded(kind: Any) -> tuple[Any, Bounds | None]:
    """The kind without its bounds, and its bounds."""
    if get_origin(kind) is not Annotated:
        return kind, None
    inner, *more = get_args(kind)
    return inner, next((m for m in more if isinstance(m, Bounds)), None)


def is_list(kind: Any) -> bool:
    """Whether values of this kind are lists."""
    return (get_origin(kind) or kind) in (list, tuple, Sequence)


def is_dict(kind: Any) -> bool:
    """Whether values of this kind are settings with any names."""
    return (get_origin(kind) or kind) in (dict, Mapping)


def is_nested(kind: Any) -> bool:
    """Whether values of this kind hold other values."""
    if get_origin(kind) in (Union, UnionType):
        return any(map(is_nested, get_args(kind)))
    return kind in (Any, Built) or is_dataclass(kind) or is_list(kind) or is_dict(kind)
