"""A Gaussian process over vectors in [0, 1], and the point of its largest upper confidence bound."""

# N points, D dimensions, C further points

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTHS = (0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 8.0)  # length scales that are compared by likelihood; chosen, not tuned
N_RANDOM, N_STEPS = 2000, 40  # random points, and steps of the walk from the best of them; chosen, not tuned


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """Posterior of a process with a Matérn 5/2 kernel of unit variance on standardised values.

    Attributes:
        points_ND, weights_N: the points, and the weights of the posterior mean.
        factor_NN: Cholesky factor of the covariance.
        length: length scale of the kernel, the likeliest of `LENGTHS`.
        mean, deviation: of the values, which undo the standardisation.
    """

    points_ND: Floats
    weights_N: Floats
    factor_NN: Floats
    length: float
    mean: float
    deviation: float

    @classmethod
    def fitted(cls, points: Sequence[Sequence[float]], values: Sequence[float], *, alpha: float) -> GaussianProcess:
        """The process that has seen these points and values; `alpha`: variance of the noise of standardised values."""
        points_ND, values_N = np.asarray(points, dtype=float), np.asarray(values, dtype=float)
        mean, deviation = float(values_N.mean()), float(values_N.std()) or 1.0
        scaled_N = (values_N - mean) / deviation
        best: tuple[float, GaussianProcess] | None = None
        for length in LENGTHS:
            covariance_NN = _matern(points_ND, points_ND, length) + alpha * np.eye(len(points_ND))
            factor_NN: Floats = np.linalg.cholesky(covariance_NN).astype(np.float64)
            weights_N: Floats = np.linalg.solve(factor_NN.T, np.linalg.solve(factor_NN, scaled_N))
            likelihood = -0.5 * float(scaled_N @ weights_N) - float(np.log(np.diag(factor_NN)).sum())
            if best is None or likelihood > best[0]:
                best = likelihood, cls(points_ND, weights_N, factor_NN, length, mean, deviation)
        assert best is not None
        return best[1]

    def bound(self, points_CD: Floats, *, kappa: float) -> Floats:
        """The upper confidence bound at some points: mean plus `kappa` standard deviations, [C]."""
        near_CN = _matern(points_CD, self.points_ND, self.length)
        spread_NC = np.linalg.solve(self.factor_NN, near_CN.T)
        variance_C = np.maximum(0.0, 1.0 - (spread_NC**2).sum(0))
        bound: Floats = self.mean + self.deviation * (near_CN @ self.weights_N + kappa * np.sqrt(variance_C))
        return bound


def largest_bound(process: GaussianProcess, rng: np.random.Generator, *, kappa: float) -> Floats:
    """A point of [0, 1]^D with a large upper confidence bound: the best of many random ones, then small steps."""
    n_dimensions = process.points_ND.shape[1]
    points_CD = rng.random((N_RANDOM, n_dimensions))
    best_D: Floats = points_CD[int(process.bound(points_CD, kappa=kappa).argmax())]
    for step in np.linspace(0.3, 0.02, N_STEPS):
        near_CD = np.clip(best_D + step * rng.standard_normal((32, n_dimensions)), 0.0, 1.0)
        near_CD = np.vstack([best_D, near_CD])
        best_D = near_CD[int(process.bound(near_CD, kappa=kappa).argmax())]
    return best_D


def largest_bound_of_subsets(
    process: GaussianProcess, rng: np.random.Generator, *, n_chosen: int, kappa: float
) -> Floats:
    """A 0/1 vector with `n_chosen` ones and a large bound: the best of many random ones, improved by exchanges."""
    n_dimensions = process.points_ND.shape[1]
    order_CD = rng.random((N_RANDOM, n_dimensions)).argsort(1)
    points_CD = (order_CD < n_chosen).astype(float)
    best_D: Floats = points_CD[int(process.bound(points_CD, kappa=kappa).argmax())]
    for _ in range(N_STEPS):
        near_CD = np.repeat(best_D[None], 33, 0)
        ones, zeros = np.flatnonzero(best_D), np.flatnonzero(best_D == 0)
        if not len(ones) or not len(zeros):
            break
        rows = np.arange(1, 33)
        near_CD[rows, rng.choice(ones, 32)] = 0.0
        near_CD[rows, rng.choice(zeros, 32)] = 1.0
        best_D = near_CD[int(process.bound(near_CD, kappa=kappa).argmax())]
    return best_D


def _matern(left_CD: Floats, right_ND: Floats, length: float) -> Floats:
    squares_CN = (left_CD**2).sum(1)[:, None] + (right_ND**2).sum(1) - 2 * left_CD @ right_ND.T
    scaled_CN = np.sqrt(5 * np.maximum(squares_CN, 0.0)) / length
    found: Floats = (1 + scaled_CN + scaled_CN**2 / 3) * np.exp(-scaled_CN)
    return found
