"""When to stop drafting.

A rule sees how many tokens were drafted and how sure the drafter was of the last one. It knows nothing of models,
caches or tensors, so that any rule can be tested with a list of floats. Settings are frozen; what changes while a
prompt is decoded lives in the state that `begin` returns: nothing leaks into the next prompt unless the rule says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from selfspec.errors import InputError, unknown_name
from selfspec.paying import Paying

PRIOR_ACCEPTANCE = 0.8  # of a draft worth using, before any was seen; chosen, not tuned


class StopState(Protocol):
    """What a rule remembers while one prompt is decoded."""

    @property
    def threshold(self) -> float | None:
        """Of the confidence, as it stands now; None for a rule without one."""
        ...

    def begins(self) -> bool:
        """Whether to draft in this round at all; the first token is drafted without asking `more`."""
        ...

    def more(self, n_drafted: int, confidence: float) -> bool:
        """Whether to draft another token after the `n_drafted`-th, whose raw top probability was `confidence`."""
        ...

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        """What verification found."""
        ...


class StopPolicy(Protocol):
    """A rule with its settings."""

    @property
    def max_draft(self) -> int:
        """The most tokens a round may draft."""
        ...

    @property
    def needs_confidence(self) -> bool:
        """Whether `more` looks at the confidence; if not, the drafter may pass nan and save a softmax."""
        ...

    def begin(self, after: StopState | None = None) -> StopState:
        """The state for a new prompt; `after` is the last prompt's, for rules that carry something over."""
        ...


def _check_max_draft(max_draft: int) -> None:
    if max_draft < 1:
        raise InputError(f"stop.max_draft={max_draft}; a round drafts at least 1 token")


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"stop.{name}={value}; it is a probability, between 0 and 1")


