"""Writes the report on systems into a folder: Markdown, CSV, LaTeX, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.paper.evidence import Evidence
from experiments.paper.write import write_sections
from experiments.results.run_folder import Run
from experiments.systems import table
from experiments.systems.preparation import collecting_s
from experiments.systems.systems import systems

CELLS = "Cells read *measured [95 % interval over prompts]*; `–` where there is no number."


def write_systems(evidence: Evidence, runs: Sequence[Run], folder: Path) -> tuple[list[str], list[Path]]:
    """Write the table of all systems; returns the Markdown of its sections, and the paths of the written files."""
    found = systems(evidence, runs)
    seconds = collecting_s(runs)
    note = CELLS if seconds is None else f"{CELLS} The text of all trainings took {seconds:.0f} s to collect."
    return write_sections([table.speeds(found), table.costs(found), table.losses(found)], note, folder)
