"""Read and write the files of a run folder.

A run folder holds `config.yaml`, `provenance.json`, the rows of the verb (`records.jsonl` or `trials.jsonl`) and, only
after the run has ended, `summary.json`. The rows are the primary data. A file is written under a temporary name and
then renamed, so that it is never incomplete.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from selfspec.errors import InputError

SCHEMA = 1  # version of the rows; it increases when a field changes its meaning

CONFIG, OVERRIDES, PROVENANCE, SUMMARY = "config.yaml", "overrides.txt", "provenance.json", "summary.json"
RECORDS, TRIALS, FINALS, LOG = "records.jsonl", "trials.jsonl", "finals.jsonl", "log.txt"
CURVE = "curve.jsonl"  # steps of a training
PROMPTS = "prompts.jsonl"  # prompts as rendered by the chat template
STEPS = "steps.jsonl"  # finished steps of an experiment, beside the folder of their runs
INTERRUPTED = "interrupted"  # end of a search that Ctrl-C ended
FAILURE = "failure.json"  # reason of a failed job of a sweep; such a folder holds no run

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely, or leave the old one unchanged."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely, or leave the old one unchanged."""
    write_file(path, lambda file: file.write(data))


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file completely, or leave the old one unchanged."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file completely; nan and infinities raise ValueError, since JSON lacks them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line with the schema; it is on disk when this returns."""
    line = json.dumps({"schema": SCHEMA, **row}, ensure_ascii=False, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file.

    A last line without a newline is incomplete, since the run was killed while writing it; it is ignored.

    Raises:
        InputError: if the file is missing, a line is not a JSON object, or it has another schema.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; is {path.parent} the folder of a run?")
    rows = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}); remove or mend that line") from None
        if not isinstance(row, dict) or row.get("schema") != SCHEMA:
            raise InputError(f"{path}, line {number}: not a row of schema {SCHEMA}; it is from another version")
        rows.append(row)
    return rows


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The number and text of each whole line of a JSON-lines file; none if there is no such file."""
    if path.is_file():
        *lines, _ = path.read_bytes().split(b"\n")  # splitlines would also cut at the U+2028 that JSON allows
        yield from enumerate(lines, start=1)


def drop_partial_line(path: Path) -> bool:
    """Remove an incomplete last line, so that rows can be appended; returns whether there was one."""
    if not path.is_file():
        return False
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == len(data):
        return False
    with path.open("r+b") as file:
        file.truncate(end)
    return True


def keep_rows(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Leave out the rows that are not kept, and an incomplete last line; without such rows the file stays as it is."""
    if not path.is_file():
        return
    lines = [line for _, line in read_lines(path)]
    kept = [line for line, row in zip(lines, read_rows(path), strict=True) if is_kept(row)]
    if len(kept) < len(lines) or path.stat().st_size > sum(len(line) + 1 for line in kept):
        write_bytes(path, b"".join(line + b"\n" for line in kept))


def is_finished(folder: Path) -> bool:
    """Whether the run has come to its end; the summary of an interrupted search says that it has not."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):  # who reads it tells what is wrong with it
        return True
    return not (isinstance(summary, dict) and summary.get("ended") == INTERRUPTED)


def make_writable(folder: Path, *, hint: str = "choose another with paths.outputs=FOLDER") -> None:
    """Create `folder` if necessary, and check that files can be written there.

    Args:
        folder: path of the folder.
        hint: what a user can do if it is not writable.

    Raises:
        InputError: if it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}); {hint}") from None


def refused_write(error: OSError) -> InputError | None:
    """The error of the user for a disk that refuses a file, such as a full one; None for any other error."""
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{str(error.filename)[:60]}...: {error.strerror}; give a shorter path")
    if error.errno not in _REFUSALS:
        return None
    return InputError(
        f"cannot use {error.filename or 'a file of the run'} ({error.strerror}); what was written is whole: make "
        "room or give the right to write there, then resume=RUN goes on (collect: the same command)"
    )
