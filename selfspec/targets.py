"""Find a class by its import path, and change settings of a frozen value.

Classes of a user's own module are found in the same way as those of this package.
"""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import Any

from selfspec.errors import InputError

TARGET = "_target_"
# Module names in files written before 2026-11-28, and the modules that hold these classes and functions now.
MOVED = {
    "selfspec.stop": "selfspec.stopping",
    "selfspec.tree_shapes": "selfspec.drafters.tree_shapes",
    **{
        f"selfspec.tasks.{name}": f"selfspec.data.{name}"
        for name in ("cnndm", "gsm8k", "humaneval", "jsonl", "mbpp", "mini", "mtbench", "source", "specbench", "xsum")
    },
    "search.samplers": "search.samplers.optuna_samplers",
    "search.listed": "search.samplers.fixed_lists",
    "search.paper": "search.samplers.draft_verify",
    **{f"search.{name}": f"search.samplers.{name}" for name in ("quadratic", "local", "knapsack", "clasp")},
}


def first(target: str) -> str:
    """The inverse of `current`: the name in files of every version that describe the same thing."""
    module, _, name = target.rpartition(".")
    return f"{next((old for old, new in MOVED.items() if new == module), module)}.{name}"


def current(target: str) -> str:
    """The current import path of `module.Class`; paths of earlier versions are translated."""
    module, _, name = target.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else target


def imported(target: str, *, called: str) -> Any:
    """The object at the import path `module.name`.

    Args:
        target: the import path.
        called: what the message calls it.

    Raises:
        InputError: if it cannot be imported.
    """
    module, _, name = current(target).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{called} cannot be imported ({error}); name the folder of its file by --config-dir, or run where the "
            "file lies"
        ) from None


def find_class(target: str, *, method: str) -> Any:
    """The class at the import path `module.Class`.

    Args:
        target: the import path.
        method: name of a method that the class must have.

    Raises:
        InputError: if there is no such class, or it lacks the method.
    """
    found = imported(target, called=target)
    if not (isinstance(found, type) and callable(getattr(found, method, None))):
        raise InputError(f"{target} is not a class with a method {method}")
    return found


def changed(value: Any, name: str, **settings: Any) -> Any:
    """A copy of a frozen dataclass with other settings.

    Args:
        value: the dataclass.
        name: its name in configurations, for messages.
        **settings: new values by field.

    Raises:
        InputError: if there is no such field, or the value is invalid.
    """
    fields = [f.name for f in dataclasses.fields(value) if f.init] if dataclasses.is_dataclass(value) else []
    for key in settings:
        if key not in fields:
            known = f"its settings are {', '.join(fields)}" if fields else "there is nothing to set"
            raise InputError(f"{name}.{key} is not a setting of {type(value).__name__}; {known}")
    try:
        return dataclasses.replace(value, **settings)
    except TypeError as error:
        raise InputError(f"{name} cannot have {settings} ({error})") from None
