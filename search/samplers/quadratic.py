"""A searcher that models the effect of each sublayer and of each pair of sublayers (Thompson sampling).

The logarithm of the value is modelled as a sum over skipped sublayers and pairs of them, with a Gaussian prior: one for
sublayers, a narrower one for pairs of neighbours, and the narrowest for other pairs. Each trial draws a function from
the posterior and climbs it from the best known sets.
"""

# N known sets, B bits, U units

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.samplers.base import Bits, BitSampler, Unit, flipped

Array = NDArray[np.float64]

NEIGHBOURS = 2  # largest distance of neighbouring bits: the same layer, or the same kind in the next one
PAIRS = ((1.0, 0.03), (0.3, 0.03), (0.3, 0.1), (0.3, 0.01))  # prior deviations of neighbours and others; sublayers: 1
NOISE = (1e-4, 1e-3, 1e-2, 1e-1)  # variances, as fractions of the prior's mean variance
LUCK = 0.3  # scale of posterior deviations in a draw; 1 explores too much for a few hundred trials
FAR = 8  # largest number of flips from the best set; each trial draws its own bound
N_STARTS = 3  # number of known sets to climb from
FLOOR = 0.3  # values below this fraction of the largest one count as equal to it
N_TRIES = 300  # moves whose feasibility is checked in one step of a climb


class Quadratic(BitSampler):
    """Bayesian linear and pairwise model with Thompson sampling: the best searcher for 100 to 300 trials.

    Good starts are the empty set and all single sublayers, which show the effect of each.

    Source: after Baptista and Poloczek 2018, Bayesian Optimization of Combinatorial Structures (arXiv:1806.08838), with
    a Gaussian prior whose widths are chosen by marginal likelihood instead of their horseshoe prior, and with climbs
    near the best known set instead of annealing. Constants were tuned on synthetic functions of 60 bits.
    """

    def propose(self, known: Mapping[Bits, float], order: Sequence[Bits], rng: np.random.Generator) -> Bits:
        """The best set that climbs of a drawn function reach from the best known sets."""
        X_NB = np.array(order, dtype=float)
        posterior = _fit(X_NB, _targets(np.array([known[bits] for bits in order])))
        drawn = posterior.draw(rng)
        far = int(rng.integers(1, FAR + 1))
        # A random order of equal sets, so that the rounding of a machine's linear algebra has no effect.
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
        """The local maximum from `here`, at most `far` from `best`; if it is known, its best unknown neighbour."""
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
        """The feasible, unknown set with the highest drawn value at a distance of one or two units."""
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
        """Value of the function at `bits`."""
        x_B = np.array(bits, dtype=float)
        return float(x_B @ self.linear + x_B @ self.pairs @ x_B / 2)

    def gains(self, bits: Bits, units: Sequence[Unit]) -> Array:
        """Gain in value by flipping each two units, [U, U]; by flipping one unit on the diagonal."""
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
    """Posterior of the weights, given the known values.

    Attributes:
        sets: the known sets; shape [N, B].
        targets: their standardised values; shape [N].
        widths: prior deviations of the pairs, in units of a sublayer's; shape [B, B].
        lower: Cholesky factor of the prior covariance of the targets, noise included; shape [N, N].
        scale: prior deviation of a sublayer's weight.
        noise: deviation of the noise.
    """

    sets: Array
    targets: Array
    widths: Array
    lower: Array
    scale: float
    noise: float

    @property
    def expected(self) -> Array:
        """Expected value of each known set, without noise."""
        return self.targets - self.noise**2 * self._solve(self.targets)

    def draw(self, rng: np.random.Generator) -> Drawn:
        """A function drawn from the posterior, with deviations scaled by `LUCK`.

        A draw from the prior is corrected with the known values (Matheron's rule). This needs no covariance of the
        weights, of which there are thousands.
        """
        n_bits = len(self.widths)
        level = float(self.scale * LUCK * rng.standard_normal())
        linear_B: Array = self.scale * LUCK * rng.standard_normal(n_bits)
        pairs_BB: Array = np.triu(self.scale * LUCK * self.widths * rng.standard_normal((n_bits, n_bits)), 1)
        pairs_BB += pairs_BB.T
        prior_N = level + self.sets @ linear_B + ((self.sets @ pairs_BB) * self.sets).sum(1) / 2
        error_N: Array = self.noise * LUCK * rng.standard_normal(len(prior_N))
        correction_N = self.scale**2 * self._solve(self.targets - prior_N - error_N)
        linear_B += self.sets.T @ correction_N
        weights_BB = (self.sets * correction_N[:, None]).T @ self.sets
        np.fill_diagonal(weights_BB, 0)
        return Drawn(linear_B, pairs_BB + self.widths**2 * weights_BB)

    def _solve(self, right_N: Array) -> Array:
        return np.asarray(np.linalg.solve(self.lower.T, np.linalg.solve(self.lower, right_N)))


