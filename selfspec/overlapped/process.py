"""The drafter's process as the target's process sees it: it starts it, asks it for blocks, and survives its end."""

# T tokens, D hidden size

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from selfspec.drafters.spec import DraftSpec
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Output, Row
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.overlapped import child
from selfspec.overlapped.partner import write_hidden
from selfspec.overlapped.rates import Counted
from selfspec.overlapped.schedule import MOST
from selfspec.overlapped.shared import Ring, SharedText, check_room
from selfspec.overlapped.state import Drafted

log = logging.getLogger(__name__)

ROOM = 256  # the room of a text is a multiple of so many tokens, so that it seldom grows; chosen, not tuned
METHOD = "spawn"  # how Python starts the process; tests share their imports by a fork server
UNPICKLED = (AttributeError, TypeError, pickle.PicklingError)  # what pickle raises for what it cannot write
FAREWELL_S = 2.0  # seconds that a process gets to end before it is killed; chosen, not tuned


@dataclass(frozen=True, slots=True)
class Places:
    """Threads of the two processes, and the cores that they are bound to; without cores they run anywhere."""

    verify_threads: int
    draft_threads: int
    verify_cores: tuple[int, ...] = ()
    draft_cores: tuple[int, ...] = ()

    @classmethod
    def of_machine(cls, n_threads: int, *, draft_threads: int = 1) -> Places:
        """The last of the cores for the drafter, the others for the verifier; not bound if there are too few.

        Args:
            n_threads: threads of both together.
            draft_threads: those of the drafter.
        """
        verify_threads = max(1, n_threads - draft_threads)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(cores) < verify_threads + draft_threads:
            return cls(verify_threads, draft_threads)
        return cls(verify_threads, draft_threads, tuple(cores[:-draft_threads]), tuple(cores[-draft_threads:]))


