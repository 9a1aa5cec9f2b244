"""Prompts to decode: what a data set offers, and how to take a few prompts of it.

A task knows its prompts, their references and which of them are for calibration. It knows nothing of models,
tokenizers or chat templates.
"""

import gzip
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, Protocol

from selfspec.errors import InputError

Part = Literal["calibration", "evaluation"]
"""Calibration prompts choose a skip set; evaluation prompts judge it. No prompt is in both."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, with the answer it should get if one is known."""

    id: str
    prompt: str
    reference: str | None = None
    category: str = ""


class Task(Protocol):
    """A data set split in two. The version changes whenever its prompts or its split do."""

    name: str
    version: str

    def examples(self, part: Part) -> list[Example]:
        """The same examples in the same order on every call; ids are unique across both parts.

        Raises:
            InputError: if the options given leave this part without an example.
        """
        ...


def select(examples: Sequence[Example], *, n: int | None, seed: int) -> list[Example]:
    """A deterministic subset that takes equally from every category as far as each one lasts.

    Categories are shuffled inside by the seed and dealt out in turn, in order of first appearance. The first n
    of a larger selection with the same seed are the selection of n.

    Args:
        examples: where to choose from.
        n: how many; None leaves all of them in their own order; more than there are means all.
        seed: of the shuffle.

    Raises:
        InputError: if n is zero or negative.
    """
    if n is None:
        return list(examples)
    if n <= 0:
        raise InputError(f"asked for n={n} prompts of {len(examples)}; give a positive number, or null for all")
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.category, []).append(example)
    rng = random.Random(seed)
    for group in groups.values():
        rng.shuffle(group)
    dealt = chain.from_iterable(zip_longest(*groups.values()))
    return [example for example in dealt if example is not None][:n]


def read_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file (plain or .gz), each with its line number; blank lines are passed over.

    Raises:
        InputError: if there is no such file, it cannot be read, it has no rows, or a line is not a JSON object.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise InputError(f"asked to read prompts from {path}, which is a folder; name one JSON-lines file in it")
    if not file.is_file():
        raise InputError(f"asked to read prompts from {path}, but there is no such file; check the path and its folder")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        # utf-8-sig: some editors put a byte order mark first, which is not JSON.
        # Split at \n alone: splitlines would also cut at the U+2028 that JSON allows inside a string.
        lines = content.decode("utf-8-sig").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"asked to read prompts from {path}, which cannot be read ({type(error).__name__}); "
            "it must be UTF-8 text, or gzip of it if its name ends in .gz"
        ) from error
    rows = [(number, _row(line, f"{path} line {number}")) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"asked to read prompts from {path}, which has no rows; write one JSON object per line")
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg}); each line must be one complete JSON object") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} holds a {type(row).__name__}, not an object; write one JSON object per line")
    return row
