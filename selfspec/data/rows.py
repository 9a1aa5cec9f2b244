"""Rows of a JSON-lines file; a damaged row is an error, or is left out and logged.

It knows nothing of prompts: its callers define which rows are valid.
"""

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from selfspec.errors import LISTED, InputError

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S")


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The nonblank lines of a text file (plain or .gz), each with its number.

    Raises:
        InputError: if there is no such file, it cannot be read, or it has no rows.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise InputError(f"asked to read prompts from {path}, which is a folder; name one JSON-lines file in it")
    if not file.is_file():
        raise InputError(f"asked to read prompts from {path}, but there is no such file; check the path and its folder")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        # utf-8-sig: some editors put a byte order mark first, which is not JSON.
        # Split at \n only: splitlines would also split at U+2028, which JSON allows inside a string.
        lines = content.decode("utf-8-sig").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"asked to read prompts from {path}, which cannot be read ({type(error).__name__}); "
            "it must be UTF-8 text, or gzip of it if its name ends in .gz"
        ) from error
    found = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"asked to read prompts from {path}, which has no rows; write one JSON object per line")
    return found


def read_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file (plain or .gz), each with its line number; blank lines are ignored.

    Raises:
        InputError: if there is no such file, it cannot be read, it has no rows, or a line is not a JSON object.
    """
    return [(number, as_object(line, f"{path} line {number}")) for number, line in read_lines(path)]


def as_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        InputError: if the line holds anything else; the message begins with `where`.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and too many brackets
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]
        raise InputError(f"{where} is not JSON ({reason}); each line must be one complete JSON object") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} holds a {type(row).__name__}, not an object; write one JSON object per line")
    return row


def text(row: Mapping[str, Any], field: str, where: str, *, hint: str) -> str:
    """The text in a field of a row.

    Raises:
        InputError: if the field is missing, is not text, or is blank; the message ends with `hint`.
    """
    if row.get(field) is None:
        raise InputError(f"{where} has no field {field!r}; it has {', '.join(row) or 'none'}; {hint}")
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        found = "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise InputError(f"{where}: field {field!r} is {found}, but must be text; correct the row, or {hint}")
    return value


def check_text(name: str, value: str, where: str) -> str:
    """The text, if a file can hold it.

    Raises:
        InputError: if it holds half of a character, which JSON can write as an escape.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode()
        raise InputError(f"{where}: its {name} holds {half}, half of a character; correct the row") from None
    return value


def good_ones(items: Iterable[T], read: Callable[[T], S], *, repair: bool, bad: list[str]) -> Iterator[S]:
    """Yield `read(item)` for each item that can be read.

    Args:
        items: items of a source.
        read: converts an item, or raises InputError.
        repair: append the reason of a failure to `bad` and continue; otherwise raise it.
        bad: list of reasons, extended in place.

    Raises:
        InputError: for the first item that cannot be read, without `repair`.
    """
    for item in items:
        try:
            yield read(item)
        except InputError as error:
            if not repair:
                raise InputError(f"{error} (data.repair=true leaves such rows out)") from error
            bad.append(str(error))


def tell_left_out(source: str, bad: Sequence[str]) -> None:
    """Log the number of rows that were left out of a source, and the reasons."""
    if bad:
        more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        log.warning("%s: left out %d bad row(s): %s%s", source, len(bad), "; ".join(bad[:LISTED]), more)
