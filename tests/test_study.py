"""What is told is what was run: projected where the space has constraints, pruned where scoring was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.constraints import Constraints
from search.samplers import optuna_samplers
from search.samplers.base import BitSampler
from search.space import Space
from search.study.study import Encoding, SearchStudy
from search.study.workers import Sharing
from selfspec.skipping.skip_set import SkipSet
from tests.scripted import N_LAYERS, planted, score, tpe

KEPT = Space(N_LAYERS, Constraints(keep_first=1))  # layer 0 is never left out


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def everything(seed: int) -> BaseSampler:
    """Always proposes to skip every sublayer."""

    class Everything(RandomSampler):
        def sample_independent(self, study: Study, trial: FrozenTrial, name: str, kind: Any) -> Any:
            return True if isinstance(kind, CategoricalDistribution) else 0.9

    return Everything(seed=seed)


class TestConstraints:
    @pytest.mark.parametrize(("encoding", "kept", "skipped"), [("bits", False, True), ("floats", 0.25, 0.9)])
    def test_the_sampler_learns_from_the_set_that_was_run(
        self, encoding: Encoding, kept: Any, skipped: Any, tmp_path: Path
    ) -> None:
        def study() -> SearchStudy:
            return SearchStudy(KEPT, everything, seed=0, encoding=encoding, journal=tmp_path / "study.journal")

        first = study()
        proposal = first.ask()
        assert str(proposal.skip) == "a1-3 m1-3"
        first.tell(proposal, score(1.0))
        for trials in (first.trials, study().trials):
            (params,) = (t.params for t in trials)
            assert params == {name: kept if name.endswith("00") else skipped for name in KEPT.names}

    @pytest.mark.parametrize(("make", "encoding"), [(tpe, "bits"), (optuna_samplers.cmaes, "floats")])
    def test_every_proposal_is_allowed_and_what_was_told(self, make: Any, encoding: Literal["bits", "floats"]) -> None:
        study = SearchStudy(KEPT, make, seed=0, encoding=encoding)
        for _ in range(30):
            proposal = study.ask()
            told = study.tell(proposal, score(planted(proposal.skip)))
            assert proposal.skip == KEPT.project(proposal.skip) == KEPT.skip(told.params)

    def test_cmaes_keeps_its_memory_on_a_projected_trial(self) -> None:
        study = SearchStudy(KEPT, optuna_samplers.cmaes, seed=0, encoding="floats")
        for _ in range(25):
            proposal = study.ask()
            study.tell(proposal, score(planted(proposal.skip)))
        generations = {v for t in study.trials for k, v in t.system_attrs.items() if k.endswith("generation")}
        assert isinstance(study._study.sampler, CmaEsSampler) and max(generations) >= 2, generations

    def test_a_sampler_of_bits_knows_what_is_allowed(self) -> None:
        made: list[BitSampler] = []

        class Asked(BitSampler):
            def propose(self, known: Any, order: Any, rng: Any) -> Any:
                return self.project((True,) * (2 * N_LAYERS))

        def make(seed: int) -> BaseSampler:
            made.append(Asked(seed))
            return made[-1]

        study = SearchStudy(KEPT, make, seed=0)
        study.tell(study.start(SkipSet(N_LAYERS)), score(0.0))
        assert str(study.ask().skip) == "a1-3 m1-3"
        assert not made[-1].feasible((True,) * (2 * N_LAYERS))


class TestTold:
    @pytest.mark.parametrize("origin", ["start", "searcher"])
    def test_a_pruned_trial_keeps_its_value_and_is_read_back_as_pruned(self, origin: str, tmp_path: Path) -> None:
        def study() -> SearchStudy:
            return SearchStudy(Space(N_LAYERS), tpe, seed=0, journal=tmp_path / "study.journal")

        first = study()
        proposal = first.start(SkipSet(N_LAYERS)) if origin == "start" else first.ask()
        first.tell(proposal, replace(score(0.5), pruned=True, values=(0.25, 0.75), draft_cost=0.4))
        for trials in (first.trials, study().trials):
            (told,) = trials
            assert (told.state, told.value, told.intermediate_values) == (TrialState.PRUNED, 0.5, {2: 0.5})
            assert told.user_attrs["value"] == 0.5 and told.user_attrs["pruned"] is True
            assert (told.user_attrs["values"], told.user_attrs["draft_cost"]) == ([0.25, 0.75], 0.4)

    def test_a_trial_of_a_worker_says_which_and_where(self, tmp_path: Path) -> None:
        study = SearchStudy(Space(N_LAYERS), tpe, seed=0, storage=tmp_path / "study.journal", sharing=Sharing(3))
        assert study.claim(5) == 0
        told = study.tell(study.ask(), None, reason="out of memory")
        assert (told.user_attrs["worker"], told.user_attrs["place"], told.state) == (3, 0, TrialState.FAIL)

    def test_alone_a_place_is_the_number_of_finished_trials(self) -> None:
        study = SearchStudy(Space(N_LAYERS), tpe, seed=0)
        assert study.claim(1) == 0
        study.tell(study.ask(), None)
        assert (study.claim(2), study.claim(1)) == (1, None)
