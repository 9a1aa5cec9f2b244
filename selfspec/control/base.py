"""The interface of controllers, and their conversion to and from plain values.

Settings are frozen. What changes from step to step lives in the state that `begin` returns. Requests join and leave a
state by their keys: the first step that shows a key begins it, `end` forgets it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from selfspec.control.step_costs import StepCosts
from selfspec.errors import InputError, unknown_name
from selfspec.targets import TARGET, imported

NAME = "name"


@dataclass(frozen=True, slots=True)
class Standing:
    """A request before a step.

    Attributes:
        key: identifies it.
        context: number of its tokens.
        room: most tokens that it may draft.
        source: what would draft for it with forwards.
    """

    key: int
    context: int
    room: int
    source: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A draft before it is verified.

    Attributes:
        source: what drafted it.
        length: tokens on its longest path.
        can_cut: whether its end may be cut off: a chain that took no forward and that no chance drew. If a drawn token
            were dropped because of a length that depends on it, the output would have another distribution.
    """

    source: str
    length: int
    can_cut: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """A request's part of a step that was verified.

    Attributes:
        key: identifies the request.
        source: what drafted; any text without a draft.
        length: tokens on the longest path of the draft; 0: it drafted nothing.
        n_accepted: accepted tokens.
        n_nodes: tokens that were verified for it, more than `length` for a tree.
    """

    key: int
    source: str
    length: int
    n_accepted: int
    n_nodes: int


class Controller:
    """Base of a controller, which is a frozen dataclass with `max_draft` and `begin`."""

    __slots__ = ()
    reads_costs: ClassVar[bool] = True  # whether it decides by the seconds of a step

    if TYPE_CHECKING:  # each controller has this field

        @property
        def max_draft(self) -> int:
            """Most tokens that a request drafts in a step."""
            ...

    def begin(self, costs: StepCosts) -> ControlState:
        """A state that knows nothing of any request."""
        raise NotImplementedError(f"{type(self).__name__} has no begin")

    def to_dict(self) -> dict[str, Any]:
        """Name or import path of the controller, and its settings; `from_dict` is the inverse."""
        kind = type(self)
        settings = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        if named().get(_name(kind)) is kind:
            return {NAME: _name(kind), **settings}
        return {TARGET: f"{kind.__module__}.{kind.__qualname__}", **settings}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Controller:
        """The controller that `to_dict` wrote.

        Raises:
            InputError: if there is no such controller, or it has other settings.
        """
        settings = {key: _tuples(value) for key, value in body.items() if key not in (NAME, TARGET)}
        if TARGET in body:
            kind = imported(str(body[TARGET]), called=f"the controller {body[TARGET]!r}")
        else:
            kind = named().get(str(body.get(NAME)))
            if kind is None:
                raise unknown_name("controller", str(body.get(NAME)), list(named()))
        if not _is_controller(kind):
            raise InputError(f"{body[TARGET]!r} is not a controller; it must inherit from selfspec.control.Controller")
        try:
            found: Controller = kind(**settings)
        except TypeError as error:
            raise InputError(f"the controller {body} cannot be made ({error})") from None
        return found


class ControlState:
    """Base of a controller's state.

    Attributes:
        policy: the controller.
        cuts: whether `keeps` shortens drafts after they were made. If so, drafts that need no forward (prompt lookup)
            are not limited before; otherwise `limits` binds them too.
    """

    policy: Controller
    cuts: ClassVar[bool] = False

    def limits(self, rows: Sequence[Standing]) -> list[int]:
        """Most tokens that each row may draft in this step, at most its room; 0: it is not drafted for."""
        raise NotImplementedError(f"{type(self).__name__} has no limits")

    def keeps(self, rows: Sequence[Standing], proposals: Sequence[Proposal]) -> list[int]:
        """Length up to which each draft is verified; all of it by default."""
        return [proposal.length for proposal in proposals]

    def observe(self, step: Sequence[Judged]) -> None:
        """Learn from a step; a row that drafted nothing has length 0."""

    def end(self, key: int) -> None:
        """Forget a request."""


class OneLength(ControlState):
    """Base of a state that gives all rows the same length: a subclass writes `length`."""

    def length(self, rows: Sequence[Standing]) -> int:
        """The length of this step."""
        raise NotImplementedError

    def limits(self, rows: Sequence[Standing]) -> list[int]:
        """The length, or the room of a row that has less."""
        length = self.length(rows)
        return [min(length, row.room) for row in rows]


def check_lengths(**settings: int) -> None:
    """Refuse lengths and intervals below 1."""
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"controller.{name}={value}; it is a whole number from 1 on")


def check_shares(**settings: float) -> None:
    """Refuse what is not between 0 and 1."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise InputError(f"controller.{name}={value}; it is between 0 and 1")


def mean_context(rows: Sequence[Standing]) -> float:
    """Tokens before the step, on average."""
    return sum(row.context for row in rows) / len(rows)


def named() -> dict[str, type[Controller]]:
    """The controllers of this package, by name."""
    room = import_module(__package__)
    return {_name(kind): kind for kind in vars(room).values() if _is_controller(kind)}


def _name(kind: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def _is_controller(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Controller) and kind is not Controller


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
