"""The record of a decode: counts and seconds. `measure.metrics` computes ratios from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Round:
    """One draft and one verification of one row.

    Attributes:
        drafted: number of proposed tokens.
        accepted: number of accepted tokens, up to the end of the sequence.
        committed: number of tokens added to the output: accepted + 1, or fewer if the sequence ended among them.
        draft_s, verify_s: seconds; in a batch of n live rows, 1/n of the batch's seconds.
        threshold: confidence threshold of the stop rule in this round; None if the rule has none.
        confidences: the draft's raw probability of each drafted token, or what else its stop rule reads; empty if it
            reads none.
        n_forwards: number of forwards of the drafter.
        source: source of the draft, see `Draft`; empty without a draft.
        version: version of the drafter, see `Draft`; empty for a drafter that does not change.
    """

    drafted: int
    accepted: int
    committed: int
    draft_s: float
    verify_s: float
    threshold: float | None = None
    confidences: tuple[float, ...] = ()
    n_forwards: int = 0
    source: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """Output of one prompt; `len(tokens) == 1 + sum(r.committed for r in rounds)`.

    Attributes:
        tokens: new token ids, the end-of-sequence token included.
        rounds: the rounds in order; in plain decoding each commits one token.
        prefill_s: seconds of the prompt's forward, which also gives the first token.
        total_s: seconds from before the prefill to the last token. In a batch of n live rows it is 1/n of the batch's
            seconds, so that tokens over seconds, summed over rows, is the throughput of the batch.
        finish: reason for the end: an end token, the criterion, or the length.
    """

    tokens: list[int]
    rounds: list[Round] = field(default_factory=list)
    prefill_s: float = 0.0
    total_s: float = 0.0
    finish: Finish = "length"

    @property
    def drafted(self) -> int:
        """Number of proposed tokens, over all rounds."""
        return sum(r.drafted for r in self.rounds)

    @property
    def accepted(self) -> int:
        """Number of accepted tokens, over all rounds."""
        return sum(r.accepted for r in self.rounds)
