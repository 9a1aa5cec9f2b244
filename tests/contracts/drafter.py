"""What every drafter promises. A new one inherits this class and says how it is made."""

# B rows, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from selfspec.engine.cache import ClockCache
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Needs, Output, Row, Verdict
from selfspec.engine.sampling import Sampling
from selfspec.engine.trace import DecodeResult
from selfspec.models.decoder import Decoder
from selfspec.stopping import StopPolicy, Threshold
from tests.contracts.architecture import LONG, MIDDLE, SHORT, counts
from tests.test_engine import decoder_of
from tests.toys import STRUCTURES

PROMPTS = [SHORT, LONG, MIDDLE]
N_NEW = 9
SAMPLING = Sampling(do_sample=True, temperature=1.3, top_k=20, seed=5)


@dataclass
class Forgetful(BaseDrafter):
    """Another drafter that is told nothing after a verdict."""

    inner: Drafter
    name: str = "forgetful"

    @property
    def needs(self) -> Needs:
        return self.inner.needs

    def begin(self, row: Row, prompt: Output) -> None:
        self.inner.begin(row, prompt)

    def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
        return self.inner.propose(rows, cache=cache)

    def end(self, row: Row) -> None:
        self.inner.end(row)


@dataclass
class Watched(Forgetful):
    """Another drafter, and what it was told of each row."""

    name: str = "watched"
    begun: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    verdicts: list[tuple[Draft, Verdict, tuple[int, ...]]] = field(default_factory=list)

    def begin(self, row: Row, prompt: Output) -> None:
        self.begun.append(row.key)
        self.inner.begin(row, prompt)

    def observe(self, row: Row, draft: Draft, verdict: Verdict, target: Output) -> None:
        self.verdicts.append((draft, verdict, tuple(target.logits_BTV.shape)))
        self.inner.observe(row, draft, verdict, target)

    def end(self, row: Row) -> None:
        self.ended.append(row.key)
        self.inner.end(row)