def _targets(values_N: Array) -> Array:
    """The standardised targets: logarithms if all values are positive; values below the floor are equal."""
    finite = np.isfinite(values_N)
    if not finite.any():
        return np.zeros_like(values_N)
    least, most = values_N[finite].min(), values_N[finite].max()
    y_N = np.where(finite, values_N, least)
    if least > 0:
        y_N = np.log(np.maximum(y_N, FLOOR * most))
    return np.asarray((y_N - y_N.mean()) / (y_N.std() or 1.0))


def _fit(X_NB: Array, y_N: Array) -> Posterior:
    """The posterior for the prior with the largest marginal likelihood."""
    n_sets, n_bits = X_NB.shape
    places_B = np.arange(n_bits)
    apart_BB = np.abs(places_B[:, None] - places_B[None, :])
    linear_NN = X_NB @ X_NB.T
    every_NN = linear_NN * (linear_NN - 1) / 2  # number of pairs that both sets skip
    near_NN = np.zeros_like(linear_NN)
    for apart in range(1, min(NEIGHBOURS, n_bits - 1) + 1):
        both_NB = X_NB[:, apart:] * X_NB[:, :-apart]
        near_NN += both_NB @ both_NB.T
    found: list[tuple[float, Posterior]] = []
    for (near, other), noise in itertools.product(PAIRS, NOISE):
        prior_NN = 1 + linear_NN + near**2 * near_NN + other**2 * (every_NN - near_NN)
        mean = np.trace(prior_NN) / n_sets
        lower_NN = np.linalg.cholesky(prior_NN / mean + noise * np.eye(n_sets))
        half_N = np.linalg.solve(lower_NN, y_N)
        variance = max(float(half_N @ half_N) / n_sets, 1e-12)
        evidence = -n_sets / 2 * np.log(variance) - np.log(np.diag(lower_NN)).sum()
        width_BB = np.where(apart_BB <= NEIGHBOURS, near, other)
        posterior = Posterior(
            X_NB, y_N, width_BB, lower_NN * variance**0.5, (variance / mean) ** 0.5, (noise * variance) ** 0.5
        )
        found.append((float(evidence), posterior))
    return max(found, key=lambda pair: pair[0])[1]


def _members(units: Sequence[Unit], n_bits: int) -> Array:
    """Membership matrix, 1 if the unit has the bit; shape [U, B]."""
    member_UB = np.zeros((len(units), n_bits))
    for row_B, unit in zip(member_UB, units, strict=True):
        row_B[list(unit)] = 1
    return member_UB


def _distances(bits: Bits, centre: Bits, units: Sequence[Unit]) -> Array:
    """Number of bits that differ from `centre` after flipping each two units, or one (diagonal); shape [U, U]."""
    differs_B = np.array(bits) != np.array(centre)
    one_U = _members(units, len(bits)) @ np.where(differs_B, -1.0, 1.0)
    distance_UU = differs_B.sum() + one_U[:, None] + one_U[None, :]
    np.fill_diagonal(distance_UU, differs_B.sum() + one_U)
    return np.asarray(distance_UU)
