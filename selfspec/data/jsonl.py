"""Prompts of the user: any JSON-lines file with a field of text.

Split and order depend on the prompts only, not on their place in the file. The category of its examples is empty.
"""

import hashlib
import json
import math
from typing import Any

from selfspec.data.rows import as_object, good_ones, read_lines, tell_left_out, text
from selfspec.data.same_prompts import group_digests, same_key, tell_alike
from selfspec.data.task import Example, Part, checked
from selfspec.errors import InputError


class Jsonl:
    """A file of prompts, split by the SHA-256 of their text; the version identifies the file's content.

    Args:
        path: the file, plain or .gz, one JSON object per line.
        prompt_field: name of the field with the prompt.
        reference_field: name of the field with the correct answer; None if there is none.
        id_field: name of the field with the id of a row; None: the line number is the id.
        calibration_fraction: fraction of the distinct prompts for calibration, rounded down; in [0, 1].
        repair: leave out damaged rows, and log their number.

    Raises:
        InputError: if the path, a field or a value has another form, or an id occurs twice.
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
        repair: bool = False,
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
        examples: dict[str, Example] = {}

        def read(numbered: tuple[int, str]) -> dict[str, Any]:
            number, line = numbered
            where = f"{path} line {number}"
            row = as_object(line, where)
            example = Example(
                id=f"line-{number}" if id_field is None else _name(row, id_field, where),
                prompt=text(row, prompt_field, where, hint="set data.prompt_field=FIELD"),
                reference=None
                if reference_field is None
                else text(row, reference_field, where, hint="set data.reference_field=FIELD"),
            )
            checked(example, where)
            if example.id in examples:
                raise InputError(
                    f"{where} repeats the id {example.id!r}; make field {id_field!r} unique or set data.id_field=null"
                )
            examples[example.id] = example
            return row

        bad: list[str] = []
        rows = list(good_ones(read_lines(path), read, repair=repair, bad=bad))
        tell_left_out(path, bad)
        self._about = {"source": path, "n_left_out": len(bad)}
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode())
        prompts = {example.prompt for example in examples.values()}
        # 1: prompts that differ in white space alone were taken for different ones
        form = 1 if len({same_key(prompt) for prompt in prompts}) == len(prompts) else 2
        self.version = f"{form}-{digest.hexdigest()[:12]}"
        self._parts = _split(path, list(examples.values()), calibration_fraction)

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

    def facts(self) -> dict[str, Any]:
        """Origin of the prompts, and the number of rows left out."""
        return dict(self._about)


def _split(path: str, examples: list[Example], fraction: float) -> dict[Part, list[Example]]:
    # by distinct prompt, so that rows with the same prompt are in the same part
    digests = group_digests(example.prompt for example in examples)
    ranked = sorted(set(digests.values()))
    # 1e-9: 0.29 * 100 is 28.999999999999996 in floats
    chosen = set(ranked[: math.floor(fraction * len(ranked) + 1e-9)])
    ordered = sorted(examples, key=lambda example: digests[example.prompt])
    parts: dict[Part, list[Example]] = {
        "calibration": [example for example in ordered if digests[example.prompt] in chosen],
        "evaluation": [example for example in ordered if digests[example.prompt] not in chosen],
    }
    tell_alike(path, *([example.prompt for example in part] for part in parts.values()))
    return parts


def _name(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise InputError(f"{where} has no field {field!r}; it has {', '.join(row) or 'none'}; set data.id_field=FIELD")
    value = row[field]
    if not isinstance(value, str | int):
        raise InputError(
            f"{where}: field {field!r} is of type {type(value).__name__}, but an id must be text or a whole number; "
            "set data.id_field=FIELD or data.id_field=null"
        )
    return str(value)
