"""Acceptance that is faster and not lossless: a drafted token stands where the target finds it likely enough.

The output is then not the target's: an arm that uses these verifiers is approximate, and every table calls it so.
"""

# B rows, T tokens, V vocabulary

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from selfspec.engine.protocols import ROOT, Draft, Row, Verdict
from selfspec.errors import InputError


class Lenient(ABC):
    """A verifier of greedy decoding that lets tokens stand which the target does not choose; a subclass says which."""

    @abstractmethod
    def stands(self, token: int, logits_V: Tensor) -> bool:
        """Whether a drafted token stands where the target has these logits, after any processor."""

    def judge(self, rows: Sequence[Row], drafts: Sequence[Draft], logits_BTV: Tensor) -> list[Verdict]:
        """A verdict for each row; of siblings the one that the target finds likeliest counts.

        Raises:
            InputError: if a row samples.
        """
        if any(row.chooser.do_sample for row in rows):
            raise InputError("approximate acceptance is for greedy decoding; leave it out, or set sampling=greedy")
        return [self._row(*each) for each in zip(rows, drafts, logits_BTV, strict=True)]

    def _row(self, row: Row, draft: Draft, logits_TV: Tensor) -> Verdict:
        path: list[int] = []
        node = ROOT
        while True:
            ids = row.ids + draft.path(node)
            token, logits_V = row.chooser.greedy(ids, logits_TV[node + 1]), row.chooser.warp(ids, logits_TV[node + 1])
            children = draft.children(node)
            best = max(children, key=lambda child: float(logits_V[draft.tokens[child]]), default=ROOT)
            if best == ROOT or not (draft.tokens[best] == token or self.stands(draft.tokens[best], logits_V)):
                return Verdict(path, token)
            path.append(best)
            node = best


@dataclass(frozen=True, slots=True)
class AmongBest(Lenient):
    """A drafted token stands if it is among the target's `n` likeliest.

    Source: Stern et al. 2018 (arXiv:1811.03115), section 5.1, top-k selection.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 2:
            raise InputError(f"accept top {self.n}; from 2 on it is approximate, and exact without it")

    def stands(self, token: int, logits_V: Tensor) -> bool:
        """Whether fewer than `n` tokens are likelier."""
        return int((logits_V > logits_V[token]).sum()) < self.n

    def __str__(self) -> str:
        return f"top {self.n}"


@dataclass(frozen=True, slots=True)
class Near(Lenient):
    """A drafted token stands if its log-probability is at most `distance` below that of the target's choice.

    Stern's distance is that of intensities of a picture; numbers of tokens have none, their probabilities do.

    Source: Stern et al. 2018 (arXiv:1811.03115), section 5.2, distance-based selection.
    """

    distance: float

    def __post_init__(self) -> None:
        if self.distance <= 0:
            raise InputError(f"accept distance {self.distance}; it is above 0, and without it acceptance is exact")

    def stands(self, token: int, logits_V: Tensor) -> bool:
        """Whether the gap of the logits, which is that of the log-probabilities, is small."""
        return bool(logits_V.max() - logits_V[token] <= self.distance)

    def __str__(self) -> str:
        return f"distance {self.distance}"
