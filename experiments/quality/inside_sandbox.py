"""The script inside the sandbox: it lowers its own limits, forbids dangerous operations, then runs one program.

A fresh Python gets this module as source code, so it knows the standard library alone. Standard input holds a JSON
object of the program, the limits and a secret. Standard output holds the secret if the program ran to its end, or else
the reason of its failure. No code can remove an audit hook; still, the hook guards against careless code, not against a
determined attacker.
"""

from __future__ import annotations

import _posixsubprocess
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

# beginnings of audit events (docs.python.org, "Audit events table"): no connection, no process, no deletion
REFUSED = (
    *("socket.", "subprocess.", "sqlite3.", "ctypes.dlsym", "ctypes.call_function", "ctypes.string_at"),
    *("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "resource."),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.ch", "os.utime"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Run the program from standard input."""
    task = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)  # output is discarded, and input is empty
    folder = os.path.realpath(os.getcwd())
    for name, most in task["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    sys.addaudithook(door(folder))
    vars(_posixsubprocess)["fork_exec"] = no_process  # multiprocessing calls it without an audit event
    try:
        exec(task["program"], {})
        said = task["secret"]
    except BaseException as error:  # SystemExit too: a program that exits does not pass
        said = f"{type(error).__name__}: {error}".removesuffix(": ")[:200]
    answer.write(said)
    answer.close()
    os._exit(0)  # no leftover of the program, such as an exit handler, runs


def no_process(*args: Any) -> None:
    """Raise an error in the place of a function that starts a process."""
    raise PermissionError("generated code may not start a process")


def door(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses what `REFUSED` names, and files opened for writing outside `folder`."""
    real, join, decoded, inside = os.path.realpath, os.path.join, os.fsdecode, folder + os.sep

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and not isinstance(args[0], int) and args[2] & WRITING:
            if not real(join(folder, decoded(args[0]))).startswith(inside):
                raise PermissionError(f"generated code may not write {args[0]!r}")
        elif event.startswith(REFUSED):
            raise PermissionError(f"generated code may not do {event}")

    return refuse


if __name__ == "__main__":
    main()
