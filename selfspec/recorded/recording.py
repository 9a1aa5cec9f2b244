"""Record the operations of a forward on a device once, then replay them without Python.

A `Program` is a closure over tensors at fixed addresses: it reads the buffers of its inputs, weights, keys and values,
and returns tensors. A recorder records it at its first play and replays it from then on. `CudaGraphs` records on a GPU.
`Tape` records on any device: it stores every operation that reaches the kernels, and replays these. A program that a
graph would replay wrongly (a number that Python knew while recording, a value read by the host, a moved buffer)
therefore fails in the same way in tests without a GPU.

The number of recordings is bounded; the least recently used one is dropped. They share one pool of memory, so the
output of a replay is valid only until the next replay of any recording.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MAX_RECORDINGS = 96  # bounds the memory of graphs, some MB each; chosen, not tuned
N_WARM_UPS = 2  # runs before a capture: they select and compile kernels, and libraries allocate memory


@dataclass(frozen=True, slots=True)
class Program:
    """A computation that can be recorded.

    Attributes:
        inputs: buffers that the body reads, by name; every play fills them first.
        body: runs the operations; a second run must give the same result.
        watched: tensors whose addresses the recording uses; it is stale if one of them has moved.
    """

    inputs: Mapping[str, Tensor]
    body: Callable[[], tuple[Tensor, ...]]
    watched: Callable[[], tuple[Tensor, ...]] = tuple


class Recorder(Protocol):
    """Plays programs: records them at first, and replays them later.

    Attributes:
        replay_last: replays the last program on its current inputs, for timing.
        n_recorded: number of recordings made so far.
    """

    n_recorded: int

    @property
    def replay_last(self) -> Callable[[], object]: ...

    def play(self, key: Hashable, make: Callable[[], Program], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the program `key` for these inputs; they are valid until the next play.

        Args:
            key: identifies the program; the result of `make` must depend only on it.
            make: makes the program at its first play.
            inputs: values of the program's buffers, in their shapes, on any device.

        Raises:
            RuntimeError: if a recording is stale.
        """
        ...

    def forget(self, owner: Hashable) -> None:
        """Drop all recordings whose key is `owner` or a tuple that contains it."""
        ...


@dataclass(slots=True)
class _Recording:
    program: Program
    replay: Callable[[], tuple[Tensor, ...]]
    addresses: tuple[int, ...]


@dataclass
class _Recorder(ABC):
    """Base of both recorders: the bounded store, the buffers of inputs, and the check for staleness.

    Attributes:
        max_recordings: largest number of recordings to keep.
        n_recorded: number of recordings made so far.
    """

    max_recordings: int = MAX_RECORDINGS
    n_recorded: int = field(default=0, init=False)
    _last: Callable[[], object] = field(default=tuple, init=False)
    _kept: OrderedDict[Hashable, _Recording] = field(default_factory=OrderedDict, init=False)

    def play(self, key: Hashable, make: Callable[[], Program], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the program; recorded at its first play, replayed later."""
        recording = self._kept.get(key)
        if recording is None:
            program = make()
            _fill(program, inputs)
            while len(self._kept) >= self.max_recordings:
                self._kept.popitem(last=False)
            recording = _Recording(program, self._record(program), _addresses(program))
            self._kept[key] = recording
            self.n_recorded += 1
        else:
            _check_addresses(key, recording)
            _fill(recording.program, inputs)
            self._kept.move_to_end(key)
        self._last = recording.replay
        return recording.replay()

    @property
    def replay_last(self) -> Callable[[], object]:
        """Replays the last program on its current inputs."""
        return self._last

    def forget(self, owner: Hashable) -> None:
        """Drop the recordings of an owner."""
        for key in [k for k in self._kept if k == owner or (isinstance(k, tuple) and owner in k)]:
            del self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)

    @abstractmethod
    def _record(self, program: Program) -> Callable[[], tuple[Tensor, ...]]:
        """Record the program; the result replays it."""


@dataclass
class CudaGraphs(_Recorder):
    """Records CUDA graphs, which share one pool of memory.

    Attributes:
        device: the device of the graphs.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    _pool: Any = field(default=None, init=False)
    _stream: Any = field(default=None, init=False)

    def _record(self, program: Program) -> Callable[[], tuple[Tensor, ...]]:
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(N_WARM_UPS):
                    program.body()
            torch.cuda.current_stream().wait_stream(self._stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            was_on = gc.isenabled()
            gc.disable()  # collecting a graph during a recording could invalidate the recording
            try:
                # "thread_local": other threads, such as a logger or a compiler, may use the device at the same time.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    outputs = program.body()
            finally:
                if was_on:
                    gc.enable()

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return outputs

        return replay


@dataclass
class Tape(_Recorder):
    """Records single operations, on any device: for tests, and to find operations that a graph does not allow."""

    def _record(self, program: Program) -> Callable[[], tuple[Tensor, ...]]:
        for _ in range(N_WARM_UPS):
            program.body()
        with _Written() as written:
            outputs = program.body()

        def replay() -> tuple[Tensor, ...]:
            for func, args, kwargs, results in written.calls:
                again = tree_leaves(func(*args, **kwargs))
                for old, new in zip(results, again, strict=True):
                    if old is not None and old is not new:
                        old.copy_(new)
            return outputs

        return replay


class _Written(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is untyped here
    """Stores every operation with its arguments and new tensors; None stands for a result that views an argument."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "_local_scalar_dense" in name or "nonzero" in name or "masked_select" in name:
            raise RuntimeError(f"{name} reads from the device inside a recording, where the host must not wait")
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [
            t if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in known else None
            for t in tree_leaves(results)
        ]
        is_write = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        if is_write or any(t is not None for t in made):
            self.calls.append((func, args, kwargs, made))
        return results


def _fill(program: Program, inputs: Mapping[str, Tensor]) -> None:
    """Copy the inputs into their buffers."""
    for name, buffer in program.inputs.items():
        value = inputs[name]
        if value.shape != buffer.shape or value.dtype != buffer.dtype:
            raise RuntimeError(
                f"a recording takes {name} as {list(buffer.shape)} of {buffer.dtype}, but was given "
                f"{list(value.shape)} of {value.dtype}; a program's key must tell its shapes apart"
            )
        # Unpinned host memory is read before the call returns, so the caller may change it at once.
        buffer.copy_(value, non_blocking=True)


def _addresses(program: Program) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in (*program.inputs.values(), *program.watched()))


def _check_addresses(key: Hashable, recording: _Recording) -> None:
    if _addresses(recording.program) != recording.addresses:
        raise RuntimeError(
            f"the recording {key} is stale: weights, or keys and values, that it reads have moved since it was made; "
            "bind the draft again, or make the static forwards anew"
        )
