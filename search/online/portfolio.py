"""A portfolio: several drafts as arms of a bandit, by the tokens that they commit in a second; plain decoding is one.

Every round is timed. The arm with the largest measured rate drafts; an arm whose rate is uncertain enough to be larger
is tried for a few rounds, as long as what such trials have lost stays within a share of all seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search.online.set_searcher import Tools
from search.online.tried import Progress, Tried
from selfspec.drafters.build import build_drafter
from selfspec.drafters.chain import NoDraft
from selfspec.drafters.online import Chosen
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Needs, Output, Row, Verdict
from selfspec.errors import InputError
from selfspec.stopping import Fixed, StopPolicy, StopState

PLAIN_ARM = "plain"
OWN_ARM = "run"  # the draft that the run names, if it drafts anything


@dataclass(frozen=True, slots=True)
class Portfolio:
    """Settings of a portfolio.

    Attributes:
        arms: settings of each arm by name, as the arms of an evaluation; the builder makes drafts of them.
        rounds: rounds of an arm in one trial.
        memory: rounds that count; older ones fade.
        kept: rounds of what was learnt that a new prompt begins with, so that each prompt may choose anew.
        deviations: standard deviations above its rate up to which an arm may be better than it was measured.
        max_loss: share of all seconds that trials may lose.
        grace_s: seconds that trials may lose in any case.

    Raises:
        InputError: if a count or a share is impossible.
    """

    arms: dict[str, Any]
    rounds: int
    memory: int
    kept: int
    deviations: float
    max_loss: float
    grace_s: float

    def __post_init__(self) -> None:
        if min(self.rounds, self.memory, self.kept) < 1 or min(self.deviations, self.max_loss, self.grace_s) < 0:
            raise InputError(
                f"online=portfolio with rounds={self.rounds}, memory={self.memory}, kept={self.kept}, "
                f"deviations={self.deviations}, max_loss={self.max_loss}, grace_s={self.grace_s}; the first three are "
                "1 at least, and the others are not negative"
            )

    def begin(self, tools: Tools) -> PortfolioSearcher:
        """The searcher of a new stream."""
        return PortfolioSearcher(tools, self)


@dataclass(slots=True)
class Rate:
    """Tokens in a second, from rounds that fade.

    Attributes:
        rounds, tokens, seconds: faded sums.
        squares: faded sums of products: tokens², tokens · seconds, seconds².
    """

    rounds: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def fade(self, factor: float) -> None:
        """Let every round count for less."""
        self.rounds, self.tokens, self.seconds = self.rounds * factor, self.tokens * factor, self.seconds * factor
        tt, ts, ss = self.squares
        self.squares = tt * factor, ts * factor, ss * factor

    def add(self, tokens: int, seconds: float) -> None:
        """Count a round."""
        self.rounds, self.tokens, self.seconds = self.rounds + 1, self.tokens + tokens, self.seconds + seconds
        tt, ts, ss = self.squares
        self.squares = tt + tokens**2, ts + tokens * seconds, ss + seconds**2

    @property
    def mean(self) -> float:
        """Tokens per second; 0 without a round."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean, of a ratio of sums; infinite below two rounds."""
        if self.rounds < 2 or not self.seconds:
            return math.inf
        tt, ts, ss = self.squares
        rate = self.mean
        spread = max(0.0, tt - 2 * rate * ts + rate**2 * ss) * self.rounds / (self.rounds - 1)
        return math.sqrt(spread) / self.seconds


@dataclass(slots=True)
class PortfolioArm:
    """One draft of a portfolio, with a state of its stop rule for each row."""

    name: str
    drafter: Drafter
    stop: StopPolicy
    rate: Rate = field(default_factory=Rate)
    states: dict[int, StopState] = field(default_factory=dict)
    last: StopState | None = None

    def seen(self, row: Row) -> Row:
        """The row with this arm's own stop rule."""
        return replace(row, stop=self.states[row.key])


