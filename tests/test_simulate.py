"""A simulated drafter counts what the real decoder counts, whatever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from search.replay.references import ReferenceBatch, decode_references
from search.replay.simulator import simulate
from selfspec.drafters.build import build_drafter
from selfspec.drafters.chain import ModelDraft
from selfspec.drafters.lookup import LookupDraft
from selfspec.drafters.merged import MergedDraft
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_drafter import TreeDraft
from selfspec.drafters.tree_shapes import BestFirst, ExpandRerank, comb
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter
from selfspec.engine.trace import Round
from selfspec.errors import DrafterError
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed, Threshold
from tests.test_heads import copying
from tests.toys import toy

N_NEW = 20
PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [7, 7, 7, 7, 7], [9, 8, 7, 6, 5, 4, 3], [40]]
MAKERS: dict[str, Callable[[Decoder], Drafter]] = {
    "chain": lambda d: ModelDraft(d.bind(SkipSet.parse("m2", 3))),
    "best first": lambda d: TreeDraft(d.bind(SkipSet.parse("m2", 3)), BestFirst(7, 4, 3, 0.3, 0.03)),
    "rerank": lambda d: TreeDraft(d.bind(SkipSet.parse("a1", 3)), ExpandRerank(3, 3, 9)),
    "comb behind lookup": lambda d: LookupDraft(TreeDraft(d.bind(SkipSet.parse("m2", 3)), comb((3, 1, 2)))),
    "trained head": lambda d: build_drafter(DraftSpec(copying(d), Threshold(5, 0.0)), d),
    "blind heads": lambda d: build_drafter(DraftSpec(copying(d, "blockwise"), Threshold(5, 0.0)), d),
    "trained head behind lookup": lambda d: build_drafter(DraftSpec(copying(d), Threshold(5, 0.0), "front"), d),
    "merged": lambda d: MergedDraft(LookupDraft(), ModelDraft(d.bind(SkipSet.parse("m2", 3)))),
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy("llama-tied"))  # a tied head repeats its input: there is something to look up


@pytest.fixture(scope="module")
def batches(decoder: Decoder) -> list[ReferenceBatch]:
    return decode_references(decoder, PROMPTS, ending=Ending(N_NEW), batch_starts=40)


def known(rounds: list[Round]) -> list[tuple[object, ...]]:
    return [(r.drafted, r.accepted, r.committed, r.n_forwards, r.source) for r in rounds]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_simulation_counts_what_the_decoder_counts(
    decoder: Decoder, batches: list[ReferenceBatch], make: Callable[[Decoder], Drafter]
) -> None:
    stop = Threshold(5, 0.1)
    before = [layer.keys.clone() for batch in batches for layer in batch.cache.layers]
    found = [rounds for batch in batches for rounds in simulate(decoder, make(decoder), batch, stop)[0]]
    real = [
        speculate(decoder, [r.prompt], drafter=make(decoder), stops=[stop.begin()], ending=Ending(N_NEW))[0].rounds
        for batch in batches
        for r in batch.references
    ]
    assert [known(rounds) for rounds in found] == [known(rounds) for rounds in real]
    assert sum(r.accepted for rounds in real for r in rounds) > 0
    sure = [[c for rounds in all_ for r in rounds for c in r.confidences] for all_ in (found, real)]
    assert sure[0] == pytest.approx(sure[1], rel=1e-5)
    after = [layer.keys for batch in batches for layer in batch.cache.layers]
    assert all((a == b).all() for a, b in zip(before, after, strict=True)), "the references were changed"


def test_a_drafter_that_breaks_the_rules_is_named(decoder: Decoder, batches: list[ReferenceBatch]) -> None:
    class Stray(BaseDrafter):
        def propose(self, rows: object, *, cache: object) -> list[Draft]:  # type: ignore[override]
            return [Draft([999]) for _ in rows]  # type: ignore[attr-defined]

    with pytest.raises(DrafterError, match="Stray proposed token 999"):
        simulate(decoder, Stray(), batches[0], Fixed(2))
