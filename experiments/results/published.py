"""Figures that others have published, each with where it stands: data, never measured here."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from selfspec.errors import unknown_name


def published_figures(name: str | None = None) -> list[dict[str, Any]]:
    """The published figures of a work, or of all works, the paper's first table before the others.

    Args:
        name: a file in `conf/published`, as `draft-and-verify`.

    Returns:
        A row a figure: system, model, data, temperature (0: greedy), metric, value, source; where it has one also arm
        (`plain` or `draft`), stop and setting (the rule and its dial), bound (`low` or `high`, of a range). What the
        source does not say is None or missing. Fractions, seconds and plain ratios, as in the run folders.

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
