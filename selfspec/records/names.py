"""Names that users choose: as a part of a path, and as text on one line of a terminal or a table."""

from __future__ import annotations

import re

from selfspec.errors import InputError

MAX_BYTES = 200  # file systems allow 255; a temporary file adds some
# control characters, ends of lines and of paragraphs, marks that turn the direction of writing, half characters
_UNSAFE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINE = re.compile(f"[{_UNSAFE}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_UNSAFE}]")


def path_part(name: str, setting: str) -> str:
    """The name, if it is the name of one file or folder.

    Args:
        name: the name.
        setting: the setting that chose it, for the message.

    Raises:
        InputError: if it is empty, begins with a dot, is too long, or holds a slash or a control character.
    """
    why = None
    if not name.strip():
        why = "is empty"
    elif "/" in name or "\\" in name or name.startswith("."):
        why = "would be a path"
    elif _IN_LINE.search(name):
        why = "holds a character that cannot be seen"
    elif len(name.encode()) > MAX_BYTES:
        why = f"is longer than {MAX_BYTES} bytes"
    if why:
        short = name if len(name) <= 60 else f"{name[:60]}..."
        raise InputError(f"{setting}={one_line(short)!r} {why}; it names a folder: give a short name without slashes")
    return name


def one_line(text: str) -> str:
    """The text with a visible escape, such as `\\n` or `\\u001b`, for each character that would break its line."""
    return _IN_LINE.sub(_escape, text)


def printable(text: str) -> str:
    """The text with a visible escape for each character, except line feeds and tabs, that a terminal would obey.

    JSON stays JSON of the same value.
    """
    return _IN_TEXT.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(found[0], f"\\u{ord(found[0]):04x}")
