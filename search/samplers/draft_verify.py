"""The searcher of Draft & Verify: a Gaussian process over numbers, where a number above one half skips a sublayer.

It serves comparisons, with its published settings and the package of its code. The process learns from the point that
ran: the proposed numbers, or ¼ and ¾ for a start.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.space import in_order
from selfspec.errors import InputError


class Paper(BaseSampler):
    """Bayesian optimisation by upper confidence bound (use the `floats` encoding); no random start.

    Without a score it proposes a random point. It uses neither failures nor constraints. Its seconds for a trial grow
    with the cube of the number of trials.

    Args:
        seed: seed of the trial.
        kappa: weight of the standard deviation in the upper confidence bound.
        alpha: variance of the noise, as a fraction of the variance of the values.

    Raises:
        InputError: if the package is missing.

    Source: Zhang et al. 2023, Draft & Verify (arXiv:2309.08168), section 3.2 and the released search code.
    """

    def __init__(self, seed: int, *, kappa: float, alpha: float) -> None:
        self._package = _package()
        self._seed, self._kappa, self._alpha = seed, kappa, alpha
        self._rng = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All numbers, once a scored trial shows how many there are."""
        scored = _scored(study)
        return scored[0].distributions if scored else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The numbers with the largest upper confidence bound, by name."""
        if not search_space:
            return {}
        bits, others = in_order(search_space)
        names = bits + others
        optimizer = self._package.BayesianOptimization(
            None,
            dict.fromkeys(names, (0, 1)),
            acquisition_function=self._package.acquisition.UpperConfidenceBound(kappa=self._kappa),
            random_state=self._seed,
            verbose=0,
        )
        optimizer.set_gp_params(alpha=self._alpha)
        points = {tuple(float(t.params[name]) for name in names): t.value for t in _scored(study)}
        for point, value in points.items():  # unique points, since the package refuses a repeated one
            optimizer.register(dict(zip(names, point, strict=True)), value)
        return {name: float(x) for name, x in optimizer.suggest().items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform random number, since there is no score."""
        return float(self._rng.random())


def _scored(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _package() -> ModuleType:
    try:
        import bayes_opt
    except ModuleNotFoundError:
        raise InputError(
            "searcher=paper needs the package bayesian-optimization, which is missing; pip install 'selfspec[paper]'"
        ) from None
    return bayes_opt
