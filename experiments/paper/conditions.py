"""The conditions of the runs of a report, unfinished runs, failed jobs, and the commands that repeat each run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from experiments.results.find_runs import Failure
from experiments.results.run_folder import Run, flagged
from experiments.results.tables import markdown_table, package, text
from selfspec.records.names import one_line

BUSY = "Busy machine: others were at work when a run marked so began; its seconds are in doubt."


def conditions(runs: Sequence[Run], failures: Sequence[Failure], overrides: Sequence[str]) -> list[str]:
    """The last parts of a report, in Markdown.

    Args:
        runs: runs of the report.
        failures: failed jobs of sweeps.
        overrides: settings of the command that makes the report.
    """
    header = ["run", "started", "dtype", "device", "attention", "threads", "load before", "torch", "transformers"]
    names = ",".join(run.name for run in runs)
    words = [f"runs={names}", *(word for word in overrides if not word.startswith("runs="))]
    notes = [f"Unfinished: {run.name}. Its rows are true, but not all." for run in runs if not run.is_finished]
    notes += [BUSY] if any(run.is_busy for run in runs) else []
    commands = [f"{run.id}: `{run.command}`" for run in runs]
    failed = [f"{f.name}: {f.error} (`{shlex.join(f.overrides)}`)" for f in failures]
    return [
        "## Conditions",
        markdown_table(header, [_cells(run) for run in runs]),
        *([bullets(notes)] if notes else []),
        *(["## Failed jobs", bullets(failed)] if failed else []),
        "## To make it again",
        bullets(commands),
        f"Made by `selfspec report {' '.join(map(shlex.quote, words))}`",
    ]


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {one_line(line)}" for line in lines)


def _cells(run: Run) -> list[str]:
    return [
        flagged(run.name, is_finished=run.is_finished, is_busy=run.is_busy),
        text(run.provenance.get("started")),
        *(text(run.facts.get(name)) for name in ("dtype", "device", "attention", "threads")),
        text(run.provenance.get("load_before")),
        *(package(run, name) for name in ("torch", "transformers")),
    ]
