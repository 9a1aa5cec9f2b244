"""The drafter's process: it drafts blocks for the target's process until that one says good-bye or is gone."""

from __future__ import annotations

import os
import pickle
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import torch
from torch import nn

from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.protocols import Row
from selfspec.engine.sampling import Chooser
from selfspec.models.decoder import Decoder
from selfspec.overlapped.blocks import ENDLESS, BlockDrafter
from selfspec.overlapped.rates import block_call, count_calls, forward_call
from selfspec.overlapped.shared import Ring, SharedText
from selfspec.overlapped.state import Drafted

# The first byte of what it sends: it has a drafter, a token was written, it counted forwards, it failed.
READY, TOKEN, COUNTED, FAILED = b"r", b"t", b"c", b"f"


@dataclass(frozen=True, slots=True)
class Setup:
    """What the drafter's process is started with; its tensors lie in shared memory.

    Attributes:
        model: the target, whose sublayers the draft uses.
        spec: of the draft.
        ring: takes the drafted tokens.
        threads: threads of torch.
        cores: cores that it is bound to; empty: any.
    """

    model: nn.Module
    spec: DraftSpec
    ring: Ring
    threads: int
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a row: the memory of its text, if it is another one than before, and the length of the text."""

    key: int
    n: int
    chooser: Chooser
    text: SharedText | None


@dataclass(frozen=True, slots=True)
class Ask:
    """Draft up to `n_block` tokens behind `n` committed and `n_pending` pending ones; `block` numbers the block."""

    block: int
    n: int
    n_pending: int
    n_block: int


@dataclass(frozen=True, slots=True)
class Count:
    """Call something again and again for some seconds: the target on one token, or the drafter for a block of `n`."""

    what: Literal["plain", "draft"]
    n: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Rest:
    """End the row, and wait."""


Message = Open | Ask | Count | Rest


def run(connection: Connection) -> None:
    """Serve the target's process, which sends a `Setup` first; returns when the connection is closed."""
    # Ctrl-C reaches both processes: the target's one decides, and this one ends with its connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            setup: Setup = connection.recv()
            torch.set_num_threads(setup.threads)
            if setup.cores:
                os.sched_setaffinity(0, setup.cores)
            served = _Served(connection, setup)
            connection.send_bytes(READY + pickle.dumps((served.drafter.name, served.drafter.needs.hidden)))
            served.serve()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # the verifier goes on alone, and tells why
            connection.send_bytes(FAILED + f"{type(error).__name__}: {error}".encode())


class _Served:
    """The drafter, and the memory of the text that it reads."""

    def __init__(self, connection: Connection, setup: Setup) -> None:
        self._connection, self._ring = connection, setup.ring
        self._decoder = Decoder(setup.model)
        self.drafter = build_drafter(setup.spec, self._decoder)
        self._blocks = BlockDrafter(self.drafter, self._decoder)
        self._text: SharedText | None = None

    def serve(self) -> None:
        """Answer messages for ever; a message that arrives during a block ends the block."""
        while True:
            message: Message = self._connection.recv()
            match message:
                case Open():
                    self._open(message)
                case Ask():
                    self._draft(message)
                case Count():
                    self._count(message)
                case Rest():
                    self._blocks.close()

    def _open(self, message: Open) -> None:
        self._text = text = message.text or self._text
        assert text is not None
        ids, _ = text.read(message.n, 0)
        row = Row(message.key, ids, 0, ENDLESS.begin(), message.chooser)
        self._blocks.open(row, text.cache(), text.hidden)

    def _draft(self, message: Ask) -> None:
        assert self._text is not None
        ids, pending = self._text.read(message.n, message.n_pending)
        for drafted in self._blocks.draft(ids, pending, message.n_block):
            self._put(message.block, drafted)
            if self._connection.poll():
                return
        self._put(message.block, None)

    def _put(self, block: int, drafted: Drafted | None) -> None:
        self._ring.put(block, drafted)
        self._connection.send_bytes(TOKEN)

    def _count(self, message: Count) -> None:
        if message.what == "plain":
            call = forward_call(self._decoder, 1)
        else:
            call = block_call(self._decoder, self.drafter, message.n)
        counted = count_calls(call, for_s=message.seconds)
        self._connection.send_bytes(COUNTED + pickle.dumps(counted))
