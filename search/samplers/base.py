"""Base of searchers over bits: it reads the finished trials, and knows feasible sets and neighbours.

A subclass proposes the next set from the known ones. It sees neither Optuna nor the model, so it can be tested with a
function of bits. It keeps no state, so a resumed search proposes the same sets as an uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.space import in_order

Bits = tuple[bool, ...]
Unit = tuple[int, ...]  # bits that change together

FAILED = float("-inf")
# later ones replace earlier ones of a set
FINISHED = (
    TrialState.FAIL,
    TrialState.PRUNED,
    TrialState.COMPLETE,
)
N_TRIES = 2000  # random sets to try before a space counts as exhausted; chosen, not tuned
N_ENUMERATED = 12  # with at most so many bits, every set is tried as well


class Exhausted(Exception):  # noqa: N818 - the end of a search is no error
    """The searcher has no further proposal, and the search ends."""


class BitSampler(BaseSampler):
    """Proposes feasible skip sets without a result; without any finished trial it proposes to skip nothing.

    Attributes:
        project: the nearest feasible set; what it returns unchanged is feasible. The study sets it.
        others: the parameters besides the bits, as they are while skip sets are searched; trials with other values are
            not looked at. The study sets it.
    """

    project: Callable[[Bits], Bits]
    others: Mapping[str, Any]

    def __init__(self, seed: int) -> None:
        self.project = _same
        self.others = {}
        self._seed = seed

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """The next set, which is feasible and not known.

        Args:
            known: value of every finished set, larger is better; -inf if it could not be scored.
            order: the known sets, in the order of their first trials; not empty.
            rng: random generator of this trial.

        Raises:
            Exhausted: if there is no such set.
        """
        raise NotImplementedError

    def feasible(self, bits: Bits) -> bool:
        """Whether the constraints allow the set."""
        return self.project is _same or self.project(bits) == bits

    def allows(self, bits: Bits, unit: Unit) -> bool:
        """Whether `bits` with the bits of `unit` flipped is feasible."""
        return self.project is _same or self.feasible(flipped(bits, unit))

    def units(self, bits: Bits) -> list[Unit]:
        """The units that can change: single bits or, if no such change of `bits` is feasible, whole layers."""
        single: list[Unit] = [(i,) for i in range(len(bits))]
        moves = itertools.chain(single, swaps(bits, single))
        if any(self.allows(bits, unit) for unit in moves):
            return single
        return [(i, i + 1) for i in range(0, len(bits), 2)]

    def unknown(self, known: Mapping[Bits, float], around: Bits, rng: np.random.Generator) -> Bits:
        """A random feasible set that is not known: a unit or an exchange away from `around`, or else farther.

        Raises:
            Exhausted: if there is none; in a large space, if thousands of tries find none.
        """
        units = self.units(around)
        steps = [units, list(swaps(around, units))]
        for step in rng.permutation(2):
            for i in rng.permutation(len(steps[step])):
                tried = flipped(around, steps[step][i])
                if tried not in known and self.feasible(tried):
                    return tried
        n = len(around)
        for k in range(N_TRIES):
            flips = rng.random(n) < max(2 / n, k / (2 * N_TRIES))
            tried = self.project(flipped(around, tuple(np.flatnonzero(flips))))
            if tried not in known and self.feasible(tried):
                return tried
        if n <= N_ENUMERATED:
            for tried in itertools.product((False, True), repeat=n):
                if tried not in known and self.feasible(tried):
                    return tried
        raise Exhausted

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All bits, once a finished trial shows how many there are."""
        if not _finished(study):
            return {}
        kinds = _finished(study)[0].distributions
        return {name: kinds[name] for name in in_order(kinds)[0]}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The bits of the proposed set, by name."""
        if not search_space:
            return {}
        names = in_order(search_space)[0]
        known: dict[Bits, float] = {}
        states: dict[Bits, int] = {}
        for told in _finished(study):
            if any(told.params.get(name) != value for name, value in self.others.items()):
                continue
            bits = tuple(bool(told.params[name]) for name in names)
            state = FINISHED.index(told.state)
            if state > states.get(bits, -1):  # a failure may have been tried again
                known[bits], states[bits] = _value(told), state
        if not known:  # nothing was scored with these other values: skip nothing first
            return dict.fromkeys(names, False)
        proposed = self.propose(known, list(known), np.random.default_rng(self._seed))
        return dict(zip(names, map(bool, proposed), strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """False for a bit, since there is no finished trial; the study sets other dimensions to their defaults."""
        if isinstance(param_distribution, CategoricalDistribution):
            return param_distribution.choices[0]
        return param_distribution.low  # type: ignore[attr-defined]


def flipped(bits: Bits, unit: Unit) -> Bits:
    """The bits, with those of `unit` flipped."""
    changed = set(unit)
    return tuple(bit != (i in changed) for i, bit in enumerate(bits))


def swaps(bits: Bits, units: Sequence[Unit]) -> Iterator[Unit]:
    """Yield the units that exchange a skipped unit for one that is not skipped."""
    on = [unit for unit in units if bits[unit[0]]]
    off = [unit for unit in units if not bits[unit[0]]]
    for out, into in itertools.product(on, off):
        yield out + into


def _same(bits: Bits) -> Bits:
    """The projection without constraints: every set is feasible."""
    return bits


def _finished(study: Study) -> list[FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False, states=FINISHED) if t.params]


def _value(trial: FrozenTrial) -> float:
    """The value of a trial; for a pruned one, the value over its scored prompts."""
    if trial.state == TrialState.FAIL:
        return FAILED
    value = trial.value if trial.value is not None else trial.user_attrs.get("value")
    return FAILED if value is None else float(value)
