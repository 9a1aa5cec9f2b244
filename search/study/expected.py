"""What a finalist is expected to be worth on prompts that nobody has seen.

The value of the best of many drafts is too high on the prompts that chose it, and a few fresh prompts may be easier or
harder than others. Two corrections, which need one more score:

- the finalists were compared on the fresh prompts, too: what this choice is worth is the value of whoever is best on
  the other prompts, prompt by prompt, under the value of the best one;
- the control, which skips nothing, was not chosen for the prompts of the search. Its value on all prompts over its
  value on the fresh ones says how hard the fresh ones are.

Source: leave-one-out cross-fitting, as in Stone 1974 (cross-validatory choice); a ratio estimator, as in Cochran 1977,
Sampling techniques, chapter 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from search.multi_dataset import MultiDataset
from search.objective import Objective, Score
from search.replay.objectives import as_raced
from search.study.finals import Finalist


def expect(finalists: Sequence[Finalist], compared: Sequence[Finalist], seen: Objective) -> None:
    """Set `expected` of scored finalists.

    Args:
        finalists: with their scores on fresh prompts, best first; the first one that skips nothing is the control.
        compared: all that were scored there.
        seen: the objective on the prompts of the search, on which the control is scored.
    """
    scores = [f.score for f in {id(f): f for f in (*compared, *finalists)}.values() if f.score]
    factor = 1.0 if isinstance(seen, MultiDataset) else 1 / optimism(scores)  # which has no values of prompts
    control = next((f for f in finalists if f.score and not len(f.point.skip)), None)
    if control and control.score:
        factor *= hardness(control.score, as_raced(seen, control.spec)(control.point))
    for f in finalists:
        f.expected = f.score.value * factor if f.score else None


def optimism(scores: Sequence[Score]) -> float:
    """By how much the best of the scores is too high since it was chosen as the best, as a factor from 1 on.

    Args:
        scores: of the drafts that were compared, on the same prompts. Without values of two prompts there is nothing to
            correct.
    """
    values = [s.values for s in scores]
    n = min(map(len, values), default=0)
    if n < 2 or any(len(v) != n for v in values):
        return 1.0
    elsewhere = [max(values, key=lambda v: fmean(v[:i] + v[i + 1 :]))[i] for i in range(n)]
    best = max(map(fmean, values))
    return best / fmean(elsewhere) if fmean(elsewhere) > 0 else 1.0


def hardness(control_fresh: Score, control_seen: Score) -> float:
    """The control's value on all prompts over that on the fresh ones: tokens over seconds, pooled."""
    scores = [s for s in (control_fresh, control_seen) if s.n_tokens]
    if not scores or any(s.value <= 0 for s in scores):
        return 1.0
    everywhere = sum(s.n_tokens for s in scores) / sum(s.n_tokens / s.value for s in scores)
    return everywhere / control_fresh.value
