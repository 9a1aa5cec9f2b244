"""What a training came to, or the best so far: acceptance by depth and the speedup that it promises.

This module reads one run. It must not know models or how a run is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.results.rows import CurveStep, Number
from experiments.results.run_folder import Run, flagged
from experiments.results.tables import text


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training; None for what is not known yet.

    Attributes:
        drafter: name of the head.
        n_weights: number of its weights.
        steps, seconds: of the training so far.
        best_step: step of the best look at held-out texts.
        conditional: by depth, the fraction of drafted tokens that are accepted if those before them were.
        expected_speedup: over plain decoding, at the measured costs, of drafts of `draft_length` tokens.
    """

    drafter: str
    n_weights: int | None
    steps: int
    seconds: Number
    best_step: int | None
    conditional: tuple[float, ...]
    expected_speedup: Number
    draft_length: int | None

    @property
    def by_depth(self) -> str:
        """Acceptance by depth: `0.52 0.54`; a dash if nothing was looked at."""
        return " ".join(f"{a:.2f}" for a in self.conditional) or "–"


def looks(rows: Sequence[CurveStep]) -> list[CurveStep]:
    """The steps after which the training looked at held-out texts."""
    return [row for row in rows if row.get("conditional")]


def trained(run: Run, rows: Sequence[CurveStep]) -> Trained:
    """The result of a training from its summary, or from its steps so far.

    Args:
        run: a run of train.
        rows: its steps.
    """
    best: Mapping[str, Any] = max(looks(rows), key=lambda row: row.get("expected_speedup") or 0.0, default={})
    end = run.summary if run.is_finished else {}
    found = {**best, **end}
    n_weights = run.facts.get("n_weights")
    return Trained(
        drafter=str(run.facts.get("drafter") or "–"),
        n_weights=n_weights if isinstance(n_weights, int) else None,
        steps=int(end.get("steps") or (rows[-1]["step"] if rows else 0)),
        seconds=end.get("seconds", rows[-1]["seconds"] if rows else None),
        best_step=end.get("best_step", best.get("step")),
        conditional=tuple(found.get("conditional") or ()),
        expected_speedup=found.get("expected_speedup"),
        draft_length=found.get("draft_length"),
    )


def training_cells(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """The column names and the cells of a table of trainings.

    Raises:
        InputError: if a row of a run cannot be read.
    """
    header = ["run", "model", "data", "head", "weights", "steps", "accepted by depth", "expected speedup", "a round"]
    return header, [_cells(run, trained(run, run.steps().whole())) for run in runs]


def _cells(run: Run, found: Trained) -> list[str]:
    return [
        flagged(run.id, is_finished=run.is_finished, is_busy=run.is_busy),
        *(text(run.facts.get(name)) for name in ("model", "data")),
        found.drafter,
        "–" if found.n_weights is None else f"{found.n_weights / 1e6:.2f} M",
        str(found.steps),
        found.by_depth,
        "–" if found.expected_speedup is None else f"{found.expected_speedup:.2f}",
        text(found.draft_length),
    ]
