"""The finals of a search: score the best trials on fresh prompts, then race them against plain decoding by the clock.

The value of a search's best trial is biased, since the trial was chosen for it. Fresh prompts remove this bias, and the
race measures the real speedup. All finalists decode the same prompts in turn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search.objective import Objective, Score
from search.point import Point
from search.study.race_rules import doubts, too_slow
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.prefix import shared_prefix
from selfspec.engine.trace import DecodeResult
from selfspec.errors import DrafterError
from selfspec.measure.intervals import Interval
from selfspec.measure.metrics import Timed, acceptance, speedup, speedup_interval, tokens_per_round
from selfspec.measure.phases import Step
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.stopping import StopState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Finalist:
    """A point in the finals.

    Attributes:
        point: of the search space.
        spec: what it is raced with.
        trial_value: of the trial that brought it here.
        score: on fresh prompts.
        predicted: its speedup over plain decoding by that score; None if the objective predicts none.
        expected: its value on prompts that nobody has seen, see `search.study.expected`; None where that is unknown.
        times, results: of the race, a prompt each.
        out_after: prompts after which it was out; None if it was not.
    """

    point: Point
    spec: DraftSpec
    trial_value: float
    score: Score | None = None
    predicted: float | None = None
    expected: float | None = None
    times: list[Timed] = field(default_factory=list)
    results: list[DecodeResult] = field(default_factory=list)
    out_after: int | None = None


@dataclass(frozen=True, slots=True)
class Raced:
    """What the race found of one finalist: speedup over plain decoding with its 95 % interval, and counts.

    Attributes:
        doubts: why the speedup may be wrong, a clause each; empty if nothing speaks against it.
        n_races: of which this is the last; 2 where a result of the first was in doubt.
    """

    finalist: Finalist
    speedup: float
    interval: Interval
    acceptance: float
    tokens_per_round: float
    doubts: tuple[str, ...] = ()
    n_races: int = 1

    @property
    def row(self) -> dict[str, Any]:
        """The row of `finals.jsonl`."""
        f, (low, high) = self.finalist, self.interval
        row = {
            "skip": str(f.point.skip),
            **({"settings": dict(f.point.settings)} if f.point.settings else {}),
            "head": None if f.spec.plan.head is None else len(f.spec.plan.head),
            "stop": f.spec.stop.to_dict(),
            "trial_value": f.trial_value,
            "fresh_value": None if f.score is None else f.score.value,
            "predicted": f.predicted,
            "expected": f.expected,
            "speedup": self.speedup,
            "low": low,
            "high": high,
            "acceptance": self.acceptance,
            "tokens_per_round": self.tokens_per_round,
            "n_prompts": len(f.times),
            "out_after": f.out_after,
            "in_doubt": list(self.doubts),
            "n_races": self.n_races,
        }
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def rescore(entries: Sequence[tuple[Finalist, Objective]], *, n_kept: int, step: Step | None = None) -> list[Finalist]:
    """Score each finalist with its objective, and call `step` after each; returns the best `n_kept`, best first."""
    for finalist, objective in entries:
        finalist.score = objective(finalist.point)
        if step:
            step()
    return sorted((f for f, _ in entries), key=lambda f: -f.score.value if f.score else 0.0)[:n_kept]


def race(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    finalists: Sequence[Finalist],
    *,
    ending: Ending,
    stopwatch: Stopwatch,
    listener: Callable[[int], None] | None = None,
) -> list[Raced]:
    """Decode every prompt plainly and with each finalist in turn; returns the best first, dropped ones last.

    A finalist whose drafter is at fault is left out of the result, with a warning that says why.

    A finalist is out when a test that is made after each prompt finds it slower than the fastest (`too_slow`). The
    first prompt is decoded once before, and does not count. Finalists that raced before start anew.

    Args:
        decoder: the model.
        prompts: token ids; not those that the finalists were chosen on.
        finalists: the finalists.
        ending: end of each answer.
        stopwatch: measures the seconds.
        listener: called with the number of finished prompts.
    """
    plain: list[Timed] = []
    for f in finalists:
        f.times, f.results, f.out_after = [], [], None
    states: dict[int, StopState | None] = dict.fromkeys(range(len(finalists)))
    drafters = [build_drafter(f.spec, decoder) for f in finalists]
    prefix = shared_prefix(decoder, prompts)  # reading a prompt is no part of what is timed

    faulty: set[int] = set()

    def run(i: int, ids: Sequence[int]) -> DecodeResult | None:
        """Decode with the i-th finalist, or plainly for -1; None if its drafter is at fault, which ends its race."""
        if i < 0:
            (result,) = autoregress(decoder, [ids], ending=ending, stopwatch=stopwatch, prefix=prefix)
            return result
        states[i] = state = finalists[i].spec.stop.begin(states[i])
        try:
            (result,) = speculate(
                decoder,
                [ids],
                drafter=drafters[i],
                stops=[state],
                ending=ending,
                stopwatch=stopwatch,
                prefix=prefix,
            )
        except DrafterError as error:
            faulty.add(i)
            log.warning("%s is out of the race: %s", finalists[i].point, error)
            return None
        return result

    for i in range(-1, len(finalists)):
        run(i, prompts[0])
    for n_done, ids in enumerate(prompts, start=1):
        going = [-1, *(i for i, f in enumerate(finalists) if f.out_after is None and i not in faulty)]
        turn = [going[(n_done + j) % len(going)] for j in range(len(going))]
        for i in turn:
            result = run(i, ids)
            if result is None:
                continue
            timed = Timed(result.total_s - result.prefill_s, len(result.tokens) - 1)
            if i < 0:
                plain.append(timed)
            else:
                finalists[i].times.append(timed)
                finalists[i].results.append(result)
        times = {i: f.times for i, f in enumerate(finalists) if f.out_after is None and i not in faulty}
        for i in too_slow(times, n_finalists=len(finalists), n_prompts=len(prompts)):
            finalists[i].out_after = n_done
        if listener:
            listener(n_done)
    raced = [_raced(f, plain) for i, f in enumerate(finalists) if i not in faulty]
    return sorted(raced, key=lambda r: (r.finalist.out_after is not None, -r.speedup))


def settled(measure: Callable[[], list[Raced]]) -> list[Raced]:
    """The results of a race, `measure()`; of a second one, if any result of the first is in doubt."""
    raced = measure()
    if not any(r.doubts for r in raced):
        return raced
    for r in raced:
        if r.doubts:
            log.warning(
                "the race is run again: %s, %.2fx, is in doubt: %s", r.finalist.point, r.speedup, "; ".join(r.doubts)
            )
    return [replace(r, n_races=2) for r in measure()]


def _raced(finalist: Finalist, plain: Sequence[Timed]) -> Raced:
    baseline = plain[: len(finalist.times)]
    rounds = [r for result in finalist.results for r in result.rounds]
    drafted, accepted = sum(r.drafted for r in rounds), sum(r.accepted for r in rounds)
    return Raced(
        finalist,
        speedup(baseline, finalist.times),
        speedup_interval(baseline, finalist.times),
        acceptance(accepted, drafted),
        tokens_per_round(accepted, len(rounds)),
        tuple(doubts(baseline, finalist.times, predicted=finalist.predicted)),
    )
