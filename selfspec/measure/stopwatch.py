"""The only clock: synchronised with the device, and replaceable in tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Reads a clock after the device has finished its work."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clock: Callable[[], float] = time.perf_counter

    def now(self) -> float:
        """Seconds since an arbitrary start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return self.clock()


def device_seconds(call: Callable[[], object], *, device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls: on CUDA between two events on the device, otherwise by the host's clock.

    The time between events covers the device's work and its waits for the host; calls are not synchronised.
    """
    if device.type != "cuda":
        watch, seconds = Stopwatch(device), []
        for _ in range(repeats):
            begin = watch.now()
            call()
            seconds.append(watch.now() - begin)
        return seconds
    pairs = [(_event(), _event()) for _ in range(repeats)]
    torch.cuda.synchronize(device)
    for begin_event, end_event in pairs:
        begin_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize(device)
    return [begin_event.elapsed_time(end_event) / 1000 for begin_event, end_event in pairs]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
