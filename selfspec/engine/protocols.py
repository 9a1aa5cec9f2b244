"""The terms of the engine: read this file first.

A *drafter* proposes a *draft* for each *row*, the target reads the draft in one forward, a *verifier* turns the
target's *output* into a *verdict*, and the drafter may observe it. A *schedule* sets the order of these steps. Whatever
a drafter proposes, the output is the target's own; any object with these methods is a plug-in.
"""

# B rows, T tokens, N nodes of a draft, V vocabulary, D hidden size

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from selfspec.engine.cache import ClockCache
    from selfspec.engine.sampling import Chooser
    from selfspec.engine.schedule import Session
    from selfspec.stopping import StopState

Kind = Literal["accepted", "correction", "bonus"]  # the first token, from the prompt's forward, is a bonus
ROOT = -1  # the parent of a draft's first nodes: the row's last token


@dataclass(slots=True)
class Row:
    """One prompt that is being decoded: the part that a drafter may read.

    Attributes:
        key: identifies the row; it stays the same when other rows finish and is never reused.
        ids: prompt and committed tokens.
        limit: length of the longest path that a draft may have, in tokens.
        stop: state of the row's stop rule; the drafter that queries it also passes the verdict to it.
        chooser: the logits processors of the run and the random streams of the row.
        paid_limit: length of the longest path that may be drafted with forwards, if that is less than `limit`; a
            drafter around another one passes it on as the limit (`within_paid`).
    """

    key: int
    ids: list[int]
    limit: int
    stop: StopState
    chooser: Chooser
    paid_limit: int = sys.maxsize

    def within_paid(self) -> Row:
        """The row as a drafter sees it that drafts with forwards."""
        return self if self.limit <= self.paid_limit else replace(self, limit=self.paid_limit)


@dataclass(frozen=True, slots=True)
class Output:
    """Result of a forward of the target.

    Attributes:
        logits_BTV: after each token; for a prompt, after its last token only.
        hidden: residual stream after a layer, [B, T, D], by layer; -1 is the input of the output head. Holds only the
            layers that the drafter needs.
    """

    logits_BTV: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Draft:
    """Proposed tokens: a tree whose root is the row's last token; a chain is a tree without branches.

    Attributes:
        tokens: token id of each node.
        parents: index of the node before each node, which comes earlier in the list, or `ROOT`; None: a chain. The
            children of a node are verified in the order of the list.
        confidences: the drafter's probability of each token, or what else its stop rule reads (`StopPolicy.evidence`);
            empty if it reads none.
        probabilities: the distribution [V] that each token was drawn from; siblings are drawn without replacement.
            None: tokens were chosen without randomness.
        source: the drafter, `layer_skip`, `lookup`, ...; costs, stop rule and acceptance are accounted to it.
        version: the skip set or weights in use, for drafters that change during decoding.
        n_forwards: forwards of the drafter that the draft took.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] | None = None
    confidences: Sequence[float] = ()
    probabilities: list[Tensor] | None = None
    source: str = ""
    version: str = ""
    n_forwards: int = 0

    def children(self, node: int) -> list[int]:
        """Indices of the children of a node or of `ROOT`, in the order in which they are verified."""
        if self.parents is None:
            return [node + 1] if node + 1 < len(self.tokens) else []
        return [i for i, parent in enumerate(self.parents) if parent == node]

    def path(self, node: int) -> list[int]:
        """The tokens on the path from the root to a node, that node included; empty for `ROOT`."""
        if self.parents is None:
            return self.tokens[: node + 1]
        found: list[int] = []
        while node != ROOT:
            found.append(self.tokens[node])
            node = self.parents[node]
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of a verification: the accepted nodes, and the token after them (a correction or a bonus)."""

    path: list[int]
    token: int

    @property
    def n_accepted(self) -> int:
        """Number of accepted tokens."""
        return len(self.path)

    def kind(self, draft: Draft) -> Kind:
        """`correction` if `token` replaces a rejected token, `bonus` if the draft was accepted up to a leaf."""
        last = self.path[-1] if self.path else ROOT
        return "correction" if draft.children(last) else "bonus"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a drafter needs from the target.

    Attributes:
        hidden: layers whose output it needs; -1 is the input of the output head.
    """

    hidden: tuple[int, ...] = ()


class Drafter(Protocol):
    """Proposes tokens. `BaseDrafter` implements every method except `propose`."""

    @property
    def name(self) -> str:
        """Name of the drafter in errors and tables."""
        ...

    @property
    def needs(self) -> Needs:
        """What the drafter needs from the target."""
        ...

    def begin(self, row: Row, prompt: Output) -> None:
        """Prepare for a new row.

        Args:
            row: the row, after its first new token was committed.
            prompt: the target's output for the prompt of this row, with hidden states of all its tokens.
        """
        ...

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """One draft for each row; no path is longer than `row.limit` tokens.

        The drafter may write keys and values from position `len(row.ids) - 1` on, and not before.
        """
        ...

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Learn from a verification; this must not change the output.

        Args:
            row: the row, with the committed tokens.
            draft: the draft that was verified.
            verdict: the verdict, cut off where the sequence ended.
            target: the target's output for the last token before the draft and for each node, [1, N + 1, V].
        """
        ...

    def end(self, row: Row) -> None:
        """Forget a row that has finished."""
        ...


