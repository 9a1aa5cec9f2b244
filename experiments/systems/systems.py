"""The systems of a report: arms of the same name, over all evaluations that measured them.

This module groups arms. It must not know tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.paper.evidence import Evidence, Measured
from experiments.paper.section import Cell
from experiments.results import figure_data
from experiments.results.run_folder import Run
from experiments.results.tables import decoding, times
from experiments.systems.account import Account, account
from experiments.systems.preparation import NOTHING, Preparation, preparation
from experiments.systems.text_class import text_class
from selfspec.measure import metrics
from selfspec.measure.metrics import Timed

DEPTHS = 4  # depths of a draft whose acceptance is shown


@dataclass(frozen=True, slots=True)
class System:
    """A way to decode, as a report measured it.

    Attributes:
        model: the target.
        name: name of its arms, with the batch if that is not 1.
        arms: its arms, one for each evaluation.
        prepared: what was done before.
        published: the figures that its authors report.
    """

    model: str
    name: str
    arms: Sequence[Measured]
    prepared: Preparation = NOTHING
    published: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def is_baseline(self) -> bool:
        """Whether this is plain decoding."""
        return self.arms[0].row.is_baseline

    @property
    def is_another_output(self) -> bool:
        """Whether its text is not the model's own, so that its speed supports no claim."""
        return any(arm.row.is_lossy or arm.row.is_approximate for arm in self.arms)

    @property
    def extra_bytes(self) -> int | None:
        """Bytes of the tensors that it holds besides the model; None if its runs did not record them."""
        known = [arm.about["extra_bytes"] for arm in self.arms if arm.about.get("extra_bytes") is not None]
        return max(known) if known else None

    @property
    def account(self) -> Account | None:
        """What its rounds gain and cost; None without rounds."""
        return account(self.arms)

    @property
    def by_depth(self) -> list[float]:
        """Acceptance at the first depths of its drafts, of tokens whose predecessors in the draft were accepted."""
        rows = [row for arm in self.arms for row in arm.rows if row.get("round_drafted") is not None]
        found = (figure_data.position(rows, depth) for depth in range(1, DEPTHS + 1))
        return [position.acceptance for position in found if position.judged]

    def of(self, text: str) -> Sequence[Measured]:
        """Its arms on a class of text."""
        return [arm for arm in self.arms if text_class(arm.run) == text]

    def speedup(self, text: str | None = None) -> Cell:
        """Its speedup over plain decoding, pooled over the answers of a class of text, or of all; nan if unmeasured."""
        arms = self.arms if text is None else self.of(text)
        plain: list[Timed] = []
        own: list[Timed] = []
        for arm in arms:
            if not (arm.row.is_judged or arm.row.is_lossy):
                return Cell()
            pairs = [(b, m) for b, m in arm.pairs if b["n_tokens"] > 1 and m["n_tokens"] > 1]
            for side, found in zip((plain, own), times(pairs, decoding), strict=True):
                side += found
        if not own:
            return Cell()
        return Cell(metrics.speedup(plain, own), *metrics.speedup_interval(plain, own))

    def count(self, name: str) -> int:
        """The sum of a count of its rows, such as `n_identical`."""
        return sum(getattr(arm.row, name) for arm in self.arms)


def systems(evidence: Evidence, runs: Sequence[Run]) -> list[System]:
    """The systems of the evidence, in the order in which their arms appear; plain decoding first.

    Args:
        evidence: arms and published figures.
        runs: all runs of the report, with trainings and searches.
    """
    groups: dict[tuple[str, str], list[Measured]] = {}
    for arm in evidence.arms:
        if not arm.run.facts.get("samples", 1) or not arm.pairs:
            continue
        groups.setdefault((arm.row.model, label(arm)), []).append(arm)
    found = [
        System(model, name, arms, prepared=_prepared(arms, runs), published=_published(evidence, arms[0].row.arm))
        for (model, name), arms in groups.items()
    ]
    return sorted(found, key=lambda system: (system.model, not system.is_baseline, "batch" in system.name))


def label(arm: Measured) -> str:
    """The name of the system of an arm: `EAGLE-3`, `SmartSpec, batch 8`."""
    batch = arm.run.facts.get("batch", 1)
    return arm.row.arm if batch == 1 else f"{arm.row.arm}, batch {batch}"


def slug(name: str) -> str:
    """The key of a system in `conf/published`: `Draft & Verify` is `draft-and-verify`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("&", "and")).strip("-")


def _prepared(arms: Sequence[Measured], runs: Sequence[Run]) -> Preparation:
    """The most expensive preparation of the arms, which may name other drafts for other texts."""
    return max((preparation(arm, runs) for arm in arms), key=lambda p: p.seconds or 0.0)


def _published(evidence: Evidence, name: str) -> list[Mapping[str, Any]]:
    return [row for row in evidence.published if row.get("system") == slug(name) and row.get("headline")]
