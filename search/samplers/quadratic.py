"""A searcher that learns what each sublayer and each pair of sublayers is worth, and proposes what might be best.

The logarithm of the value is taken to be a sum over skipped sublayers and pairs of them, with a Gaussian prior: one
prior for sublayers, a narrower one for pairs of neighbours, the narrowest for all other pairs. For each trial one such
function is drawn from the posterior, and climbed from the best known sets.
"""

# N told sets, B bits, U units

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.samplers.base import Bits, BitSampler, Unit, flipped

Array = NDArray[np.float64]

NEIGHBOURS = 2  # places between the bits of a pair that count as neighbours: the same layer, or the same kind next door
PAIRS = ((1.0, 0.03), (0.3, 0.03), (0.3, 0.1), (0.3, 0.01))  # prior deviations of neighbours and others, sublayers: 1
NOISE = (1e-4, 1e-3, 1e-2, 1e-1)  # variances, of the prior's mean variance
LUCK = 0.3  # of a posterior deviation; a whole one explores too much for a few hundred trials
FAR = 8  # flips from the best set, at most; each trial draws its own bound
N_STARTS = 3  # known sets that are climbed from
FLOOR = 0.3  # of the largest value: how much worse a set is than this does not matter
N_TRIES = 300  # moves whose feasibility is asked in one step of a climb


