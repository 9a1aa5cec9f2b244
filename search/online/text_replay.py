"""Search on the newest text: drafts are replayed on what was just verified, with the full model's keys, and priced.

One forward counts how many of the newest tokens a draft predicts, each after the full model's text, without noise. With
costs that are measured on the spot this gives the speedup to expect. A set that looks better is confirmed by a replay
of all rounds of the window. Nothing is drafted while no set is expected to gain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from search.constraints import Constraints
from search.costs.table import CostTable
from search.objective import Score
from search.online.prices import expected_speedup, measure_prices
from search.online.set_searcher import SetSearcher, Tools
from search.online.tried import Tried
from search.online.window import Window, as_batch, count_agreed, window_of
from search.replay.chain_replay import replay
from search.replay.chains import Chains
from search.replay.objectives import cost_of
from search.replay.objectives import expected_speedup as replayed_speedup
from search.samplers.base import Exhausted
from search.space import Space
from search.study.study import SearchStudy
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Row
from selfspec.errors import InputError
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet, deepest_attention, evenly_spaced

STARTS = (0.1, 0.2, 0.3, 0.45)  # shares of the layers that the first sets skip; chosen, not tuned
MOST_KNOWN = 400  # trials of a stream that its sampler is told again when the stream goes on; bounds the start


@dataclass(frozen=True, slots=True)
class TextReplay:
    """Settings of the search on the newest text.

    Attributes:
        sampler: function from a seed to the searcher that proposes sets, as in a search beforehand.
        window: newest tokens that drafts are compared on.
        interval: rounds from one candidate to the next.
        early_share, share: share of all seconds that the search may take, for the first `early_tokens` tokens of the
            stream and afterwards.
        early_tokens: see there.
        max_draft: longest draft that is priced, in tokens.
        confirm: replay all rounds of the window with both sets before one replaces the other.
        margin: gain of the expected speedup that a set must have to be taken.
        best: best known sets that are scored first when a new prompt begins.
        keep_ends: never skip in the first and the last layer.
        seed: seed of the sampler.

    Raises:
        InputError: if a setting leaves nothing to compare.
    """

    sampler: Callable[[int], Any]
    window: int
    interval: int
    early_share: float
    share: float
    early_tokens: int
    max_draft: int
    confirm: bool
    margin: float
    best: int
    keep_ends: bool
    seed: int

    def __post_init__(self) -> None:
        if min(self.window, self.interval, self.max_draft) < 1 or min(self.early_share, self.share, self.best) < 0:
            raise InputError(
                f"online=replay with window={self.window}, interval={self.interval}, max_draft={self.max_draft}, "
                f"early_share={self.early_share}, share={self.share}, best={self.best}; the first three are 1 at "
                "least, and the others are not negative"
            )

    def begin(self, tools: Tools) -> TextReplaySearcher:
        """The searcher of a new stream."""
        return TextReplaySearcher(tools, self)


class TextReplaySearcher(SetSearcher):
    """See `TextReplay`; it drafts nothing until a set is expected to gain, unless it begins with a set."""

    objective: ClassVar[str] = "expected_speedup"

    def __init__(self, tools: Tools, settings: TextReplay) -> None:
        super().__init__(tools, start=None)
        n, self.settings = self.decoder.n_layers, settings
        ends = 1 if settings.keep_ends and n > 2 else 0
        self._space = Space(n, Constraints(keep_first=ends, keep_last=ends))
        self._study = SearchStudy(self._space, settings.sampler, seed=settings.seed)
        self._queue: deque[SkipSet] = deque(_starts(self._space))
        if self.skip is not None and len(self.skip):
            self._queue.appendleft(self.skip)
        self.costs: CostTable | None = None
        self._next = 0
        self._row: int | None = None  # the row of the last window
        self._read_at = -1  # where the set in use was scored last

    def improve(self, rows: Sequence[Row], cache: ClockCache) -> None:
        """Score the set in use again if the text has moved on, and then a candidate, if the budget allows."""
        s, p = self.settings, self.progress
        if p.n_rounds < self._next or not self._is_paid():
            return
        window = window_of(rows, self.prompts, cache, n_tokens=s.window, is_first=False)
        if window is None:
            return
        self._next = p.n_rounds + s.interval
        if self.costs is None:
            self.costs = measure_prices(self.decoder, self.plan_of, window, self.watch)
            return
        row = next(r.key for r in rows if r.ids is window.ids)
        if row != self._row:
            self._row, self._read_at = row, -1
            self._queue.extend(skip for skip in self._best_known() if skip not in self._queue)
        if self._read_at < 0 or window.end - self._read_at >= s.window // 2:
            self._read_at = window.end
            self._score_in_use(window)
            return
        self._try(window)

    def _is_paid(self) -> bool:
        s, p = self.settings, self.progress
        share = s.early_share if p.n_tokens < s.early_tokens else s.share
        return self._spent_here() <= share * self.seconds

    def _spent_here(self) -> float:
        """Seconds of the search in this session; those of former sessions were paid there."""
        return self.progress.spent_s - self._spent_before

    _spent_before = 0.0

    def _score_in_use(self, window: Window) -> None:
        """The value of the set in use on the newest text; it gives way to plain decoding if it loses."""
        if self.skip is None or not len(self.skip):
            self.value = 1.0
            return
        began = self.watch.now()
        self.value, agreed, cost = self._value(self.skip, window)
        is_kept = self.value > 1.0
        self._record(self.skip, self.value, agreed, cost, began, window, is_taken=is_kept)
        if not is_kept:
            self.use(None)

    def _try(self, window: Window) -> None:
        """Score the next candidate, and take it if it is better."""
        began = self.watch.now()
        proposal = None
        if self._queue:
            skip = self._queue.popleft()
        else:
            try:
                proposal = self._study.ask()
            except Exhausted:
                return
            skip = proposal.skip
        value, agreed, cost = self._value(skip, window)
        here = self.value or 1.0
        is_better = len(skip) > 0 and skip != self.skip and value > here + self.settings.margin
        if is_better and self.settings.confirm:
            value, here = self._replayed(skip, window), self._replayed(self.skip, window)
            is_better = value > here + self.settings.margin
        score = Score(value, window.n_tokens, 1, window.n_tokens, agreed, self.watch.now() - began, draft_cost=cost)
        self._study.tell(proposal or self._study.start(skip), score, elapsed_s=self.progress.spent_s)
        self._record(skip, value, agreed, cost, began, window, is_taken=is_better)
        if is_better:
            self.value = value
            self.use(skip)

    def _value(self, skip: SkipSet, window: Window) -> tuple[float, int, float]:
        """Expected speedup, tokens that were right, and cost of a drafted token."""
        assert self.costs is not None
        agreed = count_agreed(self.decoder.bind(self.plan_of(skip)), window, own_keys=False)
        value, _ = expected_speedup(agreed / window.n_tokens, skip, self.costs, max_draft=self.settings.max_draft)
        return value, agreed, self.costs.draft_cost(skip, self.costs.contexts[0])

    def _replayed(self, skip: SkipSet | None, window: Window) -> float:
        """Speedup of all rounds that the run's stop rule would make on the window with a chain of this set."""
        if skip is None or not len(skip):
            return 1.0
        assert self.costs is not None
        rule = self.spec.stop
        batch = as_batch(window, max_draft=rule.max_draft)
        chains = Chains(
            self.decoder.bind(self.plan_of(skip)),
            batch,
            max_draft=rule.max_draft,
            with_confidence=rule.needs_confidence,
            evidence=rule.evidence,
        )
        (rounds,) = replay(chains, rule)
        priced = DraftPlan.from_skip_set(skip)  # the costs are those of its head and precision
        return replayed_speedup([cost_of(rounds, batch.references[0], priced, self.costs)])

    def _best_known(self) -> list[SkipSet]:
        """The best distinct sets of the stream so far, by their last values, without the one in use."""
        values = {trial.skip: trial.value for trial in self.progress.trials}
        order = sorted(values, key=lambda skip: -values[skip])
        known = [SkipSet.parse(skip, self.decoder.n_layers) for skip in order[: self.settings.best + 1]]
        return [skip for skip in known if skip != self.skip and len(skip)][: self.settings.best]

    def _record(
        self, skip: SkipSet, value: float, agreed: int, cost: float, began: float, window: Window, *, is_taken: bool
    ) -> None:
        seconds = self.watch.now() - began
        self.progress.add(
            skip, value, n_read=window.n_tokens, n_agreed=agreed, seconds=seconds, is_taken=is_taken, draft_cost=cost
        )

    def restore(self, state: Mapping[str, Any], trials: Sequence[Tried]) -> None:
        """Go on; the sampler is told the newest trials again."""
        super().restore(state, trials)
        self._spent_before = self.progress.spent_s
        self._queue.clear()
        for trial in trials[-MOST_KNOWN:]:
            score = Score(trial.value, trial.n_read, 1, trial.n_read, trial.n_agreed, trial.seconds)
            skip = SkipSet.parse(trial.skip, self.decoder.n_layers)
            self._study.tell(self._study.start(skip), score, elapsed_s=trial.elapsed_s)

    def begin_from(self, state: Mapping[str, Any]) -> None:
        """Begin with the set of another stream; it drafts at once, and its value is computed on the first window."""
        super().begin_from(state)
        if self.skip is not None:
            self._queue.appendleft(self.skip)


def _starts(space: Space) -> list[SkipSet]:
    """The first sets: whole layers evenly spaced, and deep attention."""
    n = space.n_layers
    counts = [max(1, round(share * n)) for share in STARTS]
    found = [evenly_spaced(n, count) for count in counts if count <= n - 2]
    found += [deepest_attention(n, 2 * count) for count in counts]
    return list(dict.fromkeys(skip for skip in map(space.project, found) if len(skip)))
