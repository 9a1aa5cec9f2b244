"""The arm that drafts in another process while this one verifies, and what the run says of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from experiments.evaluation.arms import Arm
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.sampling import Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.overlapped import arithmetic
from selfspec.overlapped.process import ChildPartner
from selfspec.overlapped.rates import Rates
from selfspec.overlapped.schedule import Overlapped
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed


@dataclass(slots=True)
class OverlappedArm:
    """A draft in a process of its own; the length of its blocks takes the place of the stop rule."""

    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    name: str
    skip: SkipSet | None
    stop: str | None
    spec: DraftSpec
    overlapped: Overlapped
    partner: ChildPartner
    rates: Rates
    is_lossless: ClassVar[bool] = True

    @property
    def about(self) -> dict[str, Any]:
        """The draft's settings, and the length of its blocks."""
        own = {"drafter": dict(self.spec.drafter)} if self.spec.drafter else {}
        return {
            "skip": None if self.skip is None else str(self.skip),
            "stop": self.stop,
            "draft": str(self.spec.plan),
            "lookup": None,
            "memory": None,
            "schedule": "pearl",
            **own,
        }

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """Decode one prompt."""
        return speculate(
            self.decoder,
            prompts,
            drafter=self.overlapped,
            stops=[Fixed(1).begin() for _ in prompts],
            ending=self.ending,
            sampling=self.sampling,
            first_row=first_row,
            stopwatch=self.stopwatch,
            schedule=self.overlapped,
        )


def end_processes(arms: Iterable[Arm]) -> None:
    """End the drafters' processes of these arms."""
    for arm in arms:
        if isinstance(arm, OverlappedArm):
            arm.partner.stop()


@dataclass(frozen=True, slots=True)
class Overlap:
    """What the rounds of an overlapped arm found, beside what the rates of the machine predict.

    Attributes:
        gamma: tokens of a block; of adaptive blocks, those that take as long as a verification.
        acceptance: accepted tokens over tested ones; nan if none was tested.
        n_in_a_row: accepted tokens for each rejection; infinite without one.
        predicted: speed over plain decoding, from the seconds of both processes at once.
        in_turn: the same for the best length of drafts in turn, from the seconds of each alone.
        needs_r: the r from which it is faster than decoding in turn, or than plain decoding.
        has_r: the r of this draft beside this target.
        is_alone: whether the drafter's process was lost during the run.
    """

    gamma: int
    acceptance: float
    n_in_a_row: float
    predicted: float
    in_turn: float
    needs_r: float
    has_r: float
    is_alone: bool


def overlap(arm: OverlappedArm, rows: Iterable[Mapping[str, Any]]) -> Overlap:
    """The overlap of an arm; `rows` are the run's, of all arms."""
    own = [row for row in rows if row["arm"] == arm.name and not row.get("error")]
    drafted = [n for row in own for n in row["round_drafted"]]
    accepted = [n for row in own for n in row["round_accepted"]]
    n_rejected = sum(a < d for a, d in zip(accepted, drafted, strict=True))
    rates, gamma = arm.rates, arm.rates.gamma
    alpha = arithmetic.acceptance(sum(accepted), sum(accepted) + n_rejected)
    alone = max(gamma * rates.draft_all, rates.verify_all)
    together = max(gamma * rates.draft_pair, rates.verify_pair)
    is_known = not math.isnan(alpha)
    return Overlap(
        gamma=gamma,
        acceptance=alpha,
        n_in_a_row=sum(accepted) / n_rejected if n_rejected else math.inf,
        predicted=arithmetic.overlapped_speedup(alpha, gamma, rates.together) if is_known else math.nan,
        in_turn=arithmetic.in_turn_speedup(alpha, rates.alone) if is_known else math.nan,
        needs_r=arithmetic.break_even(alpha, gamma, rates.alone) if is_known else math.nan,
        has_r=alone / together,
        is_alone=not arm.partner.is_there,
    )


Speedup = tuple[float, float, float]  # over plain decoding, and its 95 % interval


def overlap_sentences(arm: OverlappedArm, found: Overlap, measured: Mapping[str, Speedup]) -> list[str]:
    """What a run says of an overlapped arm.

    Args:
        arm: the arm.
        found: its overlap.
        measured: speedup by name of arm.
    """
    rates = arm.rates
    lines = [
        f"{arm.name}: two processes at once run the target at {rates.r:.2f} of the speed of one with "
        f"{rates.n_threads} threads, and at {rates.r_one:.2f} of that of one of them alone"
    ]
    if math.isnan(found.acceptance):
        return [*lines, f"{arm.name}: no drafted token was tested, so there is nothing to predict from"]
    speedup, low, high = measured.get(arm.name, (math.nan, math.nan, math.nan))
    lines += [
        f"{arm.name}: gamma {found.gamma}, acceptance {found.acceptance:.2f}, {found.n_in_a_row:.1f} tokens accepted "
        f"in a row; predicted {found.predicted:.2f}x, measured {speedup:.2f} [{low:.2f}, {high:.2f}]; the best length "
        f"in turn is predicted at {found.in_turn:.2f}x",
        f"{arm.name}: by these rates PEARL needs r >= {found.needs_r:.2f} on this machine and has {found.has_r:.2f}: "
        f"it {'pays' if found.has_r >= found.needs_r else 'does not pay'}{_doubt(found, low, high)}",
    ]
    if found.is_alone:
        lines.append(f"{arm.name}: the drafter's process was lost during the run, so its speed is not that of PEARL")
    return lines


def _doubt(found: Overlap, low: float, high: float) -> str:
    """Why the rates may be wrong, as the end of a sentence."""
    why = [f"{found.predicted:.2f}x is outside the measured interval"] if not low <= found.predicted <= high else []
    why += ["two processes cannot be faster than each alone"] if found.has_r > 1 else []
    return f"; in doubt: {', and '.join(why)}; the pace of the machine may have changed" if why else ""


def overlap_facts(arm: OverlappedArm, found: Overlap) -> dict[str, Any]:
    """The overlap and the rates of an arm, for the summary of the run; infinite and unknown numbers are null."""
    facts = {**asdict(found), **asdict(arm.rates), "r": arm.rates.r, "r_one": arm.rates.r_one}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
