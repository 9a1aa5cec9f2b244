"""What a decode leaves behind: integers and seconds, never ratios (those are `metrics`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Round:
    """One draft and one verification of one row.

    Attributes:
        drafted: tokens proposed.
        accepted: drafted tokens that the target agreed with, up to the end of the sequence.
        committed: tokens that became output: accepted + 1, or fewer where the sequence ended among them.
        draft_s, verify_s: seconds; of a batch of n rows at work, this row's share, 1/n.
        threshold: the stop rule's confidence threshold while drafting, where it has one.
        confidences: the draft's raw probability of each drafted token, where the stop rule asked for it.
        n_forwards: forwards of the drafter.
        source: who drafted, see `Draft`; empty where nobody did.
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


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """The output of one prompt; `len(tokens) == 1 + sum(r.committed for r in rounds)`.

    Attributes:
        tokens: new token ids, the end-of-sequence token included.
        rounds: in order; plain decoding drafts nothing and commits one token a round.
        prefill_s: seconds of the prompt's forward, which also gives the first token.
        total_s: seconds from before the prefill to the last token; of a batch of n rows at work, this row's share, 1/n,
            so that tokens over seconds, summed over rows, is the batch's throughput.
        finish: why it ended.
    """

    tokens: list[int]
    rounds: list[Round] = field(default_factory=list)
    prefill_s: float = 0.0
    total_s: float = 0.0
    finish: Finish = "length"

    @property
    def drafted(self) -> int:
        """Tokens proposed, over all rounds."""
        return sum(r.drafted for r in self.rounds)

    @property
    def accepted(self) -> int:
        """Drafted tokens that the target agreed with, over all rounds."""
        return sum(r.accepted for r in self.rounds)
