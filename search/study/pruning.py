"""Pruning: end a trial that is worse than the best one on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from search.objective import ShouldContinue
from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class WilcoxonPruning:
    """Ends a trial whose prompts are worse than the best trial's: a one-sided Wilcoxon signed-rank test of both.

    The test is repeated after each prompt, so a trial that is as good as the best one ends early more often than with
    probability `p`: in one of ten simulations with 12 or 24 prompts and the defaults. A trial whose prompts so far are
    not worse on average never ends early.

    `optuna.pruners.WilcoxonPruner` makes the same test, but spares a trial whose mean so far is above the mean of all
    prompts of the best one: easy prompts at the beginning hide a hopeless trial. It also needs a report to the storage
    after each prompt, between prompts that are timed.

    Attributes:
        p: a trial ends if the p-value is not above this.
        min_prompts: number of prompts before the first test.

    Raises:
        InputError: if so few prompts cannot reach `p`.

    Source: Wilcoxon 1945, Individual comparisons by ranking methods; the ranks of equal values are split between both
    sides.
    """

    p: float = 0.05
    min_prompts: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.p < 0.5:
            raise InputError(f"p={self.p}; a trial is hopeless below a probability between 0 and 0.5")
        if 0.5**self.min_prompts > self.p:
            raise InputError(
                f"min_prompts={self.min_prompts} cannot reach p={self.p}: all worse has probability "
                f"{0.5**self.min_prompts:.2g}; give more prompts"
            )

    def against(self, best: Sequence[float]) -> ShouldContinue:
        """A function from the values so far to whether to score further prompts.

        Args:
            best: the best trial's values, for prompts in the same order.
        """
        from scipy.stats import wilcoxon  # type: ignore[import-untyped]  # slow import, which most searches do not need

        def should_continue(values: Sequence[float]) -> bool:
            n = len(values)
            if not self.min_prompts <= n <= len(best):
                return True
            differences = [mine - its for mine, its in zip(values, best, strict=False)]
            if fmean(differences) >= 0:
                return True
            return bool(wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue > self.p)

        return should_continue
