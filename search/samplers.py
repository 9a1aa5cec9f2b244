"""Optuna's samplers, made for skip sets: each a function from a seed to a sampler."""

from __future__ import annotations

import warnings

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler


def tpe(seed: int, *, n_startup_trials: int) -> BaseSampler:
    """Tree-structured Parzen estimator, multivariate; random until `n_startup_trials` are told."""
    return TPESampler(seed=seed, n_startup_trials=n_startup_trials)


def gp(seed: int, *, n_startup_trials: int) -> BaseSampler:
    """Gaussian process: the fewest trials, about a second each; for up to some 200 slow trials."""
    return GPSampler(seed=seed, n_startup_trials=n_startup_trials)


def cmaes(seed: int) -> BaseSampler:
    """CMA-ES on numbers in [0, 1] (use the `floats` encoding); strong from a few hundred trials on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def random(seed: int) -> BaseSampler:
    """Every skip set equally likely: the yardstick."""
    return RandomSampler(seed=seed)
