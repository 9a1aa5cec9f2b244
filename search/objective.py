"""How good a draft is. Larger is better, always."""

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
    """What scoring a point found: the value, and the counts it comes from.

    Attributes:
        value: larger is better; its unit is the objective's.
        n_tokens, n_rounds, drafted, accepted: pooled over prompts, without first tokens (the prefill's).
        seconds: spent decoding those tokens.
        draft_cost: of one drafted token, in plain tokens, pooled over the drafted tokens; None: unknown.
        values: of each prompt scored, in the order of the prompts, which is the same for every point; empty where
            the objective has none.
        pruned: scoring ended before the last prompt, since the others would not have made it the best.
        stop: name and settings of the stop rule, where the objective chose them for this point.
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
        """Accepted over drafted; nan if nothing was drafted."""
        return acceptance(self.accepted, self.drafted)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the acceptance (None if nothing was drafted)."""
        rate = self.acceptance
        return {**asdict(self), "acceptance": None if math.isnan(rate) else rate}


ShouldContinue = Callable[[Sequence[float]], bool]  # the values of the prompts so far -> whether to score the others
Draft = Callable[[Point], DraftSpec]  # what a point is drafted with


class Objective(Protocol):
    """Scores points of the search space."""

    @property
    def name(self) -> str:
        """What it is called in configurations and records."""
        ...

    @property
    def unit(self) -> str:
        """Of the value."""
        ...

    def __call__(self, point: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """The score of `point`.

        Args:
            point: what is scored; a skip set is a point without other dimensions.
            should_continue: gets the values of the prompts so far; scoring ends when it returns False. An objective
                without a value for each prompt never calls it.

        Raises:
            RuntimeError, DrafterError: if it could not be scored; the trial is recorded as failed, with the reason.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokensPerSecond:
    """Wall-clock decoding speed on calibration prompts: the paper's objective. Noisy, and right by definition.

    Attributes:
        decoder: the model.
        prompts: token ids of the calibration prompts.
        max_new_tokens: of each prompt.
        stopwatch: where seconds come from.
        draft: what a point is drafted with; its stop rule goes on from prompt to prompt if the rule says so.

    Source: Zhang et al. 2024 (arXiv:2309.08168), section 3.2. Prefill is not counted here, since no draft changes it.
    """

    decoder: Decoder
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    stopwatch: Stopwatch
    draft: Draft
    name: str = "tokens_per_second"
    unit: str = "tokens/s"

    def __post_init__(self) -> None:
        Ending(self.max_new_tokens)  # refuses what no trial could do, before there is a run

    def __call__(self, point: Point | SkipSet, *, should_continue: ShouldContinue | None = None) -> Score:
        """See `Objective`."""
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