class Quadratic(BitSampler):
    """Bayesian linear and pairwise model with Thompson sampling: the best after some 100 to 300 trials.

    It begins best with skip nothing and each single sublayer, which tell it what each is worth.

    Source: after Baptista and Poloczek 2018, Bayesian Optimization of Combinatorial Structures (arXiv:1806.08838), with
    a Gaussian prior whose widths are chosen by marginal likelihood instead of their horseshoe prior, and with climbs
    near the best known set instead of annealing. Constants were tuned on synthetic functions of 60 bits.
    """

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """See `BitSampler`."""
        X_NB = np.array(order, dtype=float)
        posterior = _fit(X_NB, _targets(np.array([known[bits] for bits in order])))
        drawn = posterior.draw(rng)
        far = int(rng.integers(1, FAR + 1))
        # Among equals chance decides, not how a machine's linear algebra rounds them.
        ranked = np.lexsort((rng.random(len(order)), -posterior.expected.round(9)))
        best = [order[k] for k in ranked if self.feasible(order[k])][:N_STARTS]
        if not best:
            return self.unknown(known, self.project(order[0]), rng)
        units = self.units(best[0])
        climbs = [self._climb(start, drawn, units, best[0], far, known) for start in best]
        reached = [climb for climb in climbs if climb is not None]
        if not reached:
            return self.unknown(known, best[0], rng)
        return max(reached, key=drawn.value)

    def _climb(
        self, here: Bits, drawn: Drawn, units: Sequence[Unit], best: Bits, far: int, known: Mapping[Bits, float]
    ) -> Bits | None:
        """The top reached from `here`, not more than `far` from `best`; if it is known, its best unknown neighbour."""
        while (there := self._step(here, drawn, units, best, far, {})) is not None:
            if drawn.value(there) <= drawn.value(here) + 1e-9:
                break
            here = there
        if here not in known:
            return here
        return self._step(here, drawn, units, best, len(best), known)

    def _step(
        self, here: Bits, drawn: Drawn, units: Sequence[Unit], best: Bits, far: int, known: Mapping[Bits, float]
    ) -> Bits | None:
        """The feasible, unknown set with the highest drawn value among those one or two units away."""
        gains_UU, distance_UU = drawn.gains(here, units), _distances(here, best, units)
        gains_UU[distance_UU > far] = -np.inf
        flat = gains_UU.ravel()
        top = np.argpartition(-flat, min(N_TRIES, flat.size - 1))[:N_TRIES]
        for k in top[np.argsort(-flat[top], kind="stable")]:
            i, j = divmod(int(k), len(units))
            if gains_UU[i, j] == -np.inf:
                break
            there = flipped(here, units[i] if i == j else units[i] + units[j])
            if there not in known and self.feasible(there):
                return there
        return None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A function of bits: `linear` [B] of each bit, `pairs` [B, B] (symmetric, no diagonal) of each two."""

    linear: Array
    pairs: Array

    def value(self, bits: Bits) -> float:
        """Its value."""
        x_B = np.array(bits, dtype=float)
        return float(x_B @ self.linear + x_B @ self.pairs @ x_B / 2)

    def gains(self, bits: Bits, units: Sequence[Unit]) -> Array:
        """What flipping each two units adds to the value; on the diagonal, what flipping one does; shape [U, U]."""
        x_B = np.array(bits, dtype=float)
        sign_B = 1 - 2 * x_B
        member_UB = _members(units, len(bits))
        both_UU = member_UB @ (self.pairs * np.outer(sign_B, sign_B)) @ member_UB.T
        one_U = member_UB @ (sign_B * (self.linear + self.pairs @ x_B)) + np.diag(both_UU) / 2
        gains_UU = one_U[:, None] + one_U[None, :] + both_UU
        np.fill_diagonal(gains_UU, one_U)
        return np.asarray(gains_UU)


@dataclass(frozen=True, slots=True)
class Posterior:
    """What the told values say of the weights.

    Attributes:
        told: the told sets; shape [N, B].
        targets: their standardised values; shape [N].
        widths: prior deviations of the pairs, in those of a sublayer; shape [B, B].
        lower: Cholesky factor of the prior covariance of the targets, noise included; shape [N, N].
        scale: the prior deviation of a sublayer's weight.
        noise: the deviation of the noise.
    """

    told: Array
    targets: Array
    widths: Array
    lower: Array
    scale: float
    noise: float

    @property
    def expected(self) -> Array:
        """The expected value of each told set, freed of noise."""
        return self.targets - self.noise**2 * self._solve(self.targets)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """A function from the posterior, `LUCK` times as far from its mean as chance would have it.

        A draw from the prior is corrected by what the told values say of it (Matheron's rule), which needs no
        covariance of the weights, of which there are thousands.
        """
        n_bits = len(self.widths)
        level = float(self.scale * LUCK * rng.standard_normal())
        linear_B: Array = self.scale * LUCK * rng.standard_normal(n_bits)
        pairs_BB: Array = np.triu(self.scale * LUCK * self.widths * rng.standard_normal((n_bits, n_bits)), 1)
        pairs_BB += pairs_BB.T
        said_N = level + self.told @ linear_B + ((self.told @ pairs_BB) * self.told).sum(1) / 2
        error_N: Array = self.noise * LUCK * rng.standard_normal(len(said_N))
        correction_N = self.scale**2 * self._solve(self.targets - said_N - error_N)
        linear_B += self.told.T @ correction_N
        told_BB = (self.told * correction_N[:, None]).T @ self.told
        np.fill_diagonal(told_BB, 0)
        return Drawn(linear_B, pairs_BB + self.widths**2 * told_BB)

    def _solve(self, right_N: Array) -> Array:
        return np.asarray(np.linalg.solve(self.lower.T, np.linalg.solve(self.lower, right_N)))


def _targets(values_N: Array) -> Array:
    """What is modelled: logarithms where all values are positive, standardised; the worst count as equally bad."""
    finite = np.isfinite(values_N)
    if not finite.any():
        return np.zeros_like(values_N)
    least, most = values_N[finite].min(), values_N[finite].max()
    y_N = np.where(finite, values_N, least)
    if least > 0:
        y_N = np.log(np.maximum(y_N, FLOOR * most))
    return np.asarray((y_N - y_N.mean()) / (y_N.std() or 1.0))


def _fit(X_NB: Array, y_N: Array) -> Posterior:
    """The posterior under the prior that explains the targets best."""
    n_told, n_bits = X_NB.shape
    places_B = np.arange(n_bits)
    apart_BB = np.abs(places_B[:, None] - places_B[None, :])
    linear_NN = X_NB @ X_NB.T
    every_NN = linear_NN * (linear_NN - 1) / 2  # pairs that both of two sets skip
    near_NN = np.zeros_like(linear_NN)
    for apart in range(1, min(NEIGHBOURS, n_bits - 1) + 1):
        both_NB = X_NB[:, apart:] * X_NB[:, :-apart]
        near_NN += both_NB @ both_NB.T
    found: list[tuple[float, Posterior]] = []
    for (near, other), noise in itertools.product(PAIRS, NOISE):
        prior_NN = 1 + linear_NN + near**2 * near_NN + other**2 * (every_NN - near_NN)
        mean = np.trace(prior_NN) / n_told
        lower_NN = np.linalg.cholesky(prior_NN / mean + noise * np.eye(n_told))
        half_N = np.linalg.solve(lower_NN, y_N)
        variance = max(float(half_N @ half_N) / n_told, 1e-12)
        evidence = -n_told / 2 * np.log(variance) - np.log(np.diag(lower_NN)).sum()
        width_BB = np.where(apart_BB <= NEIGHBOURS, near, other)
        posterior = Posterior(
            X_NB, y_N, width_BB, lower_NN * variance**0.5, (variance / mean) ** 0.5, (noise * variance) ** 0.5
        )
        found.append((float(evidence), posterior))
    return max(found, key=lambda pair: pair[0])[1]


def _members(units: Sequence[Unit], n_bits: int) -> Array:
    """1 where a unit has a bit; shape [U, B]."""
    member_UB = np.zeros((len(units), n_bits))
    for row_B, unit in zip(member_UB, units, strict=True):
        row_B[list(unit)] = 1
    return member_UB


def _distances(bits: Bits, centre: Bits, units: Sequence[Unit]) -> Array:
    """How many bits differ from `centre` after flipping each two units, or one on the diagonal; shape [U, U]."""
    differs_B = np.array(bits) != np.array(centre)
    one_U = _members(units, len(bits)) @ np.where(differs_B, -1.0, 1.0)
    distance_UU = differs_B.sum() + one_U[:, None] + one_U[None, :]
    np.fill_diagonal(distance_UU, differs_B.sum() + one_U)
    return np.asarray(distance_UU)
