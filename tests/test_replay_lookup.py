"""With prompt lookup in front, replay still counts what the real decoder counts, and only the draft's forwards cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from experiments.results.find_runs import find_runs
from search.draft_of_point import Drafts
from search.objective import TokensPerSecond
from search.point import Point
from search.replay.chain_replay import draft_everything, find_lookup_proposals, replay
from search.replay.chains import Chains
from search.replay.objectives import ReplayObjective, expected_speedup
from search.replay.references import Reference, ReferenceBatch, decode_references
from search.replay.rule_tuner import fitted
from search.study.finals import Finalist, race
from selfspec.drafters.chain import ModelDraft
from selfspec.drafters.lookup import LookupDraft, Memory, joined
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.trace import Round
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed, Optimal, StopPolicy
from tests.commands import command
from tests.test_replay import COSTS, RULES
from tests.toys import toy as toy_model

N_NEW = 24
REPETITIVE = [[1, 2, 3, 1, 2, 3, 1, 2], [7, 7, 7, 7, 7], [11, 5, 11, 5, 2, 11, 5]]
PROMPTS = [*REPETITIVE, [9, 8, 7, 6, 5, 4, 3], [40]]
MEMORY = Memory(joined([[3, 1, 2, 9, 8, 7], [6, 5, 4, 4, 4, 3, 40, 40]]))
LOOKUPS = [
    LookupDraft(),
    LookupDraft(max_tokens=3, max_ngram=1, min_ngram=1),
    LookupDraft(max_ngram=6, min_ngram=4, agreed=2),
    LookupDraft(max_tokens=4, max_ngram=2, min_ngram=1, memory=MEMORY),
]
SKIP = SkipSet.parse("a1 m0", 3)
OPTIMAL = Optimal(6, 0.5, 0.02, ((0.0, 0.0), (1.0, 1.0)), 4, False)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy_model("llama-tied"))  # a tied head repeats its input: there is something to look up


@pytest.fixture(scope="module")
def batches(decoder: Decoder) -> list[ReferenceBatch]:
    return decode_references(decoder, PROMPTS, ending=Ending(N_NEW))


def real_rounds(decoder: Decoder, ids: list[int], lookup: LookupDraft, skip: SkipSet, stop: StopPolicy) -> list[Round]:
    behind = replace(lookup, inner=ModelDraft(decoder.bind(SKIP)))
    (result,) = speculate(decoder, [ids], drafter=behind, stops=[stop.begin()], ending=Ending(N_NEW))
    return result.rounds


def counts(rounds: Sequence[Round]) -> list[tuple[int, int, int]]:
    return [(r.drafted, r.accepted, r.committed) for r in rounds]


def assert_equal(decoder: Decoder, batches: Sequence[ReferenceBatch], lookup: LookupDraft, stop: StopPolicy) -> None:
    forward = decoder.bind(SKIP)
    for batch in batches:
        lookup_proposals = find_lookup_proposals(batch.references, lookup)
        chains = Chains(forward, batch, max_draft=stop.max_draft)
        for reference, rounds in zip(
            batch.references, replay(chains, stop, lookup_proposals=lookup_proposals), strict=True
        ):
            assert counts(rounds) == counts(real_rounds(decoder, reference.prompt, lookup, SKIP, stop))


@pytest.mark.parametrize("stop", RULES, ids=lambda r: type(r).__name__)
def test_counts_equal_the_real_decoders(stop: StopPolicy, decoder: Decoder, batches: list[ReferenceBatch]) -> None:
    assert_equal(decoder, batches, LOOKUPS[0], stop)


def test_counts_equal_the_decoders_in_several_batches_and_lengths(decoder: Decoder) -> None:
    batches = decode_references(decoder, PROMPTS, ending=Ending(N_NEW), batch_starts=50)
    assert len(batches) > 1
    assert_equal(decoder, batches, LOOKUPS[1], RULES[2])


@pytest.mark.parametrize("family", ["mistral-window", "gemma2", "qwen3-moe"])
def test_counts_equal_the_real_decoders_for_other_families(family: str) -> None:
    decoder = Decoder(toy_model(family))
    assert_equal(decoder, decode_references(decoder, PROMPTS[:3], ending=Ending(N_NEW)), LOOKUPS[1], RULES[2])


def test_the_prompts_have_rounds_of_both_kinds(decoder: Decoder, batches: list[ReferenceBatch]) -> None:
    places = [len(find_lookup_proposals(b.references, LOOKUPS[0])) for b in batches]
    assert 0 < sum(places) < sum(r.n_starts for b in batches for r in b.references)


def objective(
    decoder: Decoder, batches: Sequence[ReferenceBatch], stop: StopPolicy, *, tune_stop: bool = False
) -> ReplayObjective:
    return ReplayObjective(
        "", "", expected_speedup, decoder, batches, COSTS, Stopwatch(), Drafts(stop, lookup="front"), tune_stop
    )


def test_copied_tokens_cost_their_verification_alone(decoder: Decoder) -> None:
    batches = decode_references(decoder, PROMPTS, ending=Ending(N_NEW))
    score = objective(decoder, batches, Fixed(3))(SKIP)
    (batch,) = batches
    lookup_proposals = find_lookup_proposals(batch.references, LOOKUPS[0])
    total_s = plain_s = 0.0
    for row, reference in enumerate(batch.references):
        n = 1
        for r in real_rounds(decoder, reference.prompt, LOOKUPS[0], SKIP, Fixed(3)):
            context = len(reference.prompt) + n - 1
            drafting_s = 0.0 if (row, n) in lookup_proposals else r.drafted * COSTS.draft_s(SKIP, context)
            total_s += drafting_s + COSTS.verification_s(r.drafted + 1, context) + COSTS.overhead_s
            plain_s += r.committed * COSTS.plain_s(context)
            n += r.committed
    assert score.value == pytest.approx(plain_s / total_s)
    assert score.draft_cost == pytest.approx(COSTS.draft_s(SKIP, 64) / COSTS.plain_s(64))


@pytest.mark.parametrize("tune_stop", [False, True])
def test_lookup_alone_is_replayed_whatever_the_rule(decoder: Decoder, tune_stop: bool) -> None:
    batches = decode_references(decoder, PROMPTS, ending=Ending(N_NEW))
    alone = Drafts(RULES[0], lookup="only")
    score = replace(objective(decoder, batches, RULES[0], tune_stop=tune_stop), draft=alone)(SKIP)
    real, seconds, plain_s = [], 0.0, 0.0
    for ids in (r.prompt for b in batches for r in b.references):
        stops, context = [RULES[0].begin()], len(ids)
        (result,) = speculate(decoder, [ids], drafter=LookupDraft(), stops=stops, ending=Ending(N_NEW))
        real += result.rounds
        for r in result.rounds:
            seconds += COSTS.verification_s(r.drafted + 1, context)
            plain_s += r.committed * COSTS.plain_s(context)
            context += r.committed
    assert (score.n_rounds, score.drafted, score.accepted) == (
        len(real),
        sum(r.drafted for r in real),
        sum(r.accepted for r in real),
    )
    assert score.value == pytest.approx(plain_s / seconds) and score.stop is None


@pytest.mark.parametrize("stop", RULES, ids=lambda r: type(r).__name__)
def test_a_tuned_rule_is_at_least_as_good(stop: StopPolicy, decoder: Decoder, batches: list[ReferenceBatch]) -> None:
    as_it_is, tuned = (objective(decoder, batches, stop, tune_stop=tune)(SKIP) for tune in (False, True))
    assert tuned.value >= as_it_is.value


def test_a_rule_is_calibrated_on_what_the_model_drafts_alone(decoder: Decoder) -> None:
    (batch,) = decode_references(decoder, PROMPTS, ending=Ending(N_NEW))
    lookup_proposals = find_lookup_proposals(batch.references, LOOKUPS[0])
    chains = Chains(decoder.bind(SKIP), batch, max_draft=6)
    draft_everything(chains, OPTIMAL, lookup_proposals=lookup_proposals)
    assert all(
        bool(chains[start].tokens) != (start in lookup_proposals) for start in chains.starts if chains[start].limit
    )
    rule = fitted(OPTIMAL, [chains], draft_cost=0.3, costs=COSTS)
    assert rule.draft_cost == 0.3
    assert rule.verify_cost == pytest.approx(1 / 15)
    assert rule.calibration != OPTIMAL.calibration


def test_nothing_is_proposed_where_one_token_is_left() -> None:
    found = find_lookup_proposals([Reference([1, 2, 1, 2], [1, 2, 1], 3)], LOOKUPS[0])
    assert found == {(0, 1): [2]}  # one token less than may still come: a round commits one that it did not draft


def test_the_race_and_the_clock_decode_with_lookup_in_front(decoder: Decoder) -> None:
    stop = Fixed(2)
    drafts = Drafts(stop, lookup="front")
    real = [r for ids in REPETITIVE for r in real_rounds(decoder, ids, LOOKUPS[0], SKIP, stop)]
    (raced,) = race(
        decoder,
        REPETITIVE,
        [Finalist(Point(SKIP), drafts(SKIP), 1.0)],
        ending=Ending(N_NEW),
        stopwatch=Stopwatch(),
    )
    assert counts([r for result in raced.finalist.results for r in result.rounds]) == counts(real)
    score = TokensPerSecond(decoder, REPETITIVE, N_NEW, Stopwatch(), drafts)(SKIP)
    assert (score.drafted, score.accepted) == (sum(r.drafted for r in real), sum(r.accepted for r in real))


def test_a_search_with_lookup_in_front_says_so(toy: list[str], tmp_path: Path) -> None:
    words = ("searcher=random", "searcher.n_trials=3", "starts=[nothing,uniform]", "stop.max_draft=3", "prune=null")
    small = ("objective.n_prompts=1", "objective.max_new_tokens=8", "finals.n_prompts=1", "lookup=front")
    costs = ("costs.contexts=[16]", "costs.max_tokens=4", "costs.repeats=1")
    ran = command("search", "draft=skip", *toy, f"paths.outputs={tmp_path}", *words, *small, *costs)
    assert ran.status == 0, ran.err
    assert yaml.safe_load((ran.run / "skip_set.yaml").read_text())["lookup"] == "front"
    refused = command(
        "search", "draft=skip", *toy, f"paths.outputs={tmp_path}", *words, *small[:-1], "lookup=only", *costs
    )
    assert refused.status == 2 and "unknown lookup 'only'" in refused.err


def test_a_search_with_a_memory_leaves_a_plan_that_arms_use_or_leave_out(toy: list[str], tmp_path: Path) -> None:
    words = ("searcher=random", "searcher.n_trials=3", "starts=[nothing,uniform]", "stop.max_draft=3", "prune=null")
    small = (
        "objective.n_prompts=1",
        "objective.max_new_tokens=8",
        "finals.n_prompts=1",
        "calibration.max_new_tokens=8",
    )
    costs = ("costs.contexts=[16]", "costs.max_tokens=4", "costs.repeats=1", f"paths.outputs={tmp_path}")
    ran = command("search", "draft=skip", *toy, *words, *small, *costs, "memory=20", "lookup=front")
    assert ran.status == 0, ran.err
    plan = yaml.safe_load((ran.run / "plan.yaml").read_text())
    assert plan["lookup"] == "front" and plan["memory_size"] > 20
    without, anew = f"{{skip: {ran.run}, memory: null}}", "{skip: a1, memory: 8, lookup: front}"
    arms = f"{{without: {without}, anew: {anew}, only: {{skip: {ran.run}, lookup: only}}}}"
    evaluated = command(
        "evaluate", *toy, *costs, f"skip={ran.run}", "lookup=searched", "arm=searched", f"arms={arms}", "n=2",
        "max_new_tokens=8", "generate=false", "stop.max_draft=3", "calibration.max_new_tokens=8",
    )  # fmt: skip
    assert evaluated.status == 0, evaluated.err
    (run,) = find_runs(str(evaluated.run), tmp_path)
    memories = {name: run.about(name)["memory"] for name in ("searched", "without", "anew", "only")}
    assert memories.pop("anew") > 8
    assert memories == {"searched": plan["memory_size"], "without": None, "only": plan["memory_size"]}
    refused = command("search", "draft=skip", *toy, *words, *small, *costs, "memory=20")
    assert refused.status == 2 and "memory=20" in refused.err and "lookup=front" in refused.err
    assert len(refused.error_lines) == 1