class PortfolioSearcher:
    """See `Portfolio`. All arms observe all verdicts, so that any of them can draft next.

    Raises:
        InputError: if there is no arm besides plain decoding, or two have the same name.
    """

    objective = "tokens_per_second"

    def __init__(self, tools: Tools, settings: Portfolio) -> None:
        self.settings, self.watch, self.progress = settings, tools.stopwatch, Progress()
        self.is_learning = True
        self.arms = {PLAIN_ARM: PortfolioArm(PLAIN_ARM, NoDraft(), Fixed(1))}
        own = {OWN_ARM: tools.spec} if _drafts(tools.spec) else {}
        for name in tools.arms.keys() & {PLAIN_ARM, *own}:
            raise InputError(f"a portfolio has an arm {name!r} of its own; give your arm another name")
        for name, spec in {**own, **tools.arms}.items():
            self.arms[name] = PortfolioArm(name, build_drafter(spec, tools.decoder), spec.stop)
        if len(self.arms) < 2:
            raise InputError(
                "online=portfolio has no arm besides plain decoding; name some: online.arms={copy: {lookup: only}}"
            )
        self._now, self._left = PLAIN_ARM, settings.rounds
        self._began: float | None = None
        self._seconds = self._spent_before = 0.0
        self._tokens = 0
        self.seconds = self.lost_s = 0.0  # of all rounds, and lost by trials

    @property
    def needs(self) -> Needs:
        """What all arms need."""
        return Needs(hidden=tuple(sorted({layer for arm in self.arms.values() for layer in arm.drafter.needs.hidden})))

    def begin(self, row: Row, prompt: Output) -> None:
        """Begin the row with every arm, and let what was learnt on earlier prompts count for less."""
        for arm in self.arms.values():
            arm.states[row.key] = arm.stop.begin(arm.last)
            arm.drafter.begin(arm.seen(row), prompt)
            if self.is_learning and arm.rate.rounds > self.settings.kept:
                arm.rate.fade(self.settings.kept / arm.rate.rounds)

    def ask(self, rows: Sequence[Row], *, cache: ClockCache) -> Chosen:
        """The arm of this round."""
        began = self.watch.now()
        if self.is_learning:
            self._count()
            if not self._left or self._now == self._best():
                self._choose()
            self._left = max(0, self._left - 1)
            # a round without room to draft tells nothing
            self._began = began if any(row.limit for row in rows) else None
        self.progress.spent_s += self.watch.now() - began
        return Chosen(_OwnStops(self.arms[self._now]), self._now)

    def tell(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        """Time the round, and tell all arms the verdict."""
        if self._began is not None:
            self._seconds = self.watch.now() - self._began
            self._tokens += len(verdict.path) + 1
        for arm in self.arms.values():
            told = draft if arm.name == self._now else replace(draft, source="")  # no rule hears of others' drafts
            arm.drafter.observe(arm.seen(row), told, verdict, target)
        if self.is_learning:
            self.progress.n_rounds += 1
            self.progress.n_tokens += len(verdict.path) + 1

    def end(self, row: Row) -> None:
        """Let every arm forget the row, and keep the states of the stop rules for the next one."""
        for arm in self.arms.values():
            arm.drafter.end(arm.seen(row))
            arm.last = arm.states.pop(row.key)

    def _hope(self, arm: PortfolioArm) -> tuple[bool, float]:
        """Order in which arms are tried: unknown ones first, then by the rate that they may have."""
        return arm.rate.rounds < 2, arm.rate.mean + self.settings.deviations * min(arm.rate.error, 1e9)

    def _count(self) -> None:
        """Count the round that has just ended."""
        if self._began is None or not self._tokens:
            return
        for arm in self.arms.values():
            arm.rate.fade(1 - 1 / self.settings.memory)
        self.arms[self._now].rate.add(self._tokens, self._seconds)
        self.seconds += self._seconds
        best = self.arms[self._best()].rate.mean
        if self._now != self._best() and best:
            self.lost_s += max(0.0, self._seconds - self._tokens / best)
        self._began, self._tokens = None, 0

    def _best(self) -> str:
        """The arm of the largest rate; plain decoding until another one was tried."""
        return max(self.arms.values(), key=lambda arm: arm.rate.mean).name

    def _choose(self) -> None:
        """Go on with the best arm, or begin a trial of another one that may be better and that can be paid for."""
        s, best = self.settings, self.arms[self._best()]
        before, self._now, self._left = self._now, best.name, 0
        allowed = s.max_loss * self.seconds + s.grace_s
        hopeful = [
            arm
            for arm in self.arms.values()
            if arm is not best
            and (arm.rate.rounds < 2 or arm.rate.mean + s.deviations * arm.rate.error > best.rate.mean)
            and self.lost_s + self._may_lose(arm, best) <= allowed
        ]
        if best.rate.rounds >= min(2, s.rounds) and hopeful:
            self._now, self._left = max(hopeful, key=self._hope).name, s.rounds
        if self._now != before:
            rate, n_tokens = self.arms[self._now].rate, self.progress.n_tokens
            n_read = round(rate.rounds)
            self.progress.trials.append(
                Tried(self._now, rate.mean, n_read, 0, None, 0.0, n_tokens, self.seconds, is_taken=True)
            )

    def _may_lose(self, arm: PortfolioArm, best: PortfolioArm) -> float:
        """Seconds that a trial of an arm is expected to lose; an unknown arm is taken to commit a token a round."""
        if not best.rate.mean or not best.rate.rounds:
            return 0.0
        if arm.rate.rounds >= 2:
            round_s = arm.rate.seconds / arm.rate.rounds
            return self.settings.rounds * max(0.0, round_s - arm.rate.tokens / arm.rate.rounds / best.rate.mean)
        return 0.0 if not arm.rate.rounds else self.settings.rounds * arm.rate.seconds / arm.rate.rounds

    def state(self) -> dict[str, Any]:
        """What was learnt, as plain values."""
        arms = {
            arm.name: {
                "rounds": arm.rate.rounds,
                "tokens": arm.rate.tokens,
                "seconds": arm.rate.seconds,
                "squares": list(arm.rate.squares),
            }
            for arm in self.arms.values()
        }
        counted = {"seconds": self.seconds, "lost_s": self.lost_s}
        return {"arms": arms, "arm": self._now, **counted, **self.progress.to_dict()}

    def restore(self, state: Mapping[str, Any], trials: Sequence[Tried]) -> None:
        """Go on from `state()`."""
        self.begin_from(state)
        self.progress.restore(state)
        self.progress.trials[:] = trials
        self.seconds, self.lost_s = state["seconds"], state["lost_s"]
        self._now = state["arm"] if state["arm"] in self.arms else PLAIN_ARM

    def begin_from(self, state: Mapping[str, Any]) -> None:
        """Begin a new stream with the rates of the arms of the same name."""
        for name, body in state.get("arms", {}).items():
            if name in self.arms:
                self.arms[name].rate = Rate(body["rounds"], body["tokens"], body["seconds"], tuple(body["squares"]))


def _drafts(spec: DraftSpec) -> bool:
    """Whether a spec drafts anything but the model itself."""
    return bool(len(spec.skip)) or spec.plan.trained is not None or spec.drafter is not None or spec.lookup is not None


@dataclass(frozen=True, slots=True)
class _OwnStops(BaseDrafter):
    """The drafter of an arm, which sees the rows with the arm's own stop rules."""

    arm: PortfolioArm

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        return self.arm.drafter.propose([self.arm.seen(row) for row in rows], cache=cache)
