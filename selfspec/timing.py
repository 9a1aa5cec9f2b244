"""Seconds, from one place: synchronised with the device, and replaceable by a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Reads a clock after the device has finished what it was given."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clock: Callable[[], float] = time.perf_counter

    def now(self) -> float:
        """Seconds since an arbitrary start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return self.clock()
