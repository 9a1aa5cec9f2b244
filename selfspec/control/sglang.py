"""The two controllers of SGLang: by the average number of accepted tokens, and by measured throughput."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from selfspec.control.base import Controller, Judged, OneLength, Standing, check_lengths, check_shares, mean_context
from selfspec.control.step_costs import StepCosts
from selfspec.errors import InputError


def check_lists(sizes: Sequence[int], *others: Sequence[object]) -> None:
    """Refuse lists that do not belong together."""
    rises = all(a < b for a, b in pairwise(sizes))
    if not sizes or sizes[0] != 1 or not rises or any(len(other) != len(sizes) for other in others):
        raise InputError(f"controller.sizes={list(sizes)}: rising, from 1, and as many as the lists beside it")


@dataclass(frozen=True, slots=True)
class Ema(Controller):
    """Moves along a list of lengths as the average number of accepted tokens of a step moves.

    After `warmup` steps it decides every `period` steps. It goes down while the average is at most `prev - 0.5 + down`,
    where prev is the length below (0.5 + down to reach 0), and up while it is above `length - 0.5 + up`. From 0 it
    tries the next length; each try that ends at 0 again doubles the decisions until the next one. Costs play no part.

    Two deviations from SGLang: there `up` is 0 and `down` -0.25 for single requests and 0 for batches, and it flips
    between two lengths while the average is near a pivot; and there 0 is left at each decision.

    Attributes:
        sizes: smallest batch for each of the lists.
        lengths: for each size, lengths to choose from, rising.
        up, down: for each size, distance of the pivots.
        share: weight of a step in the average.
        warmup, period: in steps.

    Source: sgl-project/sglang, `srt/speculative/adaptive_spec_params.py`.
    """

    sizes: tuple[int, ...] = (1, 8, 32, 64)
    lengths: tuple[tuple[int, ...], ...] = ((1, 3, 5, 7), (0, 1, 3), (0, 1), (0,))
    up: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    down: tuple[float, ...] = (-0.5, -0.25, -0.25, -0.25)
    share: float = 0.2
    warmup: int = 10
    period: int = 5
    reads_costs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("sizes", "up", "down"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "lengths", tuple(tuple(each) for each in self.lengths))
        check_lists(self.sizes, self.lengths, self.up, self.down)
        check_lengths(period=self.period)
        check_shares(share=self.share)
        for each in self.lengths:
            if not each or min(each) < 0 or any(a >= b for a, b in pairwise(each)):
                raise InputError(f"controller.lengths={list(each)}: rising, none below 0, at least one")

    @property
    def max_draft(self) -> int:
        """The longest of all lengths."""
        return max(each[-1] for each in self.lengths)

    def begin(self, costs: StepCosts) -> _EmaState:
        """A state that begins in the middle of each list."""
        return _EmaState(self)


@dataclass(slots=True)
class _Slot:
    """State for one size of batch."""

    at: int
    average: float
    n_steps: int = 0
    n_waiting: int = 0  # decisions until the next try
    patience: int = 1


@dataclass(slots=True)
class _EmaState(OneLength):
    policy: Ema
    slots: dict[int, _Slot] = field(default_factory=dict)

    def length(self, rows: Sequence[Standing]) -> int:
        i, slot = self._slot(len(rows))
        return self.policy.lengths[i][slot.at]

    def observe(self, step: Sequence[Judged]) -> None:
        p, (i, slot) = self.policy, self._slot(len(step))
        if p.lengths[i][slot.at]:
            now = sum(row.n_accepted for row in step) / len(step)
            slot.average += p.share * (now - slot.average)
        slot.n_steps += 1
        if slot.n_steps > p.warmup and (slot.n_steps - p.warmup) % p.period == 0:
            self._decide(i, slot)

    def _slot(self, n_rows: int) -> tuple[int, _Slot]:
        i = sum(size <= n_rows for size in self.policy.sizes) - 1
        if i not in self.slots:
            middle = len(self.policy.lengths[i]) // 2
            self.slots[i] = _Slot(middle, self.policy.lengths[i][middle] - 1.0)
        return i, self.slots[i]

    def _decide(self, i: int, slot: _Slot) -> None:
        lengths, before = self.policy.lengths[i], slot.at
        if lengths[before] == 0:
            slot.n_waiting -= 1
            if slot.n_waiting <= 0 and before + 1 < len(lengths):
                slot.at += 1
            return
        while slot.at > 0 and slot.average <= max(0.5, lengths[slot.at - 1] - 0.5) + self.policy.down[i]:
            slot.at -= 1
        if slot.at < before:
            if lengths[slot.at] == 0:
                slot.n_waiting, slot.patience = slot.patience, 2 * slot.patience
            return
        while slot.at + 1 < len(lengths) and slot.average > lengths[slot.at] - 0.5 + self.policy.up[i]:
            slot.at += 1
            slot.patience = 1


@dataclass(frozen=True, slots=True)
class Throughput(Controller):
    """The length with the most expected tokens for the seconds of a step, the expectation from windows by position.

    It decides every `period` steps once all positions of its length have a full window. Unknown positions continue the
    known ones geometrically. A shorter length clears the windows of the positions behind it.

    Deviations from SGLang: 0 may be chosen, and then nothing is cleared, since nothing would fill the windows again;
    and another length must be better by `steady`, which SGLang has in a function that it does not call.

    Attributes:
        window: steps of a window.
        period: steps between decisions.
        steady: factor by which another length must be better.
        first: length at the start.

    Source: sgl-project/sglang, `srt/speculative/throughput_aware_controller.py` and `throughput_aware_spec_params.py`.
    """

    max_draft: int = 7
    window: int = 20
    period: int = 10
    steady: float = 1.1
    first: int = 3

    def __post_init__(self) -> None:
        check_lengths(max_draft=self.max_draft, window=self.window, period=self.period, first=self.first)
        if self.first > self.max_draft or self.steady < 1:
            raise InputError(
                f"controller.first={self.first}, steady={self.steady}: first lies in 1..max_draft ({self.max_draft}), "
                "and steady is at least 1"
            )

    def begin(self, costs: StepCosts) -> _ThroughputState:
        """A state with empty windows."""
        return _ThroughputState(self, costs, self.first, [deque(maxlen=self.window) for _ in range(self.max_draft)])


@dataclass(slots=True)
class _ThroughputState(OneLength):
    policy: Throughput
    costs: StepCosts
    chosen: int
    windows: list[deque[float]]
    n_steps: int = 0

    def length(self, rows: Sequence[Standing]) -> int:
        due = self.n_steps and self.n_steps % self.policy.period == 0
        if due and all(len(window) == self.policy.window for window in self.windows[: self.chosen]):
            self._decide(rows)
        return self.chosen

    def observe(self, step: Sequence[Judged]) -> None:
        self.n_steps += 1
        for position, window in enumerate(self.windows):
            judged = [row for row in step if row.length > position]
            if judged:
                window.append(sum(row.n_accepted > position for row in judged) / len(judged))

    def _decide(self, rows: Sequence[Standing]) -> None:
        n = len(rows)
        batch = self.costs.of_batch(n, mean_context(rows), self.policy.max_draft)
        tokens = [1.0]
        for chance in self._chances():
            tokens.append(tokens[-1] + chance)
        scores = [tokens[k] / batch.seconds([k] * n) for k in range(len(tokens))]
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] <= self.policy.steady * scores[self.chosen]:
            return
        if 0 < best < self.chosen:
            for window in self.windows[best:]:
                window.clear()
        self.chosen = best

    def _chances(self) -> list[float]:
        """The probability that each position is accepted; nothing behind the last known one if only one is known."""
        found = [sum(window) / len(window) for window in self.windows if window]
        known = len(found)
        while found and len(found) < self.policy.max_draft:
            step = (found[known - 1] / found[0]) ** (1 / (known - 1)) if known > 1 and found[0] > 0 else found[0]
            found.append(min(found[-1], found[-1] * step))
        return found
