"""What drafting with a trained head costs on this machine: timed in rounds of a real decode.

A head that is timed alone looks too cheap. In a round its first depth reads the accepted tokens, and every depth comes
after a verification that has filled the processor's caches with the target's weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import torch
from torch import Tensor

from search.costs.table import CostTable
from search.costs.timed_calls import Place, always
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import Draft, Drafter, Row, Verdict
from selfspec.engine.trace import Round
from selfspec.engine.verify import Exact
from selfspec.errors import InputError
from selfspec.heads.build import HeadDrafter
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.stopping import RuleState
from selfspec.training.heldout import RoundCosts

N_RUNS, N_PAIRS, LONGEST = 8, 4, 4  # decodes, pairs of rounds in each, tokens of the longer one; chosen, not tuned
SHARE = 0.12  # of the seconds of a table
LEAST = 1e-3  # of a plain token: what a drafted token costs at least, where noise says less


@torch.inference_mode()
def measure_head(
    decoder: Decoder,
    table: CostTable,
    plan: DraftPlan,
    *,
    repeats: int,
    stopwatch: Stopwatch,
    max_s: float = math.inf,
    phase: Phases = unwatched,
) -> CostTable:
    """The table for drafts of a trained head, from rounds of one and of several drafted tokens in turn.

    `base_s` is a drafted token after the first. `overhead_s` is what a round costs more than its drafted tokens and the
    verification of the table: the first depth reads the accepted tokens, here half of the drafted ones, and the
    verification collects hidden states. Weights have no influence, so a head can be timed before it is trained.

    Args:
        decoder: the target.
        table: costs of the target's forwards.
        plan: has a trained head.
        repeats: largest number of decodes; the median of all rounds counts.
        stopwatch: measures the seconds.
        max_s: seconds of a whole table, of which this takes `SHARE`.
        phase: is told how the measurement goes on.

    Raises:
        InputError: if the model's context has no room for these rounds.
    """
    context = table.contexts[0]
    drafter = build_drafter(DraftSpec(_of_chains(plan), always(LONGEST)), decoder)
    deepest = drafter.module.max_depth if isinstance(drafter, HeadDrafter) else None
    longest = min(LONGEST, deepest or LONGEST)
    lengths = (longest, 1)
    place = Place(decoder, context, 1)
    plain, ids = place.plain(), place.ids
    draft: dict[int, list[float]] = {k: [] for k in lengths}
    verify: dict[int, list[float]] = {k: [] for k in lengths}

    def unit_s() -> float:
        begin = stopwatch.now()
        for _ in range(3):
            plain()
        return (stopwatch.now() - begin) / 3

    n_runs, began = min(repeats, N_RUNS), stopwatch.now()
    with phase("costs of the head", n_runs) as step:
        before = unit_s()
        for _ in range(n_runs):
            begin = stopwatch.now()
            rounds = _rounds(decoder, drafter, ids, lengths, stopwatch)
            after = unit_s()
            for r in rounds:
                draft[r.drafted].append(2 * r.draft_s / (before + after))
                verify[r.drafted].append(2 * r.verify_s / (before + after))
            before = after
            step()
            now = stopwatch.now()
            if 2 * now - begin - began > SHARE * max_s:
                break
    if not all(draft.values()):
        raise InputError(
            f"a head is timed in rounds after {context} tokens, and the model's context of {decoder.context_length} "
            "has no room for them; give smaller costs.contexts"
        )
    first, whole = median(draft[1]), median(draft[longest])
    later = max(LEAST, (whole - first) / (longest - 1) if longest > 1 else first)
    plain_s = table.plain_s(context)
    more = fmean(median(verify[k]) - table.verification_s(k + 1, context) / plain_s for k in set(lengths))
    return replace(
        table,
        base_s=later * plain_s,
        overhead_s=max(0.0, first - later + more) * plain_s,
        interaction_s=(),
        map_s=0.0,
        head_saved_s=0.0,
        attn_saved_s=0.0,
        mlp_saved_s=0.0,
    )


def round_costs(table: CostTable, plan: DraftPlan) -> RoundCosts:
    """The costs of a round in plain tokens, from the table of a trained head."""
    context = table.contexts[0]
    plain_s = table.plain_s(context)
    verify = tuple(table.verification_s(n, context) / plain_s for n in range(1, len(table.verify_s) + 1))
    return RoundCosts(table.draft_cost(plan, context), verify, table.overhead_s / plain_s)


def _of_chains(plan: DraftPlan) -> DraftPlan:
    """The plan without memory; where it drafts the best paths of heads as a tree, with the best path alone."""
    trained = plan.trained
    if trained is not None and trained.settings.get("mode") == "p_best":
        trained = replace(trained, settings={**trained.settings, "mode": "global"})
    return replace(plan, memory=None, trained=trained)


def _rounds(
    decoder: Decoder, drafter: Drafter, ids: list[int], lengths: Sequence[int], watch: Stopwatch
) -> list[Round]:
    """The rounds of a decode after `ids` that drafted as many tokens as they should, without the first one.

    The first round reads the prompt.
    """
    n_tokens = N_PAIRS * sum((k + 1) // 2 + 1 for k in lengths) + max(lengths) + 2
    (result,) = speculate(
        decoder,
        [ids],
        drafter=drafter,
        stops=[_InTurn(lengths)],
        ending=Ending(n_tokens, frozenset()),
        stopwatch=watch,
        verifier=_AcceptsHalf(),
    )
    return [r for i, r in enumerate(result.rounds) if i and r.drafted == lengths[i % len(lengths)]]


@dataclass(slots=True)
class _InTurn(RuleState):
    """Drafts these numbers of tokens in turn."""

    lengths: Sequence[int]
    n_rounds: int = 0

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.lengths[self.n_rounds % len(self.lengths)]

    def observe(self, n_drafted: int, n_accepted: int) -> None:
        self.n_rounds += 1


class _AcceptsHalf:
    """Judges as always, and accepts the first half of a chain whatever it holds: what is timed needs no good text."""

    def judge(self, rows: Sequence[Row], drafts: Sequence[Draft], logits_BTV: Tensor) -> list[Verdict]:
        real = Exact(False).judge(rows, drafts, logits_BTV)
        return [
            Verdict(list(range((len(draft.tokens) + 1) // 2)), verdict.token)
            for draft, verdict in zip(drafts, real, strict=True)
        ]
