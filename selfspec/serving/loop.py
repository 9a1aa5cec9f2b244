"""Continuous batching: requests join at the boundary of a step, and leave when they are finished.

Between two steps, prompts are read in pieces, so that a long prompt delays the others' tokens little. Requests are
served in the order of their arrival: one that does not fit into the memory waits, and those behind it wait with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

from selfspec.errors import InputError
from selfspec.serving.arrivals import Arrival
from selfspec.serving.timeline import Timeline

Reading = Literal["reading", "joined", "finished"]


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """The bound of the keys and values that are held at once.

    The rows of a batch lie in slots of equal length, so rows times the longest one count.

    Attributes:
        max_rows: most requests at once.
        max_tokens: most tokens of all slots.
        margin: tokens behind the end of a row, for the padding of rows with longer drafts; no path is longer.
    """

    max_rows: int
    max_tokens: int
    margin: int = 32

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_tokens", "margin"):
            if getattr(self, name) < 1:
                raise InputError(f"memory.{name}={getattr(self, name)}; it is a whole number from 1 on")

    def need(self, arrival: Arrival) -> int:
        """Tokens that the slot of a request must hold."""
        return arrival.n_prompt + arrival.n_max + self.margin

    def shape(self, needs: Sequence[int]) -> tuple[int, int] | None:
        """Number and length of the slots for requests of these needs; None if they do not fit together."""
        longest = max(needs)
        n_slots = min(self.max_rows, self.max_tokens // longest)
        return (n_slots, longest) if len(needs) <= n_slots else None

    def check(self, arrivals: Sequence[Arrival]) -> None:
        """Refuse a request that does not fit even alone.

        Raises:
            InputError: with the first one.
        """
        for index, arrival in enumerate(arrivals):
            if (need := self.need(arrival)) > self.max_tokens:
                raise InputError(
                    f"request {index} needs room for {need} tokens ({arrival.n_prompt} of its prompt, {arrival.n_max} "
                    f"new ones, memory.margin={self.margin}), and memory.max_tokens={self.max_tokens}: it can never be "
                    "served; give more memory, shorten the prompt, or take it out"
                )


@dataclass(frozen=True, slots=True)
class ServedStep:
    """What a step of the batch did.

    Attributes:
        n_rows: requests in it.
        longest: tokens of the largest draft.
        drafted, verified, committed: tokens that were drafted, read by the target, and added to outputs, of all rows.
        n_forwards: forwards of the draft.
        finished: indices of the requests that it finished.
    """

    n_rows: int
    longest: int
    drafted: int
    verified: int
    committed: int
    n_forwards: int
    finished: Sequence[int]


class Engine(Protocol):
    """Reads prompts and plays steps; a request is known by its index among the arrivals."""

    def reserve(self, n_slots: int, capacity: int) -> None:
        """Make room for `n_slots` requests of `capacity` tokens each, while no prompt is being read."""
        ...

    def open(self, index: int) -> None:
        """Begin to read the prompt of a request."""
        ...

    def read(self, n_tokens: int) -> Reading:
        """Read more of that prompt; at its end the request has its first token, and joins the batch or is finished."""
        ...

    def step(self) -> ServedStep:
        """Draft, verify and commit once for all requests that joined."""
        ...


@dataclass(slots=True)
class Served:
    """When a request was served, in seconds after the begin.

    Attributes:
        at_s: it arrived.
        begun_s: its prompt began to be read.
        first_s: it had its first token.
        end_s: it had its last token.
    """

    at_s: float
    begun_s: float = 0.0
    first_s: float = 0.0
    end_s: float = 0.0


@dataclass(slots=True)
class Serving:
    """What a simulation did.

    Attributes:
        requests: in the order of their arrival.
        steps: with the seconds at which each ended, its own seconds, and the number of requests that waited.
    """

    requests: list[Served]
    steps: list[tuple[float, float, int, ServedStep]] = field(default_factory=list)


def serve(
    engine: Engine,
    arrivals: Sequence[Arrival],
    *,
    memory: MemoryBound,
    chunk: int,
    timeline: Timeline,
    told: Callable[[], None] = lambda: None,
) -> Serving:
    """Serve all requests.

    Args:
        engine: serves them.
        arrivals: requests in the order of their times.
        memory: bound of what is held at once.
        chunk: most tokens of prompts that are read between two steps, at least 1.
        timeline: tells the time.
        told: called when a request is finished.

    Raises:
        InputError: if a request can never fit, or one arrives before the one above it.
    """
    if chunk < 1:
        raise InputError(f"chunk={chunk}; at least 1 token of a prompt is read between two steps")
    memory.check(arrivals)
    if any(b.at_s < a.at_s for a, b in pairwise(arrivals)):
        raise InputError("requests must be in the order of their arrival; sort them by time")
    state = _State(engine, arrivals, memory, timeline, Serving([Served(a.at_s) for a in arrivals]), told)
    while state.is_busy:
        state.arrive()
        state.read(chunk)
        state.step()
    return state.found


@dataclass(slots=True)
class _State:
    """Requests that come, wait, are read, and decode."""

    engine: Engine
    arrivals: Sequence[Arrival]
    memory: MemoryBound
    timeline: Timeline
    found: Serving
    told: Callable[[], None]
    n_arrived: int = 0
    waiting: deque[int] = field(default_factory=deque)
    opened: int | None = None
    n_read: int = 0
    live: set[int] = field(default_factory=set)
    shape: tuple[int, int] = (0, 0)

    @property
    def is_busy(self) -> bool:
        return self.n_arrived < len(self.arrivals) or bool(self.waiting or self.live) or self.opened is not None

    def arrive(self) -> None:
        """Let requests come whose time it is; if there is nothing else to do, wait for the next one."""
        if not (self.waiting or self.live or self.opened is not None):
            self.timeline.wait_until(self.arrivals[self.n_arrived].at_s)
        now = self.timeline.now()
        while self.n_arrived < len(self.arrivals) and self.arrivals[self.n_arrived].at_s <= now:
            self.waiting.append(self.n_arrived)
            self.n_arrived += 1

    def read(self, left: int) -> None:
        """Read up to `left` tokens of prompts."""
        while left and (self.opened is not None or self._open()):
            assert self.opened is not None
            index = self.opened
            n = min(left, self.arrivals[index].n_prompt - self.n_read)
            reading = self.engine.read(n)
            left, self.n_read = left - n, self.n_read + n
            if reading != "reading":
                self.opened = None
                self.found.requests[index].first_s = self.timeline.now()
            if reading == "joined":
                self.live.add(index)
            elif reading == "finished":
                self._finish(index)

    def _open(self) -> bool:
        """Open the oldest request that waits, if there is one and it fits."""
        if not self.waiting:
            return False
        needs = [self.memory.need(self.arrivals[i]) for i in (*self.live, self.waiting[0])]
        n_slots, capacity = self.shape
        if len(needs) > n_slots or max(needs) > capacity:
            shape = self.memory.shape(needs)
            if shape is None:
                return False
            self.engine.reserve(*shape)
            self.shape = shape
        self.opened, self.n_read = self.waiting.popleft(), 0
        self.found.requests[self.opened].begun_s = self.timeline.now()
        self.engine.open(self.opened)
        return True

    def step(self) -> None:
        """Play a step of the requests that decode, if there are any."""
        if not self.live:
            return
        began = self.timeline.now()
        step = self.engine.step()
        now = self.timeline.now()
        self.found.steps.append((now, now - began, len(self.waiting), step))
        for index in step.finished:
            self.live.discard(index)
            self._finish(index)

    def _finish(self, index: int) -> None:
        self.found.requests[index].end_s = self.timeline.now()
        self.told()
