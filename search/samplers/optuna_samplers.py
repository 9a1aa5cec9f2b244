"""Optuna's samplers as searchers: functions from a seed and settings to a sampler."""

from __future__ import annotations

import warnings

import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


def tpe(seed: int, *, n_startup_trials: int) -> BaseSampler:
    """Tree-structured Parzen estimator; random for the first `n_startup_trials` trials."""
    return TPESampler(seed=seed, n_startup_trials=n_startup_trials)


def gp(seed: int, *, n_startup_trials: int) -> BaseSampler:
    """Gaussian process: needs the fewest trials but about a second for each; suits up to 200 slow trials."""
    return GPSampler(seed=seed, n_startup_trials=n_startup_trials)


def cmaes(seed: int) -> BaseSampler:
    """CMA-ES over numbers in [0, 1] (use the `floats` encoding); good from a few hundred trials on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def random(seed: int) -> BaseSampler:
    """Uniform random skip sets, for comparisons."""
    return RandomSampler(seed=seed)


def nsga2(seed: int, *, population_size: int, mutation_prob: float | None) -> BaseSampler:
    """Genetic algorithm: needs hundreds of trials, robust to noise; random for the first population.

    Args:
        seed: seed of the sampler.
        population_size: size of a generation; a small one learns sooner.
        mutation_prob: probability that a bit of a child is drawn again; None: 1 / bits.
    """
    return NSGAIISampler(seed=seed, population_size=population_size, mutation_prob=mutation_prob)


class NSGAIISampler(optuna.samplers.NSGAIISampler):
    """Optuna's sampler, with parents in the same order after an interruption.

    Optuna orders parents by rank for the first child of a generation and by number for the others; it distinguishes
    these cases by a note in memory. The class keeps Optuna's name, since trials are marked with it.
    """

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Optuna's parents, by number once the generation has a child in the storage."""
        parents = super().select_parent(study, generation)
        mine = (t for t in study.get_trials(deepcopy=False) if t.state != TrialState.RUNNING)
        has_begun = any(t.system_attrs.get(self._get_generation_key()) == generation for t in mine)
        return sorted(parents, key=lambda t: t.number) if has_begun else parents
