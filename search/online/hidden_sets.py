"""CLaSp and KnapSpec: skip sets from the hidden states of the newest verified tokens, every few rounds."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from search.costs.table import CostTable
from search.fitting.continuations import Text
from search.fitting.hidden_states_runner import HiddenStateRunner
from search.online.prices import measure_prices
from search.online.set_searcher import SetSearcher, Tools
from search.online.window import Window, window_of
from search.samplers.clasp import solve_layers
from search.samplers.knapsack import PartialDrafts, solve, units
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Draft, Output, Row, Verdict
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet, evenly_spaced


@dataclass(frozen=True, slots=True)
class Clasp:
    """Settings of CLaSp's search.

    Attributes:
        skip_ratio: share of the layers that the draft skips.
        interval: rounds from one search to the next.
        keep_ends: never skip the first and the last layer.

    Source: Chen et al. 2025 (arXiv:2505.24196): the state of the last accepted token, whole layers.
    """

    skip_ratio: float
    interval: int
    keep_ends: bool

    def __post_init__(self) -> None:
        _check("clasp", self.interval)
        if not 0 < self.skip_ratio < 1:
            raise InputError(f"online=clasp with skip_ratio={self.skip_ratio}; it lies between 0 and 1")

    def begin(self, tools: Tools) -> ClaspSearcher:
        """The searcher of a new stream."""
        return ClaspSearcher(tools, self)


@dataclass(frozen=True, slots=True)
class Knapspec:
    """Settings of KnapSpec's search.

    Attributes:
        interval: rounds from one search to the next.
        n_rounds: the newest rounds whose tokens are looked at.
        max_draft: longest draft that is priced, in tokens.
        largest_unit: largest number of cost units of a sublayer.
        least_cosine: a draft with a smaller cosine at any sublayer is dropped.
        keep_ends: never skip in the first and the last layer.

    Source: Cha et al. 2026 (arXiv:2602.20217), and its released code.
    """

    interval: int
    n_rounds: int
    max_draft: int
    largest_unit: int
    least_cosine: float
    keep_ends: bool

    def __post_init__(self) -> None:
        _check("knapspec", self.interval, self.n_rounds, self.max_draft, self.largest_unit)

    def begin(self, tools: Tools) -> KnapspecSearcher:
        """The searcher of a new stream."""
        return KnapspecSearcher(tools, self)


def _check(name: str, *counts: int) -> None:
    if min(counts) < 1:
        raise InputError(f"online={name} with a count of {min(counts)}; its counts are 1 at least")


class HiddenSetSearcher(SetSearcher):
    """Every `interval` rounds it chooses a set from hidden states of the newest tokens.

    Args:
        tools: model, first draft and clock.
        start: the first set.
        interval: rounds from one search to the next.
        n_rounds: the newest rounds whose tokens are looked at; 0: the last token alone.
    """

    objective: ClassVar[str] = "cosine"

    def __init__(self, tools: Tools, *, start: SkipSet | None, interval: int, n_rounds: int) -> None:
        super().__init__(tools, start=start)
        self._interval, self._next = interval, 1  # the first search follows the first round
        self._lengths: deque[int] = deque(maxlen=max(1, n_rounds))  # committed tokens of the newest rounds
        self._is_last_alone = not n_rounds

    def tell(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Note how many tokens the round has committed."""
        super().tell(row, draft, verdict, target)
        self._lengths.append(len(verdict.path) + 1)

    def improve(self, rows: Sequence[Row], cache: ClockCache) -> None:
        """Choose a set, if the interval is over."""
        if self.progress.n_rounds < self._next or not self._lengths:
            return
        n_tokens = 1 if self._is_last_alone else sum(self._lengths)
        window = window_of(rows, self.prompts, cache, n_tokens=n_tokens, is_first=False)
        if window is None:
            return
        self._next = self.progress.n_rounds + self._interval
        began = self.watch.now()
        at = window.first
        text = Text(window.ids[:at], window.ids[at:])
        stream = HiddenStateRunner(self.decoder, [text], n_positions=window.n_tokens, keys=window.cache)
        skip, value, n_agreed, cost = self.choose(stream, window)
        self.value = value
        seconds = self.watch.now() - began
        self.progress.add(
            skip,
            value,
            n_read=window.n_tokens,
            n_agreed=n_agreed,
            seconds=seconds,
            is_taken=skip != self.skip,
            draft_cost=cost,
        )
        if skip != self.skip:
            self.use(skip)

    @abstractmethod
    def choose(self, stream: HiddenStateRunner, window: Window) -> tuple[SkipSet, float, int, float | None]:
        """A set, its value, how many of the window's tokens it predicts, and the cost of its tokens if it is known."""


