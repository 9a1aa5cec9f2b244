r"""Values as they are typed: `12`, `"a\n"`, `[a, "b, c"]`, `{name: [1, 2]}`.

This module reads the form of a value only. A word without quotes stays as it was typed, because its meaning depends on
the kind of the setting (`experiments.config.kinds`): `1_0` is a number for one setting, and a name for another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from selfspec.errors import InputError

OUTPUTS = "paths.outputs="

QUOTED = re.compile(r"""'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_PLAIN = re.compile(r"""(?!['"])(?:\$\{[^{}]*\}|[^\[\]{},])+""")
_NAME = re.compile(r"""(?!['"])[^\[\]{},:]+""")


class Typed(str):
    """A word without quotes."""

    __slots__ = ()


def unquoted(text: str) -> str:
    r"""The text in quotes: in double quotes `\n` is a new line, as in JSON and YAML; in single quotes it is not.

    Raises:
        InputError: if a backslash in double quotes means nothing.
    """
    if text[0] == "'":
        return re.sub(r"\\'|''", "'", text[1:-1])
    try:
        return str(yaml.safe_load(text))
    except yaml.YAMLError:
        raise InputError(f"cannot read {text}; write \\\\ for a backslash, or use single quotes") from None


def as_text(text: str) -> str:
    """Free text: as it was typed, or without its quotes if all of it is in quotes."""
    return unquoted(text) if QUOTED.fullmatch(text) else text


def parsed(text: str) -> Any:
    """The value of a word: `Typed`, a string that was in quotes, or a list or dict of values.

    Raises:
        InputError: if a bracket has no partner, or a name has no value.
    """
    if not text.lstrip().startswith(("[", "{")):
        return unquoted(text) if QUOTED.fullmatch(text) else Typed(text.strip())
    reader = _Reader(text)
    found = reader.value()
    reader.space()
    if reader.at < len(text):
        raise reader.error()
    return found


def choices(text: str) -> list[str]:
    """The values of a sweep, which commas separate; commas in quotes and brackets do not."""
    found, depth, start, at = [], 0, 0, 0
    while at < len(text):
        quoted = QUOTED.match(text, at)
        depth += (text[at] in "[{(") - (text[at] in "]})")
        if text[at] == "," and not depth:
            found.append(text[start:at])
            start = at + 1
        at = quoted.end() if quoted else at + 1
    return [choice.strip() for choice in (*found, text[start:])]


class _Reader:
    """A place in a text, which moves past what was read."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def value(self) -> Any:
        self.space()
        if self.passes("["):
            return list(self.items("]", self.value))
        if self.passes("{"):
            pairs = list(self.items("}", self.pair))
            if len(dict(pairs)) < len(pairs):
                raise InputError(f"{self.text} has a name twice; leave one out")
            return dict(pairs)
        return self.scalar(_PLAIN)

    def pair(self) -> tuple[str, Any]:
        name = self.scalar(_NAME)
        self.space()
        if not self.passes(":"):
            raise self.error()
        return str(name), self.value()

    def items(self, end: str, read: Callable[[], Any]) -> Iterator[Any]:
        self.space()
        while not self.passes(end):
            yield read()
            self.space()
            if not self.passes(",") and not self.text.startswith(end, self.at):
                raise self.error()
            self.space()

    def scalar(self, plain: re.Pattern[str]) -> str:
        quoted = QUOTED.match(self.text, self.at)
        found = quoted or plain.match(self.text, self.at)
        if not found:
            raise self.error()
        self.at = found.end()
        return unquoted(found[0]) if quoted else Typed(found[0].strip())

    def space(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def passes(self, sign: str) -> bool:
        is_next = self.text.startswith(sign, self.at)
        self.at += is_next
        return is_next

    def error(self) -> InputError:
        rest = self.text[self.at :]
        place = f"at {rest[:20]!r}" if rest else "at its end"
        return InputError(f"cannot read {self.text!r} {place}; write a list as [a, b] and settings as {{NAME: VALUE}}")


def outputs_of(words: Sequence[str]) -> Path:
    """The folder that the last `paths.outputs=FOLDER` of a command names, or else the default one."""
    named = [word.removeprefix(OUTPUTS) for word in words if word.startswith(OUTPUTS)]
    return Path(named[-1]).expanduser() if named else default_outputs()


def default_outputs() -> Path:
    """The default folder of run folders."""
    file = resources.files("conf").joinpath("paths/default.yaml")
    return Path(yaml.safe_load(file.read_text(encoding="utf-8"))["outputs"])
