"""Provenance of a run: code, packages and machine, enough to repeat it and to explain differences between runs.

A field that cannot be read is recorded as `{"error": "..."}`. Environment variables are not recorded, since they may
hold secrets.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "optuna", "hydra-core", "datasets", "numpy", "pandas", "selfspec")


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def load_average() -> float | None:
    """Processes running or waiting, averaged over the last minute; None if the system does not report it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def environment() -> dict[str, Any]:
    """The current code, packages and machine."""
    return {
        "started": now(),
        "argv": sys.argv,
        "process": f"process {os.getpid()} on {platform.node() or 'this machine'}",
        "code": _try(_code),
        "python": platform.python_version(),
        "packages": {name: _try(lambda name=name: metadata.version(name)) for name in PACKAGES},  # type: ignore[misc]
        "platform": platform.platform(),
        "cpu": _try(_cpu),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": load_average(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """Name of the CUDA device or the CPU; measured seconds are valid for it only."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = _try(_cpu)
    return name if isinstance(name, str) else platform.machine()


def digest(text: str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _try(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, subprocess.SubprocessError, metadata.PackageNotFoundError, LookupError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


@cache  # what runs is what was imported, whatever happens to the files later
def _code() -> dict[str, Any]:
    """Commit of the checkout that holds this package, and its uncommitted changes."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout

    # fails if the package is installed elsewhere, in a checkout of another project
    git("ls-files", "--error-unmatch", __file__)
    difference = git("diff", "HEAD")
    return {"commit": git("rev-parse", "HEAD").strip(), "is_dirty": bool(difference), "diff": difference}


def _cpu() -> str:
    """Name, family and model of the CPU; a virtual machine may give every generation the same name."""
    first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    if "model name" not in fields:
        raise LookupError("no model name in /proc/cpuinfo")
    kind = ", ".join(f"{key.split()[-1]} {fields[key]}" for key in ("cpu family", "model") if key in fields)
    return f"{fields['model name']} ({kind})" if kind else fields["model name"]
