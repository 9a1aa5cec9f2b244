"""Optuna's samplers, made for skip sets: each a function from a seed to a sampler."""

from __future__ import annotations

import warnings

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler


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


def nsga2(seed: int, *, population_size: int, mutation_prob: float | None) -> BaseSampler:
    """Genetic algorithm for one value: hundreds of trials, robust to noise; random for the first population.

    Args:
        seed: of the sampler.
        population_size: small ones learn sooner.
        mutation_prob: with which a child's bit is drawn anew; None: 1 / bits.
    """
    return NSGAIISampler(seed=seed, population_size=population_size, mutation_prob=mutation_prob)
