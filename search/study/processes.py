"""Whether the process that left a mark is still there: its host, its number, and when it began."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


def this_process() -> dict[str, Any]:
    """The mark of this process, as JSON."""
    return mark_of(os.getpid())


def mark_of(pid: int) -> dict[str, Any]:
    """The mark of a process of this host."""
    return {"host": platform.node(), "pid": pid, "began": _began(pid)}


def state_of(mark: Mapping[str, Any]) -> Literal["this", "alive", "gone", "unknown"]:
    """State of the process of a mark; that of a process on another host is unknown, and so is that of an empty mark."""
    here = this_process()
    if mark.get("host") != here["host"]:
        return "unknown"
    if mark == here:
        return "this"
    return "alive" if mark["began"] is not None and _began(int(mark["pid"])) == mark["began"] else "gone"


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the start of the machine; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
