"""Stop scoring what is hopeless: prompt by prompt, a trial is compared with the best one on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from search.objective import ShouldContinue
from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class WilcoxonPruning:
    """Ends a trial whose prompts are worse than the best trial's: a one-sided Wilcoxon signed-rank test of both.

    The test is made again after each prompt, so that a trial just as good as the best one is stopped more often than
    with probability `p`: of simulated ones with 12 or 24 prompts and the defaults, one in ten. A trial whose prompts so
    far are no worse on average never is.

    Attributes:
        p: below or at which a trial is hopeless.
        min_prompts: of which the values must be known before the test is made.

    Raises:
        InputError: if so few prompts can never reach `p`.

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
        """Whether to score the other prompts, given the values so far; `best` are the best trial's, in that order."""
        from scipy.stats import wilcoxon  # type: ignore[import-untyped]  # takes a second, and most searches do without

        def should_continue(values: Sequence[float]) -> bool:
            n = len(values)
            if not self.min_prompts <= n <= len(best):
                return True
            differences = [mine - its for mine, its in zip(values, best, strict=False)]
            if fmean(differences) >= 0:
                return True
            return bool(wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue > self.p)

        return should_continue
