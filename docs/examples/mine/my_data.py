"""A data set: prompts of two parts, which share none."""

from __future__ import annotations

from dataclasses import dataclass

from selfspec.data.task import Example


@dataclass
class Counting:
    """`n` prompts for calibration, and `n` others for evaluation."""

    n: int
    name: str = "mine"
    version: str = "1"

    def examples(self, part: str) -> list[Example]:
        """The prompts of `calibration` or `evaluation`."""
        return [Example(f"{part}-{i}", f"{part} number {i}") for i in range(self.n)]

    def facts(self) -> dict[str, str]:
        """Where the prompts come from, for the run's records."""
        return {"source": "counted"}
