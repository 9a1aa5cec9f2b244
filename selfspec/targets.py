"""Values that a file names by where their class is: `{"_target_": "module.Class", ...its settings}`.

A class of the user's own module is found as one of this package is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from selfspec.errors import InputError

TARGET = "_target_"


class Named(Protocol):
    """A frozen value that can be written down."""

    def to_dict(self) -> dict[str, Any]:
        """Its settings in plain values: what its class takes by name."""
        ...


def find_class(target: str) -> Any:
    """The class that `module.Class` names.

    Raises:
        InputError: if there is none.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{TARGET}={target} names nothing that can be imported ({error}); give module.Class, in a module that "
            "Python finds"
        ) from None


def named(value: Named) -> dict[str, Any]:
    """What `revived` makes the value of again."""
    return {TARGET: f"{type(value).__module__}.{type(value).__qualname__}", **value.to_dict()}


def revived(body: Mapping[str, Any]) -> Any:
    """The value of `named`.

    Raises:
        InputError: if its class is not there, or does not take these settings.
    """
    settings = {key: value for key, value in body.items() if key != TARGET}
    found = find_class(str(body.get(TARGET)))
    try:
        return found(**settings)
    except TypeError as error:
        raise InputError(f"{body.get(TARGET)} cannot be made of {settings} ({error})") from None


def changed(value: Any, name: str, **settings: Any) -> Any:
    """A frozen dataclass with other settings.

    Args:
        value: what is changed.
        name: what the user calls it, for messages.
        **settings: by field.

    Raises:
        InputError: if it has no such field, or refuses the value.
    """
    fields = [f.name for f in dataclasses.fields(value) if f.init] if dataclasses.is_dataclass(value) else []
    for key in settings:
        if key not in fields:
            known = f"its settings are {', '.join(fields)}" if fields else "there is nothing to set"
            raise InputError(f"{name}.{key} is no setting of {type(value).__name__}; {known}")
    try:
        return dataclasses.replace(value, **settings)
    except TypeError as error:
        raise InputError(f"{name} of {settings} cannot be ({error})") from None
