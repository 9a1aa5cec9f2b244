"""A draft that changes while text is decoded: before each round a searcher may choose another one.

The searcher sees the rows, the target's keys and values, and every verdict. It can only choose drafters, and the target
verifies what they propose, so the output does not depend on it. Its seconds are a part of the round's. This module
must not know how drafts are searched.
"""

# B rows

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from selfspec.drafters.chain import NoDraft
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Needs, Output, Row, Verdict

ONLINE = "online"  # name of the drafter in errors and tables; its drafts keep the source of the drafter that made them


@dataclass(frozen=True, slots=True)
class Chosen:
    """A drafter, and the version that its drafts are recorded with."""

    drafter: Drafter
    version: str


class OnlineSearcher(Protocol):
    """Chooses the drafter of each round. `OnlineBase` implements every method except `ask`."""

    @property
    def needs(self) -> Needs:
        """What the searcher and its drafters need from the target."""
        ...

    def begin(self, row: Row, prompt: Output) -> None:
        """Prepare for a new row, as in `Drafter.begin`."""
        ...

    def ask(self, rows: Sequence[Row], *, cache: ClockCache) -> Chosen:
        """The drafter of the next round.

        It may run forwards that write keys and values from position `len(row.ids) - 1` on, and not before.

        Args:
            rows: the rows that are drafted for.
            cache: the target's keys and values of them.
        """
        ...

    def tell(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Learn from a verification, as in `Drafter.observe`; passes it to the drafters."""
        ...

    def end(self, row: Row) -> None:
        """Forget a row that has finished."""
        ...


class OnlineBase:
    """Base of searchers with one drafter in use, which proposes nothing at first.

    Attributes:
        chosen: the drafter in use.
        is_learning: whether verdicts count and the drafter may change; a warm-up sets it to False.
    """

    def __init__(self) -> None:
        self.chosen = Chosen(NoDraft(), "")
        self.is_learning = True

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def begin(self, row: Row, prompt: Output) -> None:
        """Prepare the drafter in use."""
        self.chosen.drafter.begin(row, prompt)

    def tell(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Pass the verdict to the drafter in use."""
        self.chosen.drafter.observe(row, draft, verdict, target)

    def end(self, row: Row) -> None:
        """Let the drafter in use forget the row."""
        self.chosen.drafter.end(row)


class OnlineDraft(BaseDrafter):
    """Drafts with what its searcher chooses before each round.

    A drafter that is chosen in the middle of a row was not begun for it, so searchers choose drafters that need not be:
    chains and trees of a skip set. A searcher with other drafters begins all of them.

    Args:
        searcher: chooses the drafters, and keeps what it has learnt from prompt to prompt.
    """

    def __init__(self, searcher: OnlineSearcher) -> None:
        self.searcher = searcher

    @property
    def name(self) -> str:
        """`online`."""
        return ONLINE

    @property
    def needs(self) -> Needs:
        """What the searcher needs."""
        return self.searcher.needs

    def begin(self, row: Row, prompt: Output) -> None:
        """Tell the searcher of a new row."""
        self.searcher.begin(row, prompt)

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """The drafts of the chosen drafter, with its version."""
        chosen = self.searcher.ask(rows, cache=cache)
        drafts = chosen.drafter.propose(rows, cache=cache)
        for draft in drafts:
            draft.version = chosen.version
        return drafts

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Tell the searcher the verdict."""
        self.searcher.tell(row, draft, verdict, target)

    def end(self, row: Row) -> None:
        """Tell the searcher that a row has finished."""
        self.searcher.end(row)