class DrafterContract:
    """Inherit, name the subclass Test..., implement `make`; override the rest where it says."""

    structures: Sequence[str] = STRUCTURES
    is_sometimes_right: bool = True
    """Whether some of what it drafts on the toys is accepted and some is not."""

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        """The drafter; `sample`: it may draw what it drafts."""
        raise NotImplementedError

    def rule(self) -> StopPolicy:
        """The stop rule it is tried with."""
        return Threshold(4, threshold=0.1)

    def run(
        self, decoder: Decoder, prompts: Sequence[list[int]], drafter: Drafter, ending: Ending, **settings: object
    ) -> list[DecodeResult]:
        """Decode with a fresh state of the rule for each prompt."""
        stops = [self.rule().begin() for _ in prompts]
        return speculate(decoder, prompts, drafter=drafter, stops=stops, ending=ending, **settings)  # type: ignore[arg-type]

    def test_the_output_is_the_targets_own_on_every_structure(self) -> None:
        drafted = accepted = 0
        for structure in self.structures:
            decoder = decoder_of(structure)
            drafter = self.make(decoder, sample=True)
            for ids in PROMPTS:
                (result,) = self.run(decoder, [ids], drafter, Ending(N_NEW))
                assert result.tokens == autoregress(decoder, [ids], ending=Ending(N_NEW))[0].tokens, structure
                drafted, accepted = drafted + result.drafted, accepted + result.accepted
        assert not self.is_sometimes_right or 0 < accepted < drafted, "this test proves nothing"

    def test_a_ragged_batch_equals_each_row_alone_and_rows_end_in_any_order(self) -> None:
        decoder = decoder_of()
        plain = [autoregress(decoder, [ids], ending=Ending(N_NEW))[0].tokens for ids in PROMPTS]
        endings = [Ending(N_NEW), *(Ending(N_NEW, frozenset({tokens[3]})) for tokens in plain)]
        for ending in endings:
            alone = [self.run(decoder, [ids], self.make(decoder, sample=True), ending)[0] for ids in PROMPTS]
            together = self.run(decoder, PROMPTS, self.make(decoder, sample=True), ending)
            assert [(r.tokens, counts(r)) for r in together] == [(r.tokens, counts(r)) for r in alone]

    def test_sampled_rows_draw_the_same_alone_and_in_a_batch(self) -> None:
        decoder = decoder_of()
        for sample in (True, False):
            together = self.run(
                decoder, PROMPTS, self.make(decoder, sample=sample), Ending(N_NEW), sampling=SAMPLING, first_row=3
            )
            for i, ids in enumerate(PROMPTS):
                drafter = self.make(decoder, sample=sample)
                (alone,) = self.run(decoder, [ids], drafter, Ending(N_NEW), sampling=SAMPLING, first_row=3 + i)
                assert together[i].tokens == alone.tokens

    def test_what_it_observes_cannot_change_the_output(self) -> None:
        decoder = decoder_of()
        plain = autoregress(decoder, [LONG], ending=Ending(N_NEW))[0].tokens
        forgetful = Forgetful(self.make(decoder, sample=True))
        assert self.run(decoder, [LONG], forgetful, Ending(N_NEW))[0].tokens == plain

    def test_every_row_begins_and_ends_once_and_verdicts_follow_the_tree(self) -> None:
        decoder = decoder_of()
        drafter = Watched(self.make(decoder, sample=True))
        results = self.run(decoder, PROMPTS, drafter, Ending(N_NEW))
        assert sorted(drafter.begun) == sorted(drafter.ended) and len(set(drafter.begun)) == len(PROMPTS)
        assert len(drafter.verdicts) == sum(len(r.rounds) for r in results)
        for draft, verdict, shape in drafter.verdicts:
            assert shape[:2] == (1, len(draft.tokens) + 1)
            parents = draft.parents or [i - 1 for i in range(len(draft.tokens))]
            assert [parents[node] for node in verdict.path] == [-1, *verdict.path][: len(verdict.path)]

    def test_it_forgets_what_has_ended(self) -> None:
        decoder = decoder_of()
        drafter = self.make(decoder, sample=True)
        self.run(decoder, PROMPTS, drafter, Ending(N_NEW))
        for value in _states(drafter):
            assert not value, f"{drafter.name} still holds {value}"

    def test_nothing_is_written_before_the_clock(self) -> None:
        decoder = decoder_of()
        kept: list[list[list[float]]] = []

        class Snapshot(Forgetful):
            def propose(self, rows: Sequence[Row], *, cache: ClockCache) -> list[Draft]:
                def committed() -> list[list[float]]:
                    return [
                        layer.keys[b, :, : len(row.ids) - 1].flatten().tolist()
                        for layer in cache.layers
                        for b, row in enumerate(rows)
                    ]

                before = committed()
                drafts = self.inner.propose(rows, cache=cache)
                kept.extend([before, committed()])
                return drafts

        self.run(decoder, PROMPTS, Snapshot(self.make(decoder, sample=True)), Ending(N_NEW))
        assert kept and kept[0::2] == kept[1::2]

    @pytest.mark.parametrize("sample", [True, False], ids=["drawn", "point masses"])
    def test_the_same_seed_samples_the_same(self, sample: bool) -> None:
        decoder = decoder_of()
        found = [
            self.run(decoder, [LONG], self.make(decoder, sample=sample), Ending(N_NEW), sampling=SAMPLING)[0].tokens
            for _ in range(2)
        ]
        assert found[0] == found[1]


def _states(drafter: Drafter) -> list[dict[int, object]]:
    """Dictionaries that a drafter, or one inside it, keeps of its rows."""
    found = []
    for name in ("_gains", "_own", "rows", "_rows"):
        value = getattr(drafter, name, None)
        if isinstance(value, dict):
            found.append(value)
    if (rows := getattr(drafter, "rows", None)) is not None and not isinstance(rows, dict):
        found.append(rows.known)
    inner = getattr(drafter, "inner", None)
    return found + (_states(inner) if inner is not None else [])
