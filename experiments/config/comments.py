"""What the YAML files of `conf` say of an option and of each of its settings, in the words of their comments.

The help of the command line and the pages of the documentation are made of this. It knows text alone: no kinds of
values, no composed configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

_LINE = re.compile(r"(?P<indent> *)(?P<key>[\w'.]+):(?: +(?P<value>[^#\s].*?))?(?: +#\s?(?P<comment>.*))?$")
_HIDDEN = ("defaults", "_target_", "_partial_")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a file: its whole name (`finals.top`), its value as written, and the comment on it."""

    name: str
    default: str
    comment: str


@dataclass(frozen=True, slots=True)
class Commented:
    """A YAML file: what its first lines say, the class that it builds (empty: none), and its settings in order."""

    heading: str
    target: str
    settings: tuple[Setting, ...]


def commented(text: str) -> Commented:
    """The comments of a YAML file.

    A comment behind a value, and the comments below it that stand further right than the setting, belong to the
    setting; so do comments directly above it. The first lines belong to the file.
    """
    lines = text.splitlines()
    n_heading = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head = [line.removeprefix("#").strip() for line in lines[:n_heading] if not line.startswith("# @package")]
    target = re.search(r"^_target_: *(\S+)", text, re.MULTILINE)
    return Commented(" ".join(head), target[1] if target else "", tuple(_settings(lines[n_heading:])))


def _settings(lines: list[str]) -> Iterator[Setting]:
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    found: list[tuple[int, str, str, list[str]]] = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith("#"):
            is_more = bool(found) and indent > found[-1][0]
            (found[-1][3] if is_more else above).append(line.lstrip("# ").strip())
            continue
        match = _LINE.fullmatch(line)
        if match is None:  # the item of a list, or the rest of a value
            above = []
            continue
        parents = [(depth, name) for depth, name in parents if depth < indent]
        key = match["key"].strip("'")
        name = ".".join([*(name for _, name in parents), key])
        parents.append((indent, key))
        found.append((indent, name, match["value"] or "", [*above, *filter(None, [match["comment"]])]))
        above = []
    for _, name, value, comments in found:
        if name.split(".")[0] not in _HIDDEN and name.split(".")[-1] not in _HIDDEN:
            yield Setting(name, value, " ".join(comments))


def of_verb(verb: str) -> Commented:
    """The comments of a verb's own file."""
    return commented(_package_text(f"{verb}.yaml"))


def of_option(group: str, name: str, *, folder: Path | None = None) -> Commented:
    """The comments of an option of this package, or of the user's folder."""
    file = None if folder is None else folder / group / f"{name}.yaml"
    is_own = file is not None and file.is_file()
    return commented(file.read_text(encoding="utf-8") if file and is_own else _package_text(f"{group}/{name}.yaml"))


def _package_text(name: str) -> str:
    return resources.files("conf").joinpath(name).read_text(encoding="utf-8")
