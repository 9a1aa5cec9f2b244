"""Stop rules on held-out chains: every predictor under its own rule and under optimal stopping, and the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from search.fitting.acceptance_fitting import Reliability, fit_table, predicted
from search.fitting.draft_examples import Examples, by_chain
from search.replay.stop_study import Start, Studied, StudiedChain, best_of, run_oracle, run_rule
from selfspec.acceptance.features import SCALARS
from selfspec.acceptance.predictors import Predictor
from selfspec.drafters.lookup import LOOKUP
from selfspec.stopping import Adaptive, EntropyBound, Fixed, Optimal, Specdec, StopPolicy, Svip, Threshold
from selfspec.stopping.entropy import root_entropy
from selfspec.training.heldout import RoundCosts

CONFIDENCE, CERTAINTY, BOUND, ENTROPY_TABLE = "confidence", "certainty", "AdaEDL bound", "entropy table"
GAMMA = 0.2  # of AdaEDL's bound, as in conf/stop/entropy_bound.yaml
PRIOR_ROUNDS = 8.0  # as in conf/stop/optimal.yaml
IDENTITY = ((0.0, 0.0), (1.0, 1.0))
MOVING: dict[str, Any] = {"target_acceptance": 0.85, "step": 0.01, "smooth_acceptance": 0.5, "smooth_threshold": 0.9}


@dataclass(frozen=True, slots=True)
class Compared:
    """A rule on the texts that did not choose its setting.

    Attributes:
        rule: name of the rule and its setting.
        signal: what it reads.
        found: what it makes of the texts.
        gap: share of the oracle's speedup that it misses.
    """

    rule: str
    signal: str
    found: Studied
    gap: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        one = self.found
        return {
            "rule": self.rule,
            "signal": self.signal,
            "tokens": one.tokens,
            "rounds": one.rounds,
            "drafted": one.drafted,
            "accepted": one.accepted,
            "cost": one.cost,
            "predicted_speedup": one.speedup,
            "gap": self.gap,
        }


def chains_of(
    found: Mapping[str, Examples], predictors: Mapping[str, Mapping[str, Predictor]], table: Predictor
) -> dict[Start, StudiedChain]:
    """The chains of examples that begin after every token.

    Args:
        found: examples by source.
        predictors: by name and source.
        table: from certainty, exp(-entropy), to acceptance; see `entropy_table`.
    """
    chains: dict[Start, StudiedChain] = {}
    for source, examples in found.items():
        is_free = source == LOOKUP
        signals = {name: predicted(of[source], examples).tolist() for name, of in predictors.items() if source in of}
        if not is_free:
            signals |= _untrained(examples, table)
        right = examples.right_N.tolist()
        late = {name for name, of in predictors.items() if source in of and of[source].is_late}
        for start, at in by_chain(examples).items():
            read = {
                # a late predictor scores the token before, and the one before the first is committed
                name: [1.0 if name in late and i == 0 else values[j] for i, j in enumerate(at)]
                for name, values in signals.items()
            }
            n_right = next((i for i, j in enumerate(at) if not right[j]), len(at))
            chains[start] = StudiedChain(n_right, len(at), read, is_free)
    return chains


def entropy_table(found: Examples) -> Predictor:
    """The isotonic table from exp(-entropy) to acceptance: the signal of SVIP and AdaEDL as a probability."""
    return fit_table(_by_certainty(found))


def _by_certainty(found: Examples) -> Examples:
    scalars_N5 = found.scalars_N5.clone()
    entropy = SCALARS.index("entropy")
    scalars_N5[:, SCALARS.index("confidence")] = (-scalars_N5[:, entropy]).exp()
    return replace(found, scalars_N5=scalars_N5)


def _untrained(found: Examples, table: Predictor) -> dict[str, list[float]]:
    as_certainty = _by_certainty(found)
    certainty = as_certainty.scalars_N5[:, SCALARS.index("confidence")].tolist()
    return {
        CONFIDENCE: found.scalars_N5[:, SCALARS.index("confidence")].tolist(),
        CERTAINTY: certainty,
        BOUND: [max(0.0, 1 - root_entropy(c, GAMMA)) for c in certainty],
        ENTROPY_TABLE: predicted(table, as_certainty).tolist(),
    }


def compare(
    chains: Mapping[Start, StudiedChain],
    lengths: Sequence[int],
    predictors: Sequence[str],
    costs: RoundCosts,
    *,
    max_draft: int,
) -> tuple[list[Compared], Studied]:
    """Each rule with the setting that is best on the texts of even number, on those of odd number; and the oracle.

    Args:
        chains: of `chains_of`.
        lengths: answer tokens of each text, of two texts at least.
        predictors: names of the signals that were trained.
        costs: of a round, in plain tokens.
        max_draft: tokens of the longest draft.
    """
    tuned_on = [n if i % 2 == 0 else 1 for i, n in enumerate(lengths)]  # a text of one token has no rounds
    judged_on = [n if i % 2 else 1 for i, n in enumerate(lengths)]
    oracle = run_oracle(chains, judged_on, costs)
    found: list[Compared] = []
    for name, signal, rules in _rules(predictors, costs, max_draft):
        tuned = partial(run_rule, chains, tuned_on, signal=signal, costs=costs)
        best = best_of(rules, lambda rule, tuned=tuned: tuned(rule=rule))  # type: ignore[misc]
        studied = run_rule(chains, judged_on, best, signal, costs)
        found.append(Compared(f"{name}{_setting(best)}", signal, studied, 1 - studied.speedup / oracle.speedup))
    return found, oracle


def _rules(predictors: Sequence[str], costs: RoundCosts, max_draft: int) -> list[tuple[str, str, Sequence[StopPolicy]]]:
    """(name, signal, settings to try) of each rule."""
    every = tuple(n / 20 for n in range(1, 20))
    adaptive = Adaptive(max_draft, 0.6, **MOVING, carry_over=False)
    bound = EntropyBound(max_draft, 0.6, **MOVING, carry_over=False, gamma=GAMMA)
    optimal = Optimal(max_draft, max(1e-9, costs.draft), max(0.0, costs.one_more), IDENTITY, PRIOR_ROUNDS, True)
    found: list[tuple[str, str, Sequence[StopPolicy]]] = [
        ("fixed", CONFIDENCE, [Fixed(k) for k in range(1, max_draft + 1)]),
        ("threshold", CONFIDENCE, [Threshold(max_draft, t) for t in every]),
        ("adaptive", CONFIDENCE, [adaptive]),
        ("svip", CERTAINTY, [Svip(max_draft, t) for t in (0.1, 0.2, 0.3, 0.4, 0.6)]),
        ("entropy_bound", CERTAINTY, [bound]),
    ]
    for signal in (CONFIDENCE, BOUND, ENTROPY_TABLE, *predictors):
        found.append(("specdec", signal, [Specdec(max_draft, h) for h in every]))
    found += [("threshold", signal, [Threshold(max_draft, t) for t in every]) for signal in predictors]
    found += [("optimal", signal, [optimal]) for signal in (CONFIDENCE, BOUND, ENTROPY_TABLE, *predictors)]
    return found


def _setting(rule: StopPolicy) -> str:
    if isinstance(rule, Fixed):
        return f" {rule.max_draft}"
    return f" {rule.threshold:g}" if isinstance(rule, Specdec | Threshold | Svip) else ""


def reliabilities(
    held: Mapping[str, Examples], predictors: Mapping[str, Mapping[str, Predictor]], source: str
) -> dict[str, Reliability]:
    """How each predictor of a source, and the confidence itself, fare on judged examples.

    A late predictor is judged by the label of the token that it scores.
    """
    examples = held[source]
    labels, judged = examples.label_N.tolist(), examples.judged_N.tolist()
    found = {}
    if source != LOOKUP:
        sure = examples.scalars_N5[:, SCALARS.index("confidence")].tolist()
        found[CONFIDENCE] = Reliability.of(*_where(sure, labels, judged))
    for name, of in predictors.items():
        if source not in of:
            continue
        chances = predicted(of[source], examples).tolist()
        if of[source].is_late:
            before = [pair for at in by_chain(examples).values() for pair in zip(at[1:], at[:-1], strict=True)]
            chances = [chances[j] for j, _ in before]
            found[name] = Reliability.of(
                *_where(chances, [labels[i] for _, i in before], [judged[i] for _, i in before])
            )
        else:
            found[name] = Reliability.of(*_where(chances, labels, judged))
    return found


def _where(values: Sequence[float], labels: Sequence[float], mask: Sequence[bool]) -> tuple[list[float], list[float]]:
    kept = [(v, one) for v, one, on in zip(values, labels, mask, strict=True) if on]
    return [v for v, _ in kept], [one for _, one in kept]
