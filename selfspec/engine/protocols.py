"""The words of the engine: read this file first.

A *drafter* proposes a *draft* for each *row*, the target reads the draft in one forward, a *verifier* turns the
target's *output* into a *verdict*, and the drafter may observe it. A *schedule* says in which order these happen.
Whatever a drafter proposes, the output is the target's own: any object with these methods is a plug-in.
"""

# B rows, T tokens, N nodes of a draft, V vocabulary, D hidden size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from selfspec.engine.cache import ClockCache
    from selfspec.engine.sampling import Chooser
    from selfspec.engine.schedule import Session
    from selfspec.stopping import StopState

Kind = Literal["accepted", "correction", "bonus"]  # the first token, which the prompt gives, is a bonus
ROOT = -1  # the parent of a draft's first nodes: the row's last token


@dataclass(slots=True)
class Row:
    """One prompt on its way, as far as a drafter may know it.

    Attributes:
        key: stays the same when other rows finish, and no other row has it.
        ids: prompt and committed tokens.
        limit: the longest path that may be drafted, in tokens.
        stop: the state of the row's stop rule; whoever asks it tells it the verdict.
        chooser: the warps of the run, and the row's random streams.
    """

    key: int
    ids: list[int]
    limit: int
    stop: StopState
    chooser: Chooser


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward of the target gave.

    Attributes:
        logits_BTV: after each token; of a prompt, after its last token alone.
        hidden: the residual stream behind a layer, [B, T, D], by layer; -1: what enters the output head. Only the
            layers that the drafter needs.
    """

    logits_BTV: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Draft:
    """Proposed tokens: a tree whose root is the row's last token; a chain is a tree without branches.

    Attributes:
        tokens: of each node.
        parents: the node before each, an earlier one, or `ROOT`; None: each node follows the one before (a chain). The
            children of a node are verified in their order.
        confidences: how sure the drafter was of each token, a probability; empty where nobody asked.
        probabilities: the distribution [V] that each token was drawn from; siblings are drawn without replacement.
            None: tokens were chosen without chance.
        source: who drafted: `layer_skip`, `lookup`, ...; whose cost, stop rule and acceptance these are.
        version: which skip set or weights, for drafters that change while decoding.
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
        """The nodes after a node, or after `ROOT`, in the order in which they are verified."""
        if self.parents is None:
            return [node + 1] if node + 1 < len(self.tokens) else []
        return [i for i, parent in enumerate(self.parents) if parent == node]

    def path(self, node: int) -> list[int]:
        """The tokens from the root's first node to a node, that one included; none for `ROOT`."""
        if self.parents is None:
            return self.tokens[: node + 1]
        found: list[int] = []
        while node != ROOT:
            found.append(self.tokens[node])
            node = self.parents[node]
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The accepted nodes from the root on; `token` follows them: a correction, or a bonus."""

    path: list[int]
    token: int

    @property
    def n_accepted(self) -> int:
        """Drafted tokens that stand."""
        return len(self.path)

    def kind(self, draft: Draft) -> Kind:
        """Whether `token` replaces a rejected token or comes on top of a draft accepted to a leaf."""
        last = self.path[-1] if self.path else ROOT
        return "correction" if draft.children(last) else "bonus"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a drafter wants of the target.

    Attributes:
        hidden: layers whose output it wants, -1 for what enters the output head.
    """

    hidden: tuple[int, ...] = ()


class Drafter(Protocol):
    """Proposes tokens. `BaseDrafter` has empty methods for all but `propose`."""

    @property
    def name(self) -> str:
        """Stands in errors and tables."""
        ...

    @property
    def needs(self) -> Needs:
        """What it wants of the target."""
        ...

    def begin(self, row: Row, prompt: Output) -> None:
        """A prompt begins.

        Args:
            row: with its first new token, which the prompt gave.
            prompt: the target's output for the prompt, of this row alone; hidden states of all its tokens.
        """
        ...

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        """One draft for each row, of paths of at most `row.limit` tokens.

        Keys and values may be written at positions that are not committed yet, from `len(row.ids) - 1` on.
        """
        ...

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """What verification found.

        Args:
            row: with the tokens that were committed.
            draft: what was proposed for it.
            verdict: cut off where the sequence ended.
            target: the target's output for the last token before the draft and for each node, [1, N + 1, V].
        """
        ...

    def end(self, row: Row) -> None:
        """The row has finished: what is known of it can be forgotten."""
        ...


class BaseDrafter:
    """A drafter without memory: a subclass writes `propose` alone, and other methods where it needs them.

    Attributes:
        is_replayable: whether all that a draft costs is its `n_forwards` forwards of the plan's draft, so that a search
            can replay it at the costs of a table; otherwise it is timed.
    """

    is_replayable: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """See `Drafter`: the class's name."""
        return type(self).__name__

    @property
    def needs(self) -> Needs:
        """See `Drafter`: nothing."""
        return Needs()

    def begin(self, row: Row, prompt: Output) -> None:
        """See `Drafter`."""

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """See `Drafter`."""

    def end(self, row: Row) -> None:
        """See `Drafter`."""


class AroundDrafter(BaseDrafter):
    """A drafter around another, to which it hands everything on.

    A subclass has the field `inner` and writes `propose`.
    """

    if TYPE_CHECKING:

        @property
        def inner(self) -> Drafter: ...

    @property
    def name(self) -> str:
        """See `Drafter`: an error names whoever drafts."""
        return self.inner.name

    @property
    def is_replayable(self) -> bool:  # type: ignore[override]  # the class's where the base has its own
        """See `BaseDrafter`."""
        return bool(getattr(self.inner, "is_replayable", False))

    @property
    def needs(self) -> Needs:
        """See `Drafter`."""
        return self.inner.needs

    def begin(self, row: Row, prompt: Output) -> None:
        """See `Drafter`."""
        self.inner.begin(row, prompt)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """See `Drafter`. `inner` sees every round, and tells its own drafts by their source."""
        self.inner.observe(row, draft, verdict, target)

    def end(self, row: Row) -> None:
        """See `Drafter`."""
        self.inner.end(row)


class Verifier(Protocol):
    """Decides which drafted tokens stand, so that the committed tokens are distributed as the target's own."""

    def judge(self, rows: Sequence[Row], drafts: Sequence[Draft], logits_BTV: Tensor) -> list[Verdict]:
        """A verdict for each row.

        Args:
            rows: before anything of the draft is committed.
            drafts: one for each row.
            logits_BTV: the target's, after the row's last token and after each node; shorter rows are padded.
        """
        ...


class Schedule(Protocol):
    """In which order drafting, verifying and committing happen."""

    def run(self, session: Session) -> None:
        """Decode until every request of the session has finished."""
        ...
