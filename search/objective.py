"""Objectives: the value of a draft. Larger is always better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from search.point import Point
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, speculate
from selfspec.measure.metrics import acceptance, ratio
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class Score:
    """Score of a point: the value, and the counts behind it.

    Attributes:
        value: value in the objective's unit; larger is better.
        n_tokens, n_rounds, drafted, accepted: counts pooled over prompts, without each first token (of the prefill).
        seconds: seconds of decoding these tokens; for a replay, seconds of scoring.
        draft_cost: cost of one drafted token, in plain tokens, pooled over drafted tokens; None: unknown.
        values: value of each scored prompt, in an order that is the same for every point; empty if the objective has
            no value for each prompt.
        pruned: whether scoring ended before the last prompt, since the point could not become the best.
        stop: name and settings of the stop rule, if the objective chose them for this point.
    """

    value: float
    n_tokens: int
    n_rounds: int
    drafted: int
    accepted: int
    seconds: float
    draft_cost: float | None = None
    values: tuple[float, ...] = ()
    pruned: bool = False
    stop: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a score must be a finite number, not {self.value}")

    @property
    def acceptance(self) -> float:
        """Accepted over drafted tokens, in [0, 1]; nan if nothing was drafted."""
        return acceptance(self.accepted, self.drafted)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the acceptance (None if nothing was drafted)."""
        rate = self.acceptance
        return {**asdict(self), "acceptance": None if math.isnan(rate) else rate}


ShouldContinue = Callable[[Sequence[float]], bool]  # values of the prompts so far -> whether to score the others
SpecOfPoint = Callable[[Point], DraftSpec]  # from a point to its draft spec


class Objective(Protocol):
    """Scores points of the search space."""

    @property
    def name(self) -> str:
        """Name in configurations and records."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the value."""
        ...

    def __call__(self, point: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """The score of `point`.

        Args:
            point: point to score; a skip set is a point without other dimensions.
            should_continue: gets the values of the prompts so far; scoring ends when it returns False. An objective
                without a value for each prompt never calls it.

        Raises:
            RuntimeError, DrafterError: if the point cannot be scored; the trial is recorded as failed, with the reason.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokensPerSecond:
    """Measured decoding speed on calibration prompts, the objective of Draft & Verify. It is noisy but has no bias.

    Attributes:
        decoder: the model.
        prompts: token ids of the calibration prompts.
        max_new_tokens: largest number of new tokens for each prompt.
        stopwatch: measures the seconds.
        draft: gives the draft spec of a point; a stop rule that carries over does so from prompt to prompt.

    Source: Zhang et al. 2024 (arXiv:2309.08168), section 3.2. The prefill does not count, since no draft changes it.
    """

    decoder: Decoder
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    stopwatch: Stopwatch
    draft: SpecOfPoint
    name: str = "tokens_per_second"
    unit: str = "tokens/s"

    def __post_init__(self) -> None:
        Ending(self.max_new_tokens)  # refuses an invalid length before there is a run

    def __call__(self, point: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """Tokens per second of decoding all prompts, one after another."""
        spec = self.draft(Point.from_draft(point))
        drafter = build_drafter(spec, self.decoder)
        ending = Ending(self.max_new_tokens)
        n_tokens = n_rounds = drafted = accepted = 0
        seconds, state = 0.0, None
        for ids in self.prompts:
            state = spec.stop.begin(state)
            (result,) = speculate(
                self.decoder, [ids], drafter=drafter, stops=[state], ending=ending, stopwatch=self.stopwatch
            )
            n_tokens += len(result.tokens) - 1
            n_rounds += len(result.rounds)
            drafted += result.drafted
            accepted += result.accepted
            seconds += result.total_s - result.prefill_s
        if n_tokens == 0:
            raise RuntimeError("every calibration prompt ended at its first token, so there is nothing to time")
        return Score(ratio(n_tokens, seconds), n_tokens, n_rounds, drafted, accepted, seconds)
