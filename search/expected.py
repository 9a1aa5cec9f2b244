"""The noise-free objective: replayed counts and measured costs give the speedup that a skip set would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search.cost import CostTable
from search.objective import GoOn, Score
from search.replay import Reference, replay
from selfspec.draft import ModelDraft
from selfspec.model import Decoder
from selfspec.skip import SkipSet
from selfspec.stop import StopPolicy
from selfspec.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class ExpectedSpeedup:
    """Plain seconds over draft and verify seconds for the same tokens: counts replayed, costs from a table.

    It ignores the engine's own time in a round (about a hundredth) and whatever disturbs the machine, so that two runs
    give the same number.

    Attributes:
        decoder: the model.
        references: what the full model says on the calibration prompts.
        stop: the stop rule; every prompt begins afresh.
        max_new_tokens: of each prompt.
        costs: measured on this machine.
        stopwatch: for the seconds that scoring takes.

    Source: the closed form of Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8, with counted instead of assumed
    acceptance and a measured cost of verification.
    """

    decoder: Decoder
    references: Sequence[Reference]
    stop: StopPolicy
    max_new_tokens: int
    costs: CostTable
    stopwatch: Stopwatch
    name: str = "expected_speedup"
    unit: str = "x plain decoding"

    def __call__(self, skip: SkipSet, *, go_on: GoOn | None = None) -> Score:
        """See `Objective`."""
        began = self.stopwatch.now()
        drafter = ModelDraft(self.decoder.bind(skip), needs_confidence=self.stop.needs_confidence)
        replayed = replay(
            self.decoder, self.references, drafter=drafter, stop=self.stop, max_new_tokens=self.max_new_tokens
        )
        plain_s = method_s = 0.0
        for reference, rounds in zip(self.references, replayed, strict=True):
            context = len(reference.prompt)
            for r in rounds:
                method_s += r.drafted * self.costs.draft_s(skip, context)
                method_s += self.costs.verification_s(r.drafted + 1, context)
                plain_s += r.committed * self.costs.plain_s(context)
                context += r.committed
        rounds = [r for rows in replayed for r in rows]
        if not rounds:
            raise RuntimeError("every calibration prompt ended at its first token, so there is nothing to draft")
        return Score(
            value=plain_s / method_s,
            n_tokens=sum(r.committed for r in rounds),
            n_rounds=len(rounds),
            drafted=sum(r.drafted for r in rounds),
            accepted=sum(r.accepted for r in rounds),
            seconds=self.stopwatch.now() - began,
        )
