"""SWIFT: random skip sets of one size and proposals of a Gaussian process, compared on the text that is being written.

A candidate drafts the first tokens of the present answer in one forward, with its own keys and values; the share that
it predicts is its value (matchness).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.online.gaussian_process import GaussianProcess, largest_bound, largest_bound_of_subsets
from search.online.set_searcher import SetSearcher, Tools
from search.online.tried import Tried
from search.online.window import Window, count_agreed, window_of
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Row
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class Swift:
    """Settings of SWIFT's search; the defaults of `conf/online/swift.yaml` are those of its evaluation script.

    Attributes:
        window: tokens that a candidate predicts; a candidate is scored once the answer has two more.
        skip_ratio: share of the sublayers between the first and the last layer that candidates skip.
        bayes_interval: every so many candidates one is proposed by the Gaussian process.
        opt_interval: rounds from one candidate to the next.
        max_opt_iter: candidates after which the search ends.
        max_tolerance_iter: consecutive candidates without a better one after which it ends.
        max_score: value above which it ends.
        kappa: standard deviations in the upper confidence bound of the process.
        alpha: variance of the noise of the process.
        drift: fall of the value of the set in use, from one answer to the next, after which an ended search goes on;
            without effect if `faithful`.
        faithful: as the released code does it. The first set is never scored, so the first candidate replaces it. The
            value of the set in use stays that of the answer it was found on. A proposal of the process is remembered
            as the numbers it came from and not as the set that was scored. Keys and values are copied in every round
            and for every candidate.
        seed: seed of the candidates.

    Raises:
        InputError: if a setting leaves nothing to compare.

    Source: Xia et al. 2025 (arXiv:2410.06916), and its released code.
    """

    window: int
    skip_ratio: float
    bayes_interval: int
    opt_interval: int
    max_opt_iter: int
    max_tolerance_iter: int
    max_score: float
    kappa: float
    alpha: float
    drift: float
    faithful: bool
    seed: int

    def __post_init__(self) -> None:
        least = min(self.window, self.bayes_interval, self.opt_interval)
        if least < 1 or not 0 < self.skip_ratio < 1:
            raise InputError(
                f"online=swift with window={self.window}, bayes_interval={self.bayes_interval}, "
                f"opt_interval={self.opt_interval}, skip_ratio={self.skip_ratio}; the first three are 1 at least, and "
                "the ratio lies between 0 and 1"
            )

    def begin(self, tools: Tools) -> SwiftSearcher:
        """The searcher of a new stream."""
        return SwiftSearcher(tools, self)


def every_odd_layer(n_layers: int) -> SkipSet:
    """Attention and MLP of layers 1, 3, 5, ... without the last layer."""
    layers = frozenset(range(1, n_layers - 1, 2))
    return SkipSet(n_layers, layers, layers)


class SwiftSearcher(SetSearcher):
    """SWIFT's state machine, see `Swift`; it begins with every odd layer skipped."""

    def __init__(self, tools: Tools, settings: Swift) -> None:
        n = tools.decoder.n_layers
        super().__init__(tools, start=every_odd_layer(n))
        self.settings = settings
        self._inner = list(range(2, 2 * n - 2))  # indices of the sublayers that may be skipped, as in `SkipSet.bits`
        self._n_skipped = int(settings.skip_ratio * len(self._inner))
        if not 0 < self._n_skipped < len(self._inner):
            raise InputError(
                f"skip_ratio={settings.skip_ratio} skips {self._n_skipped} of the {len(self._inner)} sublayers between "
                "the first and the last layer; that leaves nothing to search"
            )
        self.n_iter = self.n_stale = 0
        self.is_active = True
        self._answer: int | None = None  # the row on which the set in use was scored last
        self._points: list[tuple[float, ...]] = []
        self._values: list[float] = []

    def improve(self, rows: Sequence[Row], cache: ClockCache) -> None:
        """Score the set in use on a new answer, or the next candidate."""
        s = self.settings
        if s.faithful:
            cache.copied(cache.capacity)  # the published code copies the buffers in every round
        if self.progress.n_rounds % s.opt_interval or (s.faithful and not self.is_active):
            return
        # w + 1 tokens of the answer are read, and the token after each is compared
        window = window_of(rows, self.prompts, cache, n_tokens=s.window + 1, is_first=True)
        if window is None:
            return
        answer = next(row.key for row in rows if row.ids is window.ids)
        if not s.faithful and answer != self._answer:
            self._answer = answer
            self._score_in_use(window)
        elif self.is_active:
            self._try(window)

    def _score_in_use(self, window: Window) -> None:
        """Score the set in use on another answer than before."""
        assert self.skip is not None
        before, began = self.value, self.watch.now()
        self.value, agreed = self._value(self.skip, window)
        if not self._points:
            self._remember(self._as_point(self.skip), self.value)
        self._record(self.skip, self.value, agreed, began, window, is_taken=True)
        if not self.is_active and before is not None and before - self.value > self.settings.drift:
            self.is_active, self.n_stale = True, 0

    def _try(self, window: Window) -> None:
        """Score a candidate, take it if it is better, and end the search where the settings say so."""
        s, began = self.settings, self.watch.now()
        if s.faithful:
            copied = window.cache.copied(window.cache.capacity)
            window = Window(window.ids, window.first, window.end, copied)
        rng = np.random.default_rng([s.seed, self.n_iter])
        proposed = self._proposed(rng)
        chosen = np.argsort(-proposed, kind="stable")[: self._n_skipped]
        skip = self._from_inner({int(i) for i in chosen})
        value, agreed = self._value(skip, window)
        self._remember(tuple(proposed) if s.faithful else self._as_point(skip), value)
        is_better = value > (self.value or 0.0)
        if is_better:
            self.n_stale = 0
            self.is_active = value <= s.max_score
            self.value = value
        else:
            self.n_stale += 1
        self.n_iter += 1
        if self.n_stale > s.max_tolerance_iter or self.n_iter > s.max_opt_iter:
            self.is_active = False
        self._record(skip, value, agreed, began, window, is_taken=is_better, raw=self._points[-1])
        if is_better:
            self.use(skip)

    def _proposed(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
        """A number for each inner sublayer; those with the largest are skipped."""
        s, n = self.settings, len(self._inner)
        if (self.n_iter + 1) % s.bayes_interval or not self._points:
            chosen = rng.choice(n, self._n_skipped, replace=False)
            found = np.zeros(n)
            found[chosen] = 1.0
            return found
        process = GaussianProcess.fitted(self._points, self._values, alpha=s.alpha)
        if s.faithful:
            return largest_bound(process, rng, kappa=s.kappa)
        return largest_bound_of_subsets(process, rng, n_chosen=self._n_skipped, kappa=s.kappa)

    def _value(self, skip: SkipSet, window: Window) -> tuple[float, int]:
        agreed = count_agreed(self.decoder.bind(self.plan_of(skip)), window, own_keys=True)
        return agreed / window.n_tokens, agreed

    def _remember(self, point: tuple[float, ...], value: float) -> None:
        self._points.append(point)
        self._values.append(value)

    def _record(
        self,
        skip: SkipSet,
        value: float,
        agreed: int,
        began: float,
        window: Window,
        *,
        is_taken: bool,
        raw: tuple[float, ...] = (),
    ) -> None:
        seconds = self.watch.now() - began
        self.progress.add(
            skip, value, n_read=window.n_tokens, n_agreed=agreed, seconds=seconds, is_taken=is_taken, raw=raw
        )

    def _from_inner(self, chosen: set[int]) -> SkipSet:
        bits = [False] * (2 * self.decoder.n_layers)
        for i in chosen:
            bits[self._inner[i]] = True
        return SkipSet.from_bits(bits)

    def _as_point(self, skip: SkipSet) -> tuple[float, ...]:
        bits = skip.bits()
        return tuple(float(bits[i]) for i in self._inner)

    def state(self) -> dict[str, Any]:
        """What was learnt, with the counters of the stop conditions."""
        return super().state() | {"n_iter": self.n_iter, "n_stale": self.n_stale, "is_active": self.is_active}

    def restore(self, state: Mapping[str, Any], trials: Sequence[Tried]) -> None:
        """Go on; the process learns from the trials again."""
        super().restore(state, trials)
        self.n_iter, self.n_stale, self.is_active = state["n_iter"], state["n_stale"], state["is_active"]
        for i, trial in enumerate(trials):
            if trial.raw or not i:
                point = trial.raw or self._as_point(SkipSet.parse(trial.skip, self.decoder.n_layers))
                self._remember(point, trial.value)
