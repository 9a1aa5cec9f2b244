"""Optuna's samplers, made for searches: each a function from a seed to a sampler."""

from __future__ import annotations

import warnings

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


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


class NSGAIISampler(optuna.samplers.NSGAIISampler):
    """Optuna's, whose parents stand in the same order after an interruption.

    Optuna takes them in the order of their rank for the first child of a generation, and by number for the others,
    which it tells by a note in memory. The name stays, since trials are marked with it.
    """

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """See `BaseGASampler`."""
        parents = super().select_parent(study, generation)
        mine = (t for t in study.get_trials(deepcopy=False) if t.state != TrialState.RUNNING)
        has_begun = any(t.system_attrs.get(self._get_generation_key()) == generation for t in mine)
        return sorted(parents, key=lambda t: t.number) if has_begun else parents
