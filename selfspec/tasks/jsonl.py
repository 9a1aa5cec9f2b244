"""Prompts of your own: any JSON-lines file with a field of text.

The split and the order depend on the prompts alone, not on where they stand in the file. It knows nothing of what
the prompts are about, so it leaves the category empty.
"""

import hashlib
import json
import math
from typing import Any

from selfspec.errors import InputError
from selfspec.tasks.base import Example, Part, read_rows


class Jsonl:
    """A file of prompts, split by the SHA-256 of their text; its version names the file's content.

    Args:
        path: the file, plain or .gz, one JSON object per line.
        prompt_field: the field that holds the prompt.
        reference_field: the field that holds the wanted answer; None if there is none.
        id_field: the field that names a row; None numbers the rows by their line.
        calibration_fraction: of the distinct prompts, rounded down; in [0, 1].

    Raises:
        InputError: if the path, a field or a value is not as described, or an id appears twice.
    """

    name: str = "jsonl"

    def __init__(
        self,
        path: str | None,
        *,
        prompt_field: str = "prompt",
        reference_field: str | None = None,
        id_field: str | None = None,
        calibration_fraction: float = 0.5,
    ) -> None:
        if path is None:
            raise InputError("data=jsonl was asked for without a file; data=jsonl needs data.path=FILE")
        if not isinstance(calibration_fraction, int | float) or not 0 <= calibration_fraction <= 1:
            raise InputError(
                f"asked for calibration_fraction={calibration_fraction}, which is not a fraction; "
                "set data.calibration_fraction= to a number between 0 and 1"
            )
        self._path = path
        self._fraction = calibration_fraction
        rows = read_rows(path)
        examples: dict[str, Example] = {}
        for number, row in rows:
            where = f"{path} line {number}"
            example = Example(
                id=f"line-{number}" if id_field is None else _name(row, id_field, where),
                prompt=_text(row, prompt_field, where, "data.prompt_field="),
                reference=None
                if reference_field is None
                else _text(row, reference_field, where, "data.reference_field="),
            )
            if example.id in examples:
                raise InputError(
                    f"{where} repeats the id {example.id!r}; make field {id_field!r} unique or set data.id_field=null"
                )
            examples[example.id] = example
        digest = hashlib.sha256(json.dumps([row for _, row in rows], sort_keys=True).encode())
        self.version = f"1-{digest.hexdigest()[:12]}"
        self._parts = _split(list(examples.values()), calibration_fraction)

    def examples(self, part: Part) -> list[Example]:
        """The rows of one part, ordered by the hash of their prompts.

        Raises:
            InputError: if calibration_fraction leaves nothing for this part.
        """
        examples = self._parts[part]
        if not examples:
            n_distinct = len({example.prompt for rows in self._parts.values() for example in rows})
            raise InputError(
                f"asked for the {part} part of {self._path}, which is empty: the file has {n_distinct} distinct "
                f"prompt(s) and calibration_fraction={self._fraction}; add prompts or change data.calibration_fraction="
            )
        return list(examples)


def _split(examples: list[Example], fraction: float) -> dict[Part, list[Example]]:
    # by distinct prompt, because rows that repeat one must not straddle the parts
    digests = {example.prompt: hashlib.sha256(example.prompt.encode()).hexdigest() for example in examples}
    ranked = sorted(digests, key=digests.__getitem__)
    # 1e-9: 0.29 * 100 is 28.999999999999996 in floats
    chosen = set(ranked[: math.floor(fraction * len(ranked) + 1e-9)])
    ordered = sorted(examples, key=lambda example: digests[example.prompt])
    return {
        "calibration": [example for example in ordered if example.prompt in chosen],
        "evaluation": [example for example in ordered if example.prompt not in chosen],
    }


def _value(row: dict[str, Any], field: str, where: str, option: str) -> Any:
    if field not in row:
        raise InputError(f"{where} has no field {field!r}; it has {', '.join(row) or 'none'}; set {option}FIELD")
    return row[field]


def _text(row: dict[str, Any], field: str, where: str, option: str) -> str:
    value = _value(row, field, where, option)
    if not isinstance(value, str) or not value.strip():
        found = "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise InputError(f"{where}: field {field!r} is {found}, but must be text; correct the row or set {option}FIELD")
    return value


def _name(row: dict[str, Any], field: str, where: str) -> str:
    value = _value(row, field, where, "data.id_field=")
    if not isinstance(value, str | int):
        raise InputError(
            f"{where}: field {field!r} is of type {type(value).__name__}, but an id must be text or a whole number; "
            "set data.id_field=FIELD or data.id_field=null"
        )
    return str(value)