class ChildPartner:
    """Drafts in a process of its own, which is started here; use it as a context, or call `stop`.

    When the process fails, is killed or says nothing for `timeout_s` seconds, the verifier goes on alone. A warning
    says so once, and no token is lost or repeated.

    Args:
        decoder: the target, on the CPU. Its weights are moved to shared memory; packed ones are packed again in the
            other process, which takes their memory once more.
        spec: of the draft, a chain without prompt lookup. `sample_draft` decides whether drafted tokens are drawn, and
            then their distributions travel with them.
        places: threads and cores.
        timeout_s: seconds without a token after which the process is taken for dead.
        start_s: seconds in which it must be ready.

    Raises:
        InputError: if the draft cannot run in another process, there is too little shared memory, or the process
            cannot be started.
    """

    def __init__(
        self,
        decoder: Decoder,
        spec: DraftSpec,
        *,
        places: Places | None = None,
        timeout_s: float = 10.0,
        start_s: float = 300.0,
    ) -> None:
        _check(decoder, spec)
        places = places or Places.of_machine(torch.get_num_threads())
        dtype = torch.float64 if decoder.dtype == torch.float64 else torch.float32
        n_slots = 4 * MOST  # a block that is no longer wanted, and the one after it, with room
        n_vocab = decoder.n_vocab if spec.sample_draft else None
        check_room(decoder.model, 0 if n_vocab is None else n_slots * n_vocab * dtype.itemsize)
        self._timeout_s, self._decoder = timeout_s, decoder
        self._ring = Ring(n_slots, n_vocab=n_vocab, dtype=dtype)
        self._text: SharedText | None = None
        self._n_read = self._block = self._n_asked = 0
        self._whole: list[Drafted] = []
        self._is_over = True
        context: Any = multiprocessing.get_context(METHOD)
        theirs: Connection
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        setup = child.Setup(decoder.model, spec, self._ring, places.draft_threads, places.draft_cores)
        self._process: BaseProcess = context.Process(target=child.run, args=(theirs,), name="drafter", daemon=True)
        self._process.start()
        theirs.close()
        self._stop = weakref.finalize(self, _end, self._process, self._connection)
        self.is_there = True
        try:
            # not as an argument of the process: tensors that share memory cannot be passed there
            with suppress(OSError):  # if it has ended, `_ready` tells
                self._connection.send(setup)
        except UNPICKLED as error:
            self.stop()
            raise InputError(f"this model or draft cannot go to another process ({error})") from None
        self.name, self.hidden = self._ready(start_s)

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> ChildPartner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process; nothing of it is left."""
        self.is_there = False
        self._stop()

    def _ready(self, start_s: float) -> tuple[str, tuple[int, ...]]:
        try:
            said = self._connection.recv_bytes() if self._connection.poll(start_s) else b""
        except (EOFError, OSError):
            said = (
                child.FAILED
                + b"it ended; does the script that starts it call its main function behind "
                + (b"`if __name__ == '__main__'`?")
            )
        if said[:1] != child.READY:
            self.stop()
            why = said[1:].decode() or f"it was not ready after {start_s:g} s"
            raise InputError(f"the drafter's process did not start: {why}")
        name, hidden = pickle.loads(said[1:])
        return name, hidden

    def open(self, row: Row, cache: ClockCache, prompt: Output) -> ClockCache:
        """Copy the prompt to shared memory; returns the cache there."""
        n = len(row.ids) - 1
        room = -(-max(cache.capacity, len(row.ids) + MOST) // ROOM) * ROOM
        text = None
        if self._text is None or self._text.capacity < room:
            self._text = text = SharedText.like(cache, prompt.hidden, capacity=room)
        shared = self._text.take(cache, n)
        write_hidden(self._text.hidden, 0, prompt.hidden)
        self._text.write(row.ids, [])
        self._say(child.Open(row.key, len(row.ids), row.chooser, text))
        return shared

    def ask(self, ids: Sequence[int], pending: Sequence[int], n: int) -> None:
        """Ask for a block; the process leaves the one before at its next token."""
        self._block += 1
        self._whole, self._n_asked, self._is_over = [], n, n == 0
        if n and self._text is not None:
            self._text.write(ids, pending)
            self._say(child.Ask(self._block, len(ids), len(pending), n))

    def tell(self, start: int, hidden: Mapping[int, Tensor]) -> None:
        """Write hidden states to shared memory."""
        if self._text is not None:
            write_hidden(self._text.hidden, start, hidden)

    def first(self) -> Drafted | None:
        """Wait for the first token of the block; None: there is none, or the process is gone."""
        while not self._whole and not self._is_over:
            self._take(wait=True)
        return self._whole[0] if self._whole else None

    def block(self, *, is_whole: bool) -> list[Drafted]:
        """The block, whole or as far as it is drafted now; what a process has left that is gone now counts."""
        while not self._is_over and (is_whole or self._connection.poll()):
            self._take(wait=is_whole)
        return self._whole

    def close(self) -> None:
        """Let the process rest."""
        self._whole, self._is_over = [], True
        self._block += 1
        self._say(child.Rest())

    def begin_count(self, what: Literal["plain", "draft"], n: int, seconds: float) -> None:
        """Let the process count calls; see `rates.Counting`."""
        self._say(child.Count(what, n, seconds))

    def end_count(self) -> Counted:
        """Wait for its calls; their number and seconds.

        Raises:
            RuntimeError: if the process is gone.
        """
        while self.is_there:
            said = self._hear(wait=True)
            if said[:1] == child.COUNTED:
                counted: Counted = pickle.loads(said[1:])
                return counted
        raise RuntimeError("the drafter's process is gone, so the rates of this machine are unknown; start again")

    def _say(self, message: child.Message) -> None:
        if not self.is_there:
            return
        try:
            self._connection.send(message)
        except OSError as error:
            self._lose(f"it is gone ({error})")
        except UNPICKLED as error:
            raise InputError(
                f"the logits processors of this call cannot go to another process ({error}); define them in a module"
            ) from None

    def _hear(self, *, wait: bool) -> bytes:
        """The next message of the process; empty if there is none."""
        if not self.is_there:
            return b""
        try:
            if not self._connection.poll(self._timeout_s if wait else 0):
                if wait:
                    self._lose(f"it was silent for {self._timeout_s:g} s")
                return b""
            said = self._connection.recv_bytes()
        except (EOFError, OSError):
            self._process.join(FAREWELL_S)
            self._lose(f"it ended with status {self._process.exitcode}")
            return b""
        if said[:1] == child.FAILED:
            self._lose(said[1:].decode())
        return said

    def _take(self, *, wait: bool) -> None:
        """Take the tokens that are there after the next message."""
        self._hear(wait=wait)
        while self._n_read < self._ring.n_written:
            block, drafted = self._ring.get(self._n_read)
            self._n_read += 1
            if block == self._block and not self._is_over:
                if drafted is None:
                    self._is_over = True
                else:
                    self._whole.append(drafted)
                    self._is_over = len(self._whole) == self._n_asked
        self._is_over = self._is_over or not self.is_there

    def _lose(self, why: str) -> None:
        """Go on without the process, and say so; it never comes back."""
        if self.is_there:
            self.stop()
            log.warning("the drafter's process is no more (%s); the verifier goes on alone, token by token", why)


def _end(process: BaseProcess, connection: Connection) -> None:
    connection.close()  # the process ends when it notices
    process.join(FAREWELL_S / 10)
    if process.is_alive():
        process.kill()  # one that was stopped or computes on
        process.join(FAREWELL_S)


def _check(decoder: Decoder, spec: DraftSpec) -> None:
    if decoder.device.type != "cpu":
        raise InputError(
            f"the model is on {decoder.device}; two processes share weights, keys and values in the memory of "
            "the host; use model.device=cpu, or schedule=sequential"
        )
    for part, value in (("lookup", spec.lookup), ("tree", spec.tree)):
        if value is not None:
            raise InputError(f"{part}={value} drafts in turn only; leave it out, or use schedule=sequential")
