"""Run folders: JSON lines are the truth, and what looks finished is finished.

A run folder holds `config.yaml`, `provenance.json`, the rows of the verb (`records.jsonl` or `trials.jsonl`) and, only
once the run has come to its end, `summary.json`. Whole files are written beside themselves and renamed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfspec.errors import InputError

SCHEMA = 1  # of the rows; raised when a field changes its meaning

CONFIG, OVERRIDES, PROVENANCE, SUMMARY = "config.yaml", "overrides.txt", "provenance.json", "summary.json"
RECORDS, TRIALS, FINALS, LOG = "records.jsonl", "trials.jsonl", "finals.jsonl", "log.txt"
PROMPTS = "prompts.jsonl"  # of a run that asks through a chat template: what it rendered
FAILURE = "failure.json"  # why a job of a sweep came to nothing; such a folder holds no run


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave the old one: never half of it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one: never half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole; nan and infinities are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line, on disk when this returns; the row says its schema."""
    line = json.dumps({"schema": SCHEMA, **row}, ensure_ascii=False, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file.

    A last line without its newline was being written when the run was killed: it is not a row, and is left out.

    Raises:
        InputError: if the file is missing, a line is not a JSON object, or its schema is another.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; is {path.parent} the folder of a run?")
    rows = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line.decode())
        except ValueError as error:
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
    """Cut off a last line without its newline, so that appending may go on; whether there was one."""
    if not path.is_file():
        return False
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end == len(data):
        return False
    with path.open("r+b") as file:
        file.truncate(end)
    return True


def is_finished(folder: Path) -> bool:
    """Whether the run came to its end."""
    return (folder / SUMMARY).is_file()


def make_writable(folder: Path) -> None:
    """Create `folder` if need be, and find out now rather than at the end that nothing can be written there.

    Raises:
        InputError: if it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror}); choose another with paths.outputs=FOLDER"
        ) from None
