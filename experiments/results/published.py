"""Published figures of other works, each with its source: data, never measured here."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from selfspec.errors import unknown_name


def published_figures(name: str | None = None) -> list[dict[str, Any]]:
    """The published figures of a work, or of all works.

    Args:
        name: a file in `conf/published`, such as `draft-and-verify`; None names all files, in alphabetical order.

    Returns:
        One row for each figure: system, model, data, temperature (0: greedy), metric, value, source. Some rows also
        have arm (`plain` or `draft`), stop and setting (the rule and its setting), and bound (`low` or `high` of a
        range). A field that the source does not give is None or missing. Units are those of run folders: fractions,
        seconds, plain ratios.

    Raises:
        InputError: if there is no such work.
    """
    files = {f.name.removesuffix(".yaml"): f for f in resources.files("conf").joinpath("published").iterdir()}
    if name is not None and name not in files:
        raise unknown_name("published work", name, sorted(files))
    rows = []
    for chosen in [name] if name else sorted(files):
        body = yaml.safe_load(files[chosen].read_text(encoding="utf-8"))
        rows += [{**body["of_all"], **row} for row in body["rows"]]
    return rows
