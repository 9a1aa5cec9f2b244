"""An arm that decodes with the draft in the place of the model.

Verification hides the quality of a draft's own text. This arm does not verify, so its output differs from plain
decoding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.sampling import Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet


@dataclass(slots=True)
class DraftOnlyArm:
    """Plain decoding with a draft in the model's place, also for the prompt; lossy, so its verdict is "not compared".

    Its rows name no skip set, because their speed belongs to another text and supports no claim about skipping.
    """

    decoder: Decoder
    ending: Ending
    sampling: Sampling
    stopwatch: Stopwatch
    name: str
    plan: DraftPlan
    skip: SkipSet | None = None
    stop: str | None = None
    is_lossless: ClassVar[bool] = False

    @property
    def about(self) -> dict[str, Any]:
        """The draft, marked as not verified."""
        return {"skip": str(self.plan.skip), "stop": None, "draft": str(self.plan), "draft_only": True}

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """Decode the prompts with the draft alone; one result for each."""
        return autoregress(
            alone(self.decoder, self.plan),
            prompts,
            ending=self.ending,
            sampling=self.sampling,
            first_row=first_row,
            stopwatch=self.stopwatch,
        )


def alone(decoder: Decoder, plan: DraftPlan) -> Decoder:
    """A copy of `decoder` whose full forward is the draft's; the copy shares all other parts with `decoder`."""
    draft = copy.copy(decoder)
    draft.full = decoder.bind(plan)
    return draft
