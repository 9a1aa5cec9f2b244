"""What every searcher promises. A new one inherits this class and says how its sampler is made."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.constraints import Constraints
from search.samplers.base import BitSampler, Exhausted
from search.space import Space
from search.study.study import SearchStudy
from selfspec.skipping.skip_set import SkipSet
from tests.scripted import N_LAYERS, planted, score

STARTS = (SkipSet(N_LAYERS), SkipSet.parse("a1-2 m1-2", N_LAYERS))

CONSTRAINTS = Constraints(min_skipped=2, max_skipped=4, keep_last=1)


def fails(skip: SkipSet) -> bool:
    """A quarter of the skip sets cannot be scored."""
    return 3 in skip.attn and 3 in skip.mlp


class SearcherContract:
    """Inherit, name the subclass Test..., and implement `make_sampler`.

    Attributes:
        encoding: what the sampler sees (see `SearchStudy`).
        n_trials: trials after which, for each of `seeds`, one of the `n_best` best of 256 skip sets must be found, less
            than a tenth of them: an honest bar, measured with more seeds than are tested.
        resume_at: trials after which a search is interrupted and read back from its journal.
        n_resumed: trials of an interrupted search in all.
        draws: whether another seed proposes something else.
    """

    encoding: Literal["bits", "floats"] = "bits"
    n_trials: int = 100
    n_best: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    resume_at: tuple[int, ...] = (0, 1, 13, 24)
    n_resumed: int = 30
    draws: bool = True

    def make_sampler(self, seed: int) -> BaseSampler:
        """The sampler with its settings."""
        raise NotImplementedError

    def value(self, skip: SkipSet) -> float:
        """What the planted optimum is the largest of."""
        return planted(skip)

    def study(self, seed: int = 0, journal: Path | None = None, constraints: Constraints | None = None) -> SearchStudy:
        space = Space(N_LAYERS, constraints or Constraints())
        return SearchStudy(space, self.make_sampler, seed=seed, journal=journal, encoding=self.encoding)

    def go_on(self, study: SearchStudy, n_trials: int) -> None:
        """As `run_search` does it: starts first, then what the sampler proposes, to its end; some trials fail."""
        with suppress(Exhausted):
            while (number := len(study.trials)) < n_trials:
                proposal = study.start(STARTS[number]) if number < len(STARTS) else study.ask()
                study.tell(proposal, None if fails(proposal.skip) else score(planted(proposal.skip)))

    def test_finds_the_planted_optimum(self) -> None:
        every = sorted(self.value(SkipSet.from_bits(b)) for b in itertools.product((False, True), repeat=2 * N_LAYERS))
        bar = every[-self.n_best] - 1e-9
        assert sum(value >= bar for value in every) < len(every) / 10, "too many would do: this test proves nothing"
        found = {}
        for seed in self.seeds:
            study = self.study(seed)
            best = float("-inf")
            with suppress(Exhausted):
                for _ in range(self.n_trials):
                    proposal = study.ask()
                    value = self.value(proposal.skip)
                    study.tell(proposal, score(value))
                    best = max(best, value)
            found[seed] = best
        assert min(found.values()) >= bar, f"best values by seed: {found}; the best of all: {every[-self.n_best :]}"

    def test_an_interrupted_search_proposes_what_the_uninterrupted_one_does(self, tmp_path: Path) -> None:
        whole = self.study()
        self.go_on(whole, self.n_resumed)
        expected = [(t.user_attrs["skip"], t.user_attrs.get("value")) for t in whole.trials]
        for k in self.resume_at:
            journal = tmp_path / f"{k}.journal"
            stopped = self.study(journal=journal)
            self.go_on(stopped, k)
            with suppress(Exhausted):
                stopped.ask()  # proposed, and killed before it was told
            resumed = self.study(journal=journal)
            self.go_on(resumed, self.n_resumed)
            found = [(t.user_attrs["skip"], t.user_attrs.get("value")) for t in resumed.trials]
            assert found == expected, f"interrupted after {k} trials"

    def test_a_seed_gives_its_own_sequence_if_the_searcher_draws(self) -> None:
        def proposals(seed: int) -> list[str]:
            study = self.study(seed)
            self.go_on(study, 10)
            return [t.user_attrs["skip"] for t in study.trials[len(STARTS) :]]

        assert proposals(0) == proposals(0)
        assert (proposals(0) != proposals(1)) == self.draws

    def test_goes_on_when_nothing_but_failures_is_told(self) -> None:
        study = self.study()
        n_failed = 0
        with suppress(Exhausted):
            for _ in range(8):
                study.tell(study.ask(), None, reason="out of memory")
                n_failed += 1
            study.tell(study.ask(), score(1.0))
        assert [t.state for t in study.trials][:n_failed] == [TrialState.FAIL] * n_failed
        assert n_failed == 8 or isinstance(self.make_sampler(0), BitSampler), "only these may have nothing left"

    def test_what_is_run_is_feasible(self) -> None:
        study = self.study(constraints=CONSTRAINTS)
        with suppress(Exhausted):
            for number in range(20):
                proposal = study.start(study.space.project(STARTS[0])) if number == 0 else study.ask()
                assert study.space.project(proposal.skip) == proposal.skip
                study.tell(proposal, None if fails(proposal.skip) else score(planted(proposal.skip)))

    def test_what_is_told_is_what_was_run(self, tmp_path: Path) -> None:
        study = self.study(journal=tmp_path / "study.journal")
        ran: list[tuple[SkipSet, float | None]] = []
        with suppress(Exhausted):
            for number in range(14):
                proposal = study.start(STARTS[number]) if number < len(STARTS) else study.ask()
                value = None if fails(proposal.skip) else planted(proposal.skip)
                study.tell(proposal, None if value is None else score(value))
                ran.append((proposal.skip, value))
        for trials in (study.trials, self.study(journal=tmp_path / "study.journal").trials):
            assert [(study.space.skip(t.params), t.value) for t in trials] == ran  # what the sampler learns from
            assert [SkipSet.parse(t.user_attrs["skip"], N_LAYERS) for t in trials] == [skip for skip, _ in ran]

    @pytest.mark.parametrize("skip", STARTS, ids=str)
    def test_a_start_is_run_as_given(self, skip: SkipSet) -> None:
        proposal = self.study().start(skip)
        assert (proposal.skip, proposal.origin) == (skip, "start")


class BitSearcherContract(SearcherContract):
    """What searchers that know a skip set as bits promise besides: they waste no trial."""

    exhaustive: bool = True
    """Whether the search goes on until no feasible set is left."""
    n_layers: int = 3
    """Of a space small enough to be searched whole."""

    @pytest.mark.parametrize(
        "constraints",
        [
            Constraints(),
            Constraints(max_skipped=2),
            Constraints(n_skipped=2),
            Constraints(whole_layers=True),
            Constraints(whole_layers=True, n_skipped=2),
        ],
        ids=("all", "at most 2", "exactly 2", "whole layers", "exactly 1 layer"),
    )
    def test_proposes_each_feasible_set_at_most_once_and_then_ends(self, constraints: Constraints) -> None:
        space = Space(self.n_layers, constraints)
        study = SearchStudy(space, self.make_sampler, seed=0)
        feasible = [bits for bits in itertools.product((False, True), repeat=2 * self.n_layers) if allowed(space, bits)]
        run: list[tuple[bool, ...]] = []
        with suppress(Exhausted):
            while len(run) <= len(feasible):
                proposal = study.ask()
                study.tell(proposal, None if proposal.skip.attn == {1} else score(1 + len(proposal.skip.mlp)))
                run.append(proposal.skip.bits())
        assert len(set(run)) == len(run), "a set was proposed twice"
        assert set(run) <= set(feasible)
        assert set(run) == set(feasible) or not self.exhaustive, "the search ended before every set was known"


def allowed(space: Space, bits: tuple[bool, ...]) -> bool:
    """Whether the space has it."""
    skip = SkipSet.from_bits(bits)
    return space.project(skip) == skip
