"""How fast drafting and verifying are alone and at the same time: the r of this machine, and gamma by the rates."""

# D hidden size

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from selfspec.engine.protocols import Drafter, Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.overlapped.arithmetic import Seconds
from selfspec.overlapped.blocks import ENDLESS, BlockDrafter
from selfspec.overlapped.partner import hidden_buffers

CONTEXT = 128  # tokens before those that are counted, and as many are added; chosen, not tuned
WARM_UP = 2  # calls that are not counted

Counted = tuple[int, float]  # (calls, seconds)


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of a forward on this machine.

    Attributes:
        n_threads: of the target's process while it runs alone.
        gamma: tokens of a verification and of a block.
        plain_all, verify_all: of the target for one token and for gamma tokens, alone with all threads.
        draft_all: of a drafted token, alone with all threads.
        plain_one: of the target for one token, alone with the threads that it has beside the drafter.
        plain_pair: the same while the other process runs such forwards too; the mean of both.
        verify_pair, draft_pair: of a verification and of a drafted token, each while the other process does the other.
    """

    n_threads: int
    gamma: int
    plain_all: float
    verify_all: float
    draft_all: float
    plain_one: float
    plain_pair: float
    verify_pair: float
    draft_pair: float

    @property
    def r(self) -> float:
        """Speed of each of two processes at once, over that of one with all threads."""
        return self.plain_all / self.plain_pair

    @property
    def r_one(self) -> float:
        """Speed of each of two processes at once, over that of one of them alone."""
        return self.plain_one / self.plain_pair

    @property
    def alone(self) -> Seconds:
        """Seconds with all threads, each while nothing else runs."""
        return Seconds(self.plain_all, self.verify_all, self.draft_all)

    @property
    def together(self) -> Seconds:
        """Seconds while both run, beside those of plain decoding with all threads."""
        return Seconds(self.plain_all, self.verify_pair, self.draft_pair)


class Counting(Protocol):
    """Another process that counts calls."""

    def begin_count(self, what: Literal["plain", "draft"], n: int, seconds: float) -> None:
        """Let it call something for some seconds: the target on one token, or its drafter for a block of `n`."""
        ...

    def end_count(self) -> Counted:
        """Wait for its calls, and return their number and seconds."""
        ...


@torch.inference_mode()
def measure(
    decoder: Decoder,
    drafter: Drafter,
    other: Counting,
    *,
    gamma: int,
    beside: Callable[[], AbstractContextManager[object]],
    for_s: float = 1.0,
    watch: Stopwatch | None = None,
) -> Rates:
    """The rates of this machine, in six measurements of `for_s` seconds each.

    Args:
        decoder: the target.
        drafter: the drafter in this process.
        other: the drafter's process.
        gamma: tokens of a verification and of a block.
        beside: the context in which this process runs beside the other one.
        for_s: seconds of each measurement.
        watch: measures the seconds.

    Raises:
        RuntimeError: if the other process is gone.
    """
    plain, verify = forward_call(decoder, 1), forward_call(decoder, gamma)

    def alone(call: Callable[[], object]) -> float:
        return _mean(count_calls(call, for_s=for_s, watch=watch))

    def pair(call: Callable[[], object], what: Literal["plain", "draft"]) -> tuple[float, float]:
        with beside():
            other.begin_count(what, gamma, for_s)
            own = _mean(count_calls(call, for_s=for_s, watch=watch))
        return own, _mean(other.end_count())

    plain_all, verify_all = alone(plain), alone(verify)
    draft_all = alone(block_call(decoder, drafter, gamma)) / gamma
    with beside():
        plain_one = alone(plain)
    own_s, other_s = pair(plain, "plain")
    verify_pair, block_pair = pair(verify, "draft")
    return Rates(
        n_threads=torch.get_num_threads(),
        gamma=gamma,
        plain_all=plain_all,
        verify_all=verify_all,
        draft_all=draft_all,
        plain_one=plain_one,
        plain_pair=(own_s + other_s) / 2,
        verify_pair=verify_pair,
        draft_pair=block_pair / gamma,
    )


def _mean(counted: Counted) -> float:
    n, seconds = counted
    return seconds / n


def count_calls(call: Callable[[], object], *, for_s: float, watch: Stopwatch | None = None) -> Counted:
    """Call something until `for_s` seconds are over, at least once, after a warm-up; number of calls and seconds."""
    watch = watch or Stopwatch()
    for _ in range(WARM_UP):
        call()
    begin = now = watch.now()
    n = 0
    while n == 0 or now - begin < for_s:
        call()
        n += 1
        now = watch.now()
    return n, now - begin


@torch.inference_mode()
def forward_call(decoder: Decoder, n_tokens: int) -> Callable[[], object]:
    """A forward of the target on `n_tokens` tokens behind a text of `CONTEXT` tokens, or of half its context."""
    ids, _ = _text(decoder)
    cache = decoder.new_cache(n_rows=1, capacity=len(ids) + n_tokens)
    decoder.full(torch.tensor([ids], device=decoder.device), starts=[0], cache=cache, n_logits=1)
    ids_1T = torch.tensor([ids[:n_tokens]], device=decoder.device)

    def call() -> object:
        with torch.inference_mode():
            return decoder.full(ids_1T, starts=[len(ids)], cache=cache)

    return call


@torch.inference_mode()
def block_call(decoder: Decoder, drafter: Drafter, n_tokens: int) -> Callable[[], object]:
    """A block of `n_tokens` tokens behind a text that grows by its blocks, and begins anew when it is long."""
    ids, most = _text(decoder)
    cache = decoder.new_cache(n_rows=1, capacity=most + n_tokens)
    ids_1T = torch.tensor([ids], device=decoder.device)
    prompt = decoder.full.output(ids_1T, starts=[0], cache=cache, n_logits=1, hidden=drafter.needs.hidden)
    hidden = hidden_buffers(prompt.hidden, cache.capacity)
    blocks = BlockDrafter(drafter, decoder)

    def drafted() -> Iterator[None]:
        while True:
            text = [*ids, ids[0]]
            blocks.open(Row(-1, list(text), 0, ENDLESS.begin(), Chooser(Sampling())), cache, hidden)
            while len(text) < most:
                found = [each.token for each in blocks.draft(text, [], n_tokens)]
                text += found or ids[:n_tokens]
                yield

    calls = drafted()
    return lambda: next(calls)


def _text(decoder: Decoder) -> tuple[list[int], int]:
    """Token ids to begin with, and the length up to which the text may grow."""
    n = min(CONTEXT, decoder.context_length // 2 - 1)
    return [(7 * i + 1) % decoder.n_vocab for i in range(n)], 2 * n


@contextmanager
def beside(threads: int, cores: tuple[int, ...] = ()) -> Iterator[None]:
    """A context in which this process has so many threads of torch, and its thread is bound to cores; empty: any.

    Source of the layout: one pinned core for each process, as measured for `r`.
    """
    before, places = torch.get_num_threads(), os.sched_getaffinity(0) if cores else ()
    torch.set_num_threads(threads)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if places:
            os.sched_setaffinity(0, places)
