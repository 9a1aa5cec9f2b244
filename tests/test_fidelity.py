"""WilcoxonPruning: hopeless trials stop early, and the best one never does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler

from search.objective import ShouldContinue
from search.study.pruning import WilcoxonPruning
from selfspec.errors import InputError
from selfspec.records.run_files import read_rows
from selfspec.skipping.skip_set import SkipSet
from tests.scripted import N_LAYERS, ROWS, Listed, Scripted, planted, rows_of, run


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


N_PROMPTS = 16


def noisy(skip: SkipSet) -> list[float]:
    """Prompts that differ from each other more than skip sets do, and that are noisy for each of these."""
    rng, shared = np.random.default_rng([int(bit) for bit in skip.bits()]), np.random.default_rng(0)
    noise = 0.3 * rng.standard_normal(N_PROMPTS) + 3 * shared.standard_normal(N_PROMPTS)
    return [planted(skip) + float(x) for x in noise]


def pruning_at(n_prompts: int) -> Any:
    """WilcoxonPruning that stops everything there."""

    class Cruel(WilcoxonPruning):
        def against(self, best: Sequence[float]) -> ShouldContinue:
            return lambda values: len(values) < n_prompts

    return Cruel()


class TestPruning:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_saves_prompts_and_stops_no_trial_that_would_have_been_the_best(self, seed: int, tmp_path: Path) -> None:
        found, objectives = [], []
        for pruning in (None, WilcoxonPruning()):
            folder = tmp_path / str(pruning)
            folder.mkdir()
            objectives.append(Scripted(prompts=noisy))
            found.append(run(folder, 30, objectives[-1], seed=seed, sampler=RandomSampler, pruning=pruning))
        full, pruned = (read_rows(tmp_path / str(pruning) / ROWS) for pruning in (None, WilcoxonPruning()))
        assert [row["skip"] for row in pruned] == [row["skip"] for row in full]  # what is asked knows no scores
        assert replace(found[0], elapsed_s=0) == replace(found[1], elapsed_s=0)
        best = float("-inf")
        for whole, row in zip(full, pruned, strict=True):
            assert row["state"] == "complete" or whole["value"] <= best, row["skip"]
            best = max(best, whole["value"])
        assert objectives[1].n_prompts < 0.7 * objectives[0].n_prompts

    def test_a_stopped_trial_is_never_the_best_and_its_row_says_why(self, tmp_path: Path) -> None:
        def value(skip: SkipSet) -> list[float]:
            return [float(len(skip))] * N_PROMPTS

        starts = [SkipSet(N_LAYERS), SkipSet.parse("a1 m1", N_LAYERS)]
        found = run(tmp_path, 12, Scripted(prompts=value), starts=starts, pruning=pruning_at(7))
        rows = read_rows(tmp_path / ROWS)
        assert (str(found.skip), found.number) == ("a1 m1", 1)  # though larger values were seen
        assert {row["state"] for row in rows[:2]} == {"complete"}  # starts are never stopped
        new = [row for row in rows[2:] if not str(row["reason"]).startswith("known")]
        assert new and {(row["state"], row["reason"], len(row["values"])) for row in new} == {
            ("pruned", "behind trial 1 after 7 prompts", 7)
        }

    def test_a_stopped_set_is_answered_with_what_is_known_unless_it_is_a_start(self, tmp_path: Path) -> None:
        one = [SkipSet(N_LAYERS)]
        again = partial(Listed, sets=("a1", "a1"))
        objective = Scripted(prompts=noisy)
        run(tmp_path, 3, objective, starts=one, sampler=again, pruning=pruning_at(7))
        rows = read_rows(tmp_path / ROWS)
        assert [row["state"] for row in rows] == ["complete", "pruned", "pruned"]
        assert rows[2]["reason"] == "known from trial 1" and rows[2]["value"] == rows[1]["value"]
        assert objective.calls == ["none", "a1"]
        run(tmp_path, 4, objective, starts=[*one * 3, SkipSet.parse("a1", N_LAYERS)], pruning=pruning_at(7))
        assert read_rows(tmp_path / ROWS)[3]["state"] == "complete"

    def test_an_interrupted_search_with_pruning_goes_on_unchanged(self, tmp_path: Path) -> None:
        for name, sittings in (("whole", [20]), ("parts", [4, 11, 20])):
            (tmp_path / name).mkdir()
            for n_trials in sittings:
                run(tmp_path / name, n_trials, Scripted(prompts=noisy), pruning=WilcoxonPruning())
        assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
        assert "pruned" in {row["state"] for row in rows_of(tmp_path / "whole")}

    def test_asks_for_enough_prompts_and_stops_only_what_is_worse(self) -> None:
        best = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        should_continue = WilcoxonPruning(min_prompts=6).against(best)
        worse, better = [x - 0.5 for x in best], [x + 0.5 for x in best]
        assert [should_continue(worse[:n]) for n in range(1, 8)] == [True] * 5 + [False] * 2
        assert all(should_continue(values[:n]) for values in (best, better) for n in range(1, 8))
        assert should_continue([*worse, 0.0])  # prompts that the best has not seen tell nothing
        assert WilcoxonPruning().against([])(worse)

    @pytest.mark.parametrize(("p", "min_prompts"), [(0.05, 4), (0.01, 6), (0.0, 6), (0.6, 6)])
    def test_pruning_that_can_stop_nothing_or_everything_is_refused(self, p: float, min_prompts: int) -> None:
        with pytest.raises(InputError, match="p="):
            WilcoxonPruning(p, min_prompts)
