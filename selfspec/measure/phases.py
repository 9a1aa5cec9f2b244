"""Long phases of a run, such as decoding references: their names, and how many of their steps are done.

Who computes announces a phase and counts its steps; who watches decides what to show. Neither knows the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """A function to call after each step of a phase."""

    def __call__(self, n: int = 1) -> None:
        """Count `n` steps as done."""
        ...


class Phases(Protocol):
    """A function that announces a phase; the phase lasts as long as the context."""

    def __call__(self, name: str, total: int) -> AbstractContextManager[Step]:
        """Begin a phase.

        Args:
            name: name of the phase, such as `references`.
            total: number of its steps; 0 if it is one piece of unknown length.
        """
        ...


@contextmanager
def unwatched(name: str, total: int) -> Iterator[Step]:
    """A phase that nobody watches."""
    yield _ignored


def _ignored(n: int = 1) -> None:
    pass
