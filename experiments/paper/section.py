"""One section of the report: a table, figures, and notes about them; in Markdown, CSV and LaTeX.

This module knows cells and columns. It must not know runs or the meaning of the numbers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments.results.tables import markdown_table, number
from selfspec.records.names import one_line


@dataclass(frozen=True, slots=True)
class Cell:
    """A measured number with its 95 % interval, and the published number; nan for a missing number.

    Attributes:
        here, low, high: measured number and the ends of its interval.
        published: the paper's number.
        digits: number of digits after the point.
    """

    here: float = math.nan
    low: float = math.nan
    high: float = math.nan
    published: float = math.nan
    digits: int = 2

    @classmethod
    def raced(cls, row: Mapping[str, Any]) -> Cell:
        """The speedup in a row of the finals of a search; a race on one prompt has no interval."""
        here, low, high = (math.nan if row[key] is None else float(row[key]) for key in ("speedup", "low", "high"))
        return cls(here, low, high)

    def __str__(self) -> str:
        here = number(self.here, self.digits)
        if not math.isnan(self.low):
            here += f" [{number(self.low, self.digits)}, {number(self.high, self.digits)}]"
        return here if math.isnan(self.published) else f"{number(self.published, self.digits)} / {here}"

    def beside(self, published: float) -> Cell:
        """The same cell with a published value."""
        return replace(self, published=published)

    @property
    def parts(self) -> dict[str, float]:
        """Its numbers by the ending of their columns in a CSV file."""
        return {"": self.here, "_low": self.low, "_high": self.high, "_published": self.published}


Value = str | int | Cell


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns and rows; a row has a value for each column."""

    columns: Sequence[str]
    body: Sequence[Sequence[Value]]

    def markdown(self) -> str:
        """The table in Markdown, with rounded numbers."""
        return markdown_table(self.columns, self._text())

    def latex(self) -> str:
        """The table as a `tabular` with the rules of booktabs, with rounded numbers."""
        frame = pd.DataFrame([map(one_line, row) for row in self._text()], columns=list(self.columns))
        return str(frame.to_latex(index=False, escape=True)).replace("–", "--")

    def csv(self) -> str:
        """The table in full precision; intervals and published values have their own columns if any row has them."""
        rows = [self._flat(row) for row in self.body]
        known = {key for row in rows for key, value in row.items() if value != ""}
        names = [n for column in self.columns for n in (column + end for end in Cell().parts) if n in known]
        file = io.StringIO()
        writer = csv.DictWriter(file, names or list(self.columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def _text(self) -> list[list[str]]:
        return [[str(value) for value in row] for row in self.body]

    def _flat(self, row: Sequence[Value]) -> dict[str, object]:
        flat: dict[str, object] = {}
        for column, value in zip(self.columns, row, strict=True):
            parts = value.parts if isinstance(value, Cell) else {"": value}
            flat |= {column + end: "" if part != part else part for end, part in parts.items()}
        return flat


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report.

    Attributes:
        stem: stem of its file names.
        title: its heading.
        table: its table; None for a section of figures only and for an empty section.
        figures: file name without ending to figure.
        notes: explanations of table and figures.
        to_do: if there are no rows, the command that makes them.
    """

    stem: str
    title: str
    table: Table | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[str] = ()
    to_do: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether the runs hold no data for this section."""
        return self.table is None and not self.figures

    def markdown(self) -> str:
        """The section in Markdown, with links to its pictures."""
        parts = [f"## {self.title}", *([self.table.markdown()] if self.table else [])]
        parts += [f"![{name}]({name}.png)" for name in self.figures]
        return "\n\n".join(parts + (["\n".join(f"- {note}" for note in self.notes)] if self.notes else []))