@dataclass(slots=True)
class _UpTo:
    max_draft: int
    threshold: float | None = None

    def begins(self) -> bool:
        return True

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.max_draft and not (self.threshold is not None and confidence < self.threshold)

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always draft `max_draft` tokens."""

    max_draft: int
    needs_confidence: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        return _UpTo(self.max_draft)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Stop after a token whose top probability is below `threshold`."""

    max_draft: int
    threshold: float
    needs_confidence: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)
        _check_fraction("threshold", self.threshold)

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        return _UpTo(self.max_draft, self.threshold)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The paper's rule: a threshold that moves towards a target acceptance.

    After each verification, with AR_e = accepted / drafted:
    AR ← β1·AR + (1-β1)·AR_e; γ̃ = γ+ε if AR < α, γ if drafted == max_draft, else γ-ε; γ ← β2·γ + (1-β2)·γ̃.

    Attributes:
        threshold: γ at the start.
        target_acceptance: α.
        step: ε.
        smooth_acceptance, smooth_threshold: β1, β2.
        carry_over: start each prompt with the last prompt's γ, as the paper's evaluation does (AR starts at 0 always).

    Source: Zhang et al. 2024 (arXiv:2309.08168), section 3.3; the case drafted == max_draft is in their code alone.
    """

    max_draft: int
    threshold: float
    target_acceptance: float
    step: float
    smooth_acceptance: float
    smooth_threshold: float
    carry_over: bool
    needs_confidence: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)
        for name in ("threshold", "target_acceptance", "step", "smooth_acceptance", "smooth_threshold"):
            _check_fraction(name, getattr(self, name))

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        carried = after.threshold if self.carry_over and after is not None else None
        return _AdaptiveState(self, self.threshold if carried is None else carried)


@dataclass(slots=True)
class _AdaptiveState:
    rule: Adaptive
    threshold: float | None
    acceptance: float = 0.0

    def begins(self) -> bool:
        return True

    def more(self, n_drafted: int, confidence: float) -> bool:
        assert self.threshold is not None
        return n_drafted < self.rule.max_draft and confidence >= self.threshold

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        if n_drafted == 0:
            return
        rule = self.rule
        assert self.threshold is not None
        b1, b2 = rule.smooth_acceptance, rule.smooth_threshold
        self.acceptance = b1 * self.acceptance + (1 - b1) * n_accepted / n_drafted
        if self.acceptance < rule.target_acceptance:
            wanted = self.threshold + rule.step
        elif n_drafted == rule.max_draft:
            wanted = self.threshold
        else:
            wanted = self.threshold - rule.step
        self.threshold = b2 * self.threshold + (1 - b2) * wanted


@dataclass(frozen=True, slots=True)
class Heuristic:
    """Draft more after full acceptance, less otherwise: the length grows by `up` or shrinks by `down`, never below 1.

    Attributes:
        start: the length of the first round.
        carry_over: start each prompt with the last prompt's length.

    Source: the schedule `heuristic` of transformers' assisted generation (+2, -1).
    """

    max_draft: int
    start: int
    up: int
    down: int
    carry_over: bool
    needs_confidence: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)
        if not 1 <= self.start <= self.max_draft or self.up < 0 or self.down < 0:
            raise InputError(
                f"stop.start={self.start}, up={self.up}, down={self.down}: start lies in 1..max_draft "
                f"({self.max_draft}), up and down are not negative"
            )

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        carried = after.length if self.carry_over and isinstance(after, _HeuristicState) else self.start
        return _HeuristicState(self, carried)


@dataclass(slots=True)
class _HeuristicState:
    rule: Heuristic
    length: int
    threshold: float | None = None

    def begins(self) -> bool:
        return True

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.length

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        # A draft cut short (the sequence ends soon) and accepted whole says nothing about longer ones.
        if n_accepted < n_drafted:
            self.length = max(1, self.length - self.rule.down)
        elif n_drafted >= self.length:
            self.length = min(self.rule.max_draft, self.length + self.rule.up)


@dataclass(frozen=True, slots=True)
class Optimal:
    """One-step look-ahead: draft another token if it is expected to pay for itself.

    With P the probability that all tokens drafted so far stand and the next one too, another token is drafted iff
    P >= R · (draft_cost + verify_cost), where R is the rate so far in tokens per cost of one plain token, at least 1. P
    comes from calibrated confidences of the drafted tokens, and from the mean acceptance for the next one.

    Attributes:
        draft_cost: of one drafted token, in plain tokens; measured.
        verify_cost: of verifying one token more, in plain tokens; measured.
        calibration: (confidence, acceptance) knots in rising order, joined by straight lines; ((0, 0), (1, 1)) takes
            the confidence for the probability.
        prior_rounds: the rate starts at 1 (plain decoding) with the weight of so many rounds; chosen, not tuned.
        carry_over: keep the estimates from prompt to prompt.

    Source: the look-ahead rule of optimal stopping for a renewal-reward process, e.g. Ross, Introduction to Stochastic
    Dynamic Programming (1983), chapter III.
    """

    max_draft: int
    draft_cost: float
    verify_cost: float
    calibration: tuple[tuple[float, float], ...]
    prior_rounds: float
    carry_over: bool
    needs_confidence: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_max_draft(self.max_draft)
        object.__setattr__(self, "calibration", tuple((float(x), float(y)) for x, y in self.calibration))
        knots = self.calibration
        rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
        if len(knots) < 2 or not rises or not all(0 <= v <= 1 for knot in knots for v in knot):
            raise InputError(
                f"stop.calibration={knots}: it needs two or more (confidence, acceptance) pairs in [0, 1], rising"
            )
        if self.draft_cost <= 0 or self.verify_cost < 0 or self.prior_rounds <= 0:
            raise InputError(
                f"stop.draft_cost={self.draft_cost}, verify_cost={self.verify_cost}, prior_rounds={self.prior_rounds}: "
                "costs are measured in plain tokens; the first and the last must be above 0, the second not below"
            )

    def acceptance(self, confidence: float) -> float:
        """The calibrated probability that a token drafted with `confidence` is accepted."""
        knots = self.calibration
        if confidence <= knots[0][0]:
            return knots[0][1]
        for (x0, y0), (x1, y1) in pairwise(knots):
            if confidence <= x1:
                return y0 + (y1 - y0) * (confidence - x0) / (x1 - x0)
        return knots[-1][1]

    def begin(self, after: StopState | None = None) -> StopState:
        """See `StopPolicy`."""
        if self.carry_over and isinstance(after, _OptimalState):
            return _OptimalState(self, after.tokens, after.cost, after.accepted, after.drafted)
        # The prior: rounds that committed one token at the cost of one, and drafts that are mostly accepted.
        n = self.prior_rounds
        return _OptimalState(self, n, n, PRIOR_ACCEPTANCE * n, n)


@dataclass(slots=True)
class _OptimalState:
    rule: Optimal
    tokens: float
    cost: float
    accepted: float
    drafted: float
    alive: float = 1.0
    threshold: float | None = None

    def begins(self) -> bool:
        return True

    def more(self, n_drafted: int, confidence: float) -> bool:
        before = 1.0 if n_drafted == 1 else self.alive
        self.alive = before * self.rule.acceptance(confidence)
        expected = self.alive * self.accepted / self.drafted
        rate = max(1.0, self.tokens / self.cost)  # plain decoding is always to be had
        return n_drafted < self.rule.max_draft and expected >= rate * (self.rule.draft_cost + self.rule.verify_cost)

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        self.tokens += n_accepted + 1
        self.cost += 1 + n_drafted * (self.rule.draft_cost + self.rule.verify_cost)
        # Tokens after the first rejection were never judged.
        self.accepted += n_accepted
        self.drafted += min(n_drafted, n_accepted + 1)


def describe(rule: StopPolicy) -> dict[str, Any]:
    """A rule's name and settings, for records; `described` is its inverse."""
    if isinstance(rule, Paying):
        return {"name": "paying", **asdict(rule), "rule": describe(rule.rule)}
    settings = {k: v for k, v in asdict(rule).items() if k != "needs_confidence"}  # type: ignore[call-overload]
    return {"name": type(rule).__name__.lower(), **settings}


def described(body: Mapping[str, Any]) -> StopPolicy:
    """The rule of a description.

    Raises:
        InputError: if there is no such rule, or it has other settings.
    """
    settings = dict(body)
    name = str(settings.pop("name", None))
    rules: dict[str, Any] = {c.__name__.lower(): c for c in (Fixed, Threshold, Adaptive, Heuristic, Optimal, Paying)}
    if name not in rules:
        raise unknown_name("stop rule", name, list(rules))
    if isinstance(settings.get("rule"), Mapping):
        settings["rule"] = described(settings["rule"])
    try:
        rule: StopPolicy = rules[name](**settings)
    except TypeError as error:
        raise InputError(f"the stop rule {name!r} cannot be made of {settings} ({error})") from None
    return rule
