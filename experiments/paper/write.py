"""Writes all sections of the paper's report into a folder: Markdown, CSV, LaTeX, and pictures beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.paper import (
    curves,
    latency,
    oracle,
    positions,
    predicted,
    results,
    searches,
    skips,
    stops,
    sublayers,
    trajectory,
    transfer,
)
from experiments.paper.evidence import Evidence
from experiments.paper.section import Section
from experiments.results import figures
from selfspec.records import run_files

SECTIONS: Sequence[Callable[[Evidence], Section]] = (
    results.section,
    stops.fixed_lengths,
    stops.static_thresholds,
    oracle.section,
    latency.section,
    curves.section,
    predicted.section,
    sublayers.section,
    trajectory.section,
    positions.section,
    skips.skip_map,
    skips.overlap,
    transfer.section,
    searches.section,
)
CELLS = (
    "Where a value was published for the same model, data and temperature, a cell reads *published / here [95 % "
    "interval over prompts]*; `–` where there is no number."
)


def write_paper(evidence: Evidence, folder: Path) -> tuple[list[str], list[Path]]:
    """Write every section with rows: STEM.csv and STEM.tex for its table, NAME.png and NAME.svg for each figure.

    Returns:
        The Markdown of the sections and of the missing ones, and the paths of the written files.
    """
    return write_sections([make(evidence) for make in SECTIONS], CELLS, folder)


def write_sections(sections: Sequence[Section], note: str, folder: Path) -> tuple[list[str], list[Path]]:
    """Write sections as `write_paper` does, below a note on their cells."""
    paths: list[Path] = []
    for section in sections:
        if section.table:
            for ending, text in (("csv", section.table.csv()), ("tex", section.table.latex())):
                paths.append(folder / f"{section.stem}.{ending}")
                run_files.write_text(paths[-1], text)
        for name, figure in section.figures.items():
            paths += figures.save(figure, folder / name)
    missing = [f"- {section.title}: `{section.to_do}`" for section in sections if section.is_empty]
    parts = [note, *(section.markdown() for section in sections if not section.is_empty)]
    parts += ["## Left out, for want of runs", "\n".join(missing)] if missing else []
    return parts, paths