class ClaspSearcher(HiddenSetSearcher):
    """See `Clasp`; until the first search it skips evenly spaced layers."""

    def __init__(self, tools: Tools, settings: Clasp) -> None:
        n = tools.decoder.n_layers
        most = n - 2 if settings.keep_ends else n - 1
        self._n_skipped = max(1, min(most, round(settings.skip_ratio * n)))
        self._keep_ends = settings.keep_ends
        start = evenly_spaced(n, min(self._n_skipped, max(n - 2, 0)))
        super().__init__(tools, start=start, interval=settings.interval, n_rounds=0)

    def choose(self, stream: HiddenStateRunner, window: Window) -> tuple[SkipSet, float, int, float | None]:
        """The set of that size whose state is nearest to the full model's."""
        drafts = solve_layers(stream, keep_ends=self._keep_ends)
        n = min(range(len(drafts.saved)), key=lambda i: abs(drafts.saved[i] - self._n_skipped))
        return SkipSet.from_bits(drafts.bits[n]), drafts.cosines[n], _agreed(stream, drafts)[n], None


class KnapspecSearcher(HiddenSetSearcher):
    """See `Knapspec`; nothing is drafted until the first search, which measures what sublayers cost."""

    objective: ClassVar[str] = "tokens_per_second"

    def __init__(self, tools: Tools, settings: Knapspec) -> None:
        super().__init__(tools, start=None, interval=settings.interval, n_rounds=settings.n_rounds)
        self._settings = settings
        self._costs: CostTable | None = None

    def choose(self, stream: HiddenStateRunner, window: Window) -> tuple[SkipSet, float, int, float | None]:
        """The saving, and the length of drafts, with the most tokens a second."""
        s = self._settings
        if self._costs is None:
            self._costs = measure_prices(self.decoder, self.plan_of, window, self.watch)
        costs, context = self._costs, self._costs.contexts[0]
        attn, mlp = units(costs, context, largest=s.largest_unit)
        drafts = solve(stream, attn=attn, mlp=mlp, keep_ends=s.keep_ends, least_cosine=s.least_cosine)
        agreed = _agreed(stream, drafts)
        values = [
            max(tokens_per_s(n / window.n_tokens, SkipSet.from_bits(bits), costs, d) for d in range(1, s.max_draft))
            for n, bits in zip(agreed, drafts.bits, strict=True)
        ]
        best = max(range(len(values)), key=values.__getitem__)
        skip = SkipSet.from_bits(drafts.bits[best])
        return skip, values[best], agreed[best], costs.draft_cost(skip, context)


def tokens_per_s(acceptance: float, skip: SkipSet, costs: CostTable, n_drafted: int) -> float:
    """KnapSpec's tokens per second: expected tokens of a round over the seconds of its sublayers.

    Its verification takes as long as a plain token. Head and embedding are left out.
    """
    expected = sum(acceptance**i for i in range(n_drafted + 1))
    n_attn, n_mlp = skip.n_layers - len(skip.attn), skip.n_layers - len(skip.mlp)
    attn_s = costs.attn_s[0] * (n_attn * n_drafted + skip.n_layers)
    return expected / (attn_s + costs.mlp_s * (n_mlp * n_drafted + skip.n_layers))


def _agreed(stream: HiddenStateRunner, drafts: PartialDrafts) -> list[int]:
    """For each draft the positions at which it says the same as the full model, which is the first draft."""
    says_NBP = stream.says(drafts.states)
    found: list[int] = (says_NBP == says_NBP[:1]).flatten(1).sum(1).tolist()
    return found
