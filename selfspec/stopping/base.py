"""Base classes of stop rules: conversion to and from plain values, and defaults.

A rule of this package is written with its name, `{"name": "threshold", "max_draft": 12, "threshold": 0.6}`. A rule from
elsewhere is written with its import path, `{"_target_": "rules.Patient", "max_draft": 12}`.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from selfspec.errors import InputError, unknown_name
from selfspec.stopping.protocol import Evidence, StopPolicy, StopState
from selfspec.targets import TARGET, imported

NAME = "name"


class StopRule:
    """Base of a stop rule, which is a frozen dataclass with `max_draft` and `begin`.

    Example:
        @dataclass(frozen=True)
        class Patient(StopRule):
            max_draft: int
            least: float

            def begin(self, after: StopState | None = None) -> StopState:
                return Waiting(self)

        @dataclass
        class Waiting(RuleState):
            rule: Patient

            def more(self, n_drafted: int, confidence: float) -> bool:
                return n_drafted < self.rule.max_draft and confidence > self.rule.least
    """

    __slots__ = ()
    needs_confidence: ClassVar[bool] = True
    evidence: ClassVar[Evidence] = "probability"
    former_name: ClassVar[str | None] = None  # in files written by earlier versions
    former_settings: ClassVar[Mapping[str, str]] = MappingProxyType({})  # earlier name of a setting -> its name

    if TYPE_CHECKING:  # each rule has this field; at run time a property would become the field's default

        @property
        def max_draft(self) -> int: ...

    def begin(self, after: StopState | None = None) -> StopState:
        """A state for a new prompt; every rule implements it."""
        raise NotImplementedError(f"{type(self).__name__} has no begin")

    def variants(self) -> Sequence[StopPolicy]:
        """Nothing: by default a rule has no other settings to try."""
        return ()

    def free(self) -> StopPolicy:
        """The rule for drafts that take no forward: itself, unless it weighs the cost of one."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Name or import path of the rule, and its settings."""
        held = {f: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]
        # an optional part that a rule lacks is not written
        settings = {f.name: _plain(v) for f, v in held.items() if not (v is None and f.default is None)}
        kind = type(self)
        name = _name(kind)
        if named_rules().get(name) is kind:
            return {NAME: name, **settings}
        return {TARGET: f"{kind.__module__}.{kind.__qualname__}", **settings}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> StopPolicy:
        """The rule that `to_dict` wrote; earlier names of rules and settings are understood.

        Raises:
            InputError: if there is no such rule, it cannot be imported, or it has other settings.
        """
        settings = {key: _rebuilt(value) for key, value in body.items() if key not in (NAME, TARGET)}
        kind = _imported(str(body[TARGET])) if TARGET in body else _named(str(body.get(NAME)))
        settings = {kind.former_settings.get(key, key): value for key, value in settings.items()}
        try:
            return kind(**settings)
        except TypeError as error:
            written = body.get(TARGET, body.get(NAME))
            raise InputError(f"the stop rule {written!r} cannot be made of {settings} ({error})") from None


class RuleState:
    """Base of a rule's state: it always drafts, has no threshold and learns nothing."""

    __slots__ = ()

    @property
    def threshold(self) -> float | None:
        """None: by default a rule has no threshold."""
        return None

    def begins(self) -> bool:
        """True: by default every round drafts."""
        return True

    def more(self, n_drafted: int, confidence: float) -> bool:
        """Whether to draft another token; every rule implements it."""
        raise NotImplementedError(f"{type(self).__name__} has no more")

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        """Learn nothing."""


def predictor_of(rule: StopPolicy) -> str | None:
    """Folder of the predictor whose probabilities a rule reads in place of the confidence; None: it has none."""
    found: str | None = getattr(rule, "predictor", None)
    return found


def without_predictor(rule: StopPolicy) -> StopPolicy:
    """The rule for a draft without a predictor: it reads the confidence; a rule without a predictor stays as it is."""
    inner = getattr(rule, "rule", None)
    if predictor_of(rule) is None:
        return rule
    changed: dict[str, Any] = {"predictor": None} if inner is None else {"rule": without_predictor(inner)}
    return replace(rule, **changed)  # type: ignore[type-var]


def check_max_draft(max_draft: int) -> None:
    """Raise InputError if a round could draft no token."""
    if max_draft < 1:
        raise InputError(f"stop.max_draft={max_draft}; a round drafts at least 1 token")


def check_fraction(name: str, value: float) -> None:
    """Raise InputError if the value is not a probability."""
    if not 0 <= value <= 1:
        raise InputError(f"stop.{name}={value}; it is a probability, between 0 and 1")


def named_rules() -> dict[str, type[StopRule]]:
    """The rules of this package's modules, by name."""
    folder = import_module(__package__)
    modules = [import_module(f"{__package__}.{module.name}") for module in pkgutil.iter_modules(folder.__path__)]
    return {
        _name(kind): kind
        for module in modules
        for kind in vars(module).values()
        if _is_rule(kind) and kind.__module__ == module.__name__
    }


def _name(kind: type) -> str:
    """`PauseWhenUnprofitable` is written as `pause_when_unprofitable`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def _is_rule(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StopRule) and kind is not StopRule


def _named(name: str) -> type[StopRule]:
    rules = named_rules()
    former = {rule.former_name: rule for rule in rules.values() if rule.former_name}
    if name in former:
        return former[name]
    if name not in rules:
        raise unknown_name("stop rule", name, list(rules))
    return rules[name]


def _imported(target: str) -> type[StopRule]:
    """The rule at an import path. Only stop rules are returned, since files of other people are read with this."""
    kind = imported(target, called=f"the stop rule {target!r}")
    if not _is_rule(kind):
        raise InputError(f"{target!r} is not a stop rule; it must inherit from selfspec.stopping.StopRule")
    rule: type[StopRule] = kind
    return rule


def _rebuilt(value: Any) -> Any:
    """A setting from plain values; lists become tuples, so that rules can be compared and hashed."""
    if isinstance(value, Mapping) and (NAME in value or TARGET in value):
        return StopRule.from_dict(value)
    return tuple(_rebuilt(item) for item in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """A setting as plain values of YAML and JSON."""
    if isinstance(value, StopRule):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
