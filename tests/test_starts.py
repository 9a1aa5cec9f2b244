"""Starts: known good skip sets suit any model, keep the constraints and repeat nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.constraints import Constraints
from search.space import Space
from search.starts import KINDS, at_depth, from_path, published_sets, singles, warm_starts
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import NAME, load_skip_set, published, save_skip_set
from tests.scripted import N_LAYERS, ROWS, Scripted, planted, run

EVERY_KIND = tuple(KINDS)


def searched(folder: Path, n_layers: int = N_LAYERS, n_trials: int = 12) -> Path:
    """The folder of a search that was killed before its end."""
    folder.mkdir()
    run(folder, n_trials, Scripted(fails=lambda skip: 3 in skip.mlp))
    assert (folder / ROWS).name == run_files.TRIALS
    run_files.write_json(folder / run_files.PROVENANCE, {"run": {"model": "tiny", "n_layers": n_layers}})
    return folder


class TestKinds:
    @pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 30])
    def test_suit_any_model_and_repeat_nothing(self, n_layers: int) -> None:
        starts = warm_starts(Space(n_layers), EVERY_KIND)
        assert {skip.n_layers for skip in starts} == {n_layers}
        assert len(set(starts)) == len(starts) >= 1 + 2 * n_layers
        assert len(starts[0]) == 0

    def test_come_in_the_order_asked_for_and_always_the_same(self) -> None:
        starts = warm_starts(Space(8), ("attention", "nothing", "uniform"))
        assert [str(skip) for skip in starts] == ["a3-6", "none", "a2,5 m2,5"]
        assert warm_starts(Space(8), EVERY_KIND) == warm_starts(Space(8), EVERY_KIND)

    def test_keep_the_constraints(self) -> None:
        space = Space(30, Constraints(n_skipped=12, keep_first=1, only="attention"))
        starts = warm_starts(space, EVERY_KIND)
        assert starts and all(space.constraints.allows(skip) for skip in starts)
        assert len(set(starts)) == len(starts)

    def test_the_singles_are_every_sublayer_once(self) -> None:
        assert [str(skip) for skip in singles(2)] == ["a0", "m0", "a1", "m1"]

    def test_an_unknown_kind_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(InputError, match=r"unknown kind of start 'single'; did you mean 'singles'\? .*published"):
            warm_starts(Space(4), ("nothing", "single"))


class TestPublished:
    def test_a_model_of_the_same_depth_gets_the_very_sets(self) -> None:
        of_forty = [load_skip_set(name) for name in published() if load_skip_set(name).n_layers == 40]
        assert of_forty and set(of_forty) <= set(published_sets(40))

    def test_ends_stay_ends_and_the_middle_stays_the_middle(self) -> None:
        for n_layers in (12, 30, 80):
            for original in map(load_skip_set, published()):
                moved = at_depth(original, n_layers)
                depths = [max(s.attn) / (s.n_layers - 1) for s in (original, moved)]
                assert abs(depths[0] - depths[1]) <= 0.5 / (n_layers - 1) + 1e-9, f"{original} -> {moved}"
        assert str(at_depth(SkipSet.parse("a0,39 m20", 40), 80)) == "a0,79 m41"

    def test_one_layer_is_not_divided_by(self) -> None:
        assert {str(skip) for skip in published_sets(1)} == {"a0 m0"}


class TestEarlierRuns:
    def test_a_file_and_the_folder_that_holds_it_say_the_same(self, tmp_path: Path) -> None:
        skip = SkipSet.parse("a1 m2", N_LAYERS)
        save_skip_set(tmp_path / NAME, skip, model="tiny")
        assert from_path(tmp_path, N_LAYERS) == from_path(tmp_path / NAME, N_LAYERS) == [skip]

    def test_starts_from_a_search_are_its_distinct_best_in_order(self, tmp_path: Path) -> None:
        starts = from_path(searched(tmp_path / "run"), N_LAYERS, n_best=3)
        rows = run_files.read_rows(tmp_path / "run" / ROWS)
        values = sorted({row["value"] for row in rows if row["state"] == "complete"}, reverse=True)
        assert [planted(skip) for skip in starts] == values[:3]

    def test_come_after_the_kinds(self, tmp_path: Path) -> None:
        path = tmp_path / "good.yaml"
        save_skip_set(path, SkipSet.parse("a1 m2", N_LAYERS), model="tiny")
        assert [str(skip) for skip in warm_starts(Space(N_LAYERS), ("nothing",), [path])] == ["none", "a1 m2"]

    def test_another_model_s_are_refused(self, tmp_path: Path) -> None:
        save_skip_set(tmp_path / NAME, SkipSet(5), model="other")
        with pytest.raises(InputError, match="is for other of 5 layers; this model has 4"):
            from_path(tmp_path, 4)
        with pytest.raises(InputError, match="is a search for tiny of 5 layers; this model has 4"):
            from_path(searched(tmp_path / "run", n_layers=5), 4)

    def test_a_search_of_an_unknown_model_is_refused(self, tmp_path: Path) -> None:
        folder = searched(tmp_path / "run")
        (folder / run_files.PROVENANCE).unlink()
        with pytest.raises(InputError, match=r"cannot read .*, so the model of"):
            from_path(folder, N_LAYERS)

    def test_a_search_without_a_score_is_refused(self, tmp_path: Path) -> None:
        folder = searched(tmp_path / "run")
        rows = (folder / ROWS).read_text().splitlines(keepends=True)
        (folder / ROWS).write_text("".join(row for row in rows if '"complete"' not in row))
        with pytest.raises(InputError, match="no trial that was scored to its end"):
            from_path(folder, N_LAYERS)

    def test_what_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot read the skip set"):
            from_path(tmp_path / "nowhere.yaml", N_LAYERS)