class BaseDrafter:
    """Base of drafters: a subclass writes `propose`, and overrides the other methods where it needs them.

    Attributes:
        is_replayable: whether a draft costs exactly its `n_forwards` forwards of the plan's draft. A search replays
            such a drafter with the costs of a table, and times any other.
        has_free_drafts: whether some of its drafts take no forward, so that they are not limited by what forwards cost.
        reads_cache: whether it reads the target's keys and values. A drafter in another process gets them only then.
    """

    is_replayable: ClassVar[bool] = False
    has_free_drafts: ClassVar[bool] = False
    reads_cache: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the class."""
        return type(self).__name__

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def begin(self, row: Row, prompt: Output) -> None:
        """Do nothing."""

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Do nothing."""

    def end(self, row: Row) -> None:
        """Do nothing."""


class AroundDrafter(BaseDrafter):
    """A drafter around another one, to which it passes every call.

    A subclass has the field `inner` and writes `propose`.
    """

    if TYPE_CHECKING:

        @property
        def inner(self) -> Drafter: ...

    @property
    def name(self) -> str:
        """Name of the inner drafter, so that errors name the drafter that proposes."""
        return self.inner.name

    @property
    def is_replayable(self) -> bool:  # type: ignore[override]  # a property here, a class variable in the base
        """Whether the inner drafter can be replayed."""
        return bool(getattr(self.inner, "is_replayable", False))

    @property
    def needs(self) -> Needs:
        """What the inner drafter needs."""
        return self.inner.needs

    def begin(self, row: Row, prompt: Output) -> None:
        """Prepare the inner drafter."""
        self.inner.begin(row, prompt)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Pass every verification to the inner drafter, which recognises its own drafts by their source."""
        self.inner.observe(row, draft, verdict, target)

    def end(self, row: Row) -> None:
        """Let the inner drafter forget the row."""
        self.inner.end(row)


class Verifier(Protocol):
    """Decides which drafted tokens are accepted, so that the output keeps the target's distribution."""

    def judge(self, rows: Sequence[Row], drafts: Sequence[Draft], logits_BTV: Tensor) -> list[Verdict]:
        """A verdict for each row.

        Args:
            rows: the rows, before any drafted token is committed.
            drafts: one for each row.
            logits_BTV: the target's logits after the row's last token and after each node; shorter rows are padded.
        """
        ...


class Schedule(Protocol):
    """The order of drafting, verifying and committing."""

    def run(self, session: Session) -> None:
        """Decode until every request of the session has finished."""
        ...
