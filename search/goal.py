"""What a search maximises, as a value: which objective, on answers how long. Prompts and a model make it one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from search.costs.draft_tables import DraftCosts
from search.multi_dataset import Combine, MultiDataset
from search.objective import Objective, SpecOfPoint, TokensPerSecond
from search.replay.objectives import ReplayObjective, accepted_fraction, expected_speedup
from search.replay.parallel_agreement import ParallelAgreement
from search.replay.references import BATCH_STARTS, ReferenceBatch, decode_references
from selfspec.engine.decode import Ending
from selfspec.errors import InputError, unknown_name
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.records.content_cache import ContentCache

TIMED, AGREED = "tokens_per_second", "matchness"
REPLAYED = {"expected_speedup": (expected_speedup, "x plain decoding"), "acceptance": (accepted_fraction, "accepted")}
NAMES = (*REPLAYED, AGREED, TIMED)

Prompts = Mapping[str, Sequence[Sequence[int]]]
"""Token ids of prompts, by data set."""


@dataclass(frozen=True, slots=True)
class Goal:
    """An objective without its prompts.

    Attributes:
        name: one of `NAMES`.
        max_new_tokens: of each calibration prompt.
        tune_stop: choose the settings of the stop rule anew for each point.
        combine: the values of several data sets: their mean, or the worst of them.
        batch_starts: places to draft from in one forward; bounds its memory.

    Raises:
        InputError: for another name or combination, or answers without tokens.
    """

    name: str = "expected_speedup"
    max_new_tokens: int = 32
    tune_stop: bool = False
    combine: Combine = "mean"
    batch_starts: int = BATCH_STARTS

    def __post_init__(self) -> None:
        Ending(self.max_new_tokens)
        if self.name not in NAMES:
            raise unknown_name("objective", self.name, list(NAMES))
        if self.combine not in get_args(Combine):
            raise InputError(f"objective.combine={self.combine!r}; it is {' or '.join(get_args(Combine))}")

    @property
    def uses_costs(self) -> bool:
        """Whether its values are made with measured costs of drafts."""
        return self.name in REPLAYED

    @property
    def is_timed(self) -> bool:
        """Whether its values are made by the clock."""
        return self.name == TIMED

    def on(
        self,
        prompts: Prompts,
        *,
        decoder: Decoder,
        draft: SpecOfPoint,
        costs: DraftCosts | None,
        cache: ContentCache | None = None,
        phase: Phases = unwatched,
    ) -> Objective:
        """The objective on these prompts; where there are several data sets, one for each, combined.

        Args:
            prompts: token ids, by data set.
            decoder: the model.
            draft: what a point is drafted with.
            costs: of drafts; may be None where `uses_costs` is false.
            cache: of this model: references that were decoded before are found again there.
            phase: is told how the decoding of references goes on.
        """
        each: dict[str, Objective] = {}
        for name, ids in prompts.items():
            if self.is_timed:
                each[name] = TokensPerSecond(decoder, ids, self.max_new_tokens, Stopwatch(decoder.device), draft)
                continue
            ending = Ending(self.max_new_tokens)
            batches = decode_references(
                decoder, ids, ending=ending, batch_starts=self.batch_starts, cache=cache, phase=phase
            )
            each[name] = self._replayed(batches, decoder, draft, costs)
        return MultiDataset(each, self.combine) if len(each) > 1 else next(iter(each.values()))

    def _replayed(
        self, batches: list[ReferenceBatch], decoder: Decoder, draft: SpecOfPoint, costs: DraftCosts | None
    ) -> Objective:
        watch = Stopwatch(decoder.device)
        if self.name == AGREED:
            return ParallelAgreement(decoder, batches, watch, draft)
        if costs is None:
            raise InputError(f"objective={self.name} needs the costs of drafts; measure them (search.costs.measure)")
        value, unit = REPLAYED[self.name]
        return ReplayObjective(self.name, unit, value, decoder, batches, costs, watch, draft, self.tune_stop)
