"""One run of the check: its settings, the time that is left, and results that are on disk as soon as they are known.

It knows nothing of models.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers


@dataclass
class Check:
    """The settings, the results up to now, and the time that is left.

    Attributes:
        settings: the parsed arguments of the command.
        device: where everything runs.
        began: reading of the monotonic clock, in seconds.
        section_ends: the reading at which the running section is cut off.
        results: by section and name; what `check_gpu.json` holds.
        lines: of the table at the end, by section and name.
    """

    settings: argparse.Namespace
    device: torch.device
    began: float = field(default_factory=time.monotonic)
    section_ends: float = math.inf
    results: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)

    @property
    def is_toy(self) -> bool:
        return bool(self.settings.toy)

    @property
    def left_s(self) -> float:
        """Until the running section, or the whole check, is over."""
        ends = self.began + float(self.settings.minutes) * 60
        return min(ends, self.section_ends) - time.monotonic()

    def has(self, seconds: float) -> bool:
        """Whether so much time is left; a toy always has it."""
        return self.is_toy or self.left_s >= seconds

    def keep(self, section: str, name: str, value: Any, text: str = "", *, quiet: bool = False) -> None:
        """Write a result at once, in the place of an earlier one of that name.

        Args:
            section: of the check.
            name: of the result.
            value: what JSON can hold.
            text: its line in the table at the end; empty: none.
            quiet: do not print the line now.
        """
        self.results.setdefault(section, {})[name] = value
        folder: Path = self.settings.out
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "check_gpu.json").write_text(json.dumps(self.results, indent=1, default=str) + "\n")
        if text:
            self.lines[f"{section}: {name}"] = text
            if not quiet:
                print(f"[{time.monotonic() - self.began:5.0f} s] {section}: {name}: {text}", flush=True)

    def table(self) -> str:
        """All lines, aligned."""
        width = max(map(len, self.lines), default=0)
        return "\n".join(f"{name:{width}}  {text}" for name, text in self.lines.items())


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_gb": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    return found


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """A TimeoutError once so many seconds are over; an inner limit never outlasts an outer one."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"{seconds:.0f} s are over")

    began = time.monotonic()
    former = signal.signal(signal.SIGALRM, late)
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, min(seconds, left or seconds)))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, former)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, left - (time.monotonic() - began)) if left else 0)


def free_memory() -> None:
    """Give the device's unused memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
