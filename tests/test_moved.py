"""Classes that have moved: run folders that name their old places are read and resumed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from search.costs.table import CostTable
from selfspec.records import run_files
from selfspec.targets import MOVED, TARGET, current, first
from tests.commands import command

SMALL = ("costs.contexts=[16]", "costs.max_tokens=4", "costs.repeats=1", "objective.n_prompts=2", "finals.top=0")


@pytest.mark.parametrize("old", MOVED)
def test_every_place_of_before_leads_to_a_module(old: str) -> None:
    assert import_module(current(f"{old}.X").removesuffix(".X"))
    assert first(current(f"{old}.X")) == f"{old}.X"


def test_a_name_that_has_not_moved_stays() -> None:
    assert current("my_rules.Patient") == first("my_rules.Patient") == "my_rules.Patient"


def age(folder: Path) -> None:
    """Make a run's configuration what the first version wrote: former names of classes, fewer settings."""
    file = folder / run_files.CONFIG

    def old(value: object) -> object:
        if isinstance(value, dict):
            return {k: first(v) if k == TARGET else old(v) for k, v in value.items()}
        return value

    body = old(yaml.safe_load(file.read_text()))
    assert isinstance(body, dict)
    body.pop("controls", None)
    assert "selfspec.stop.Threshold" in str(body)
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    (folder / run_files.SUMMARY).unlink()


def test_a_search_of_before_is_resumed(toy: list[str], tmp_path: Path) -> None:
    words = (f"paths.outputs={tmp_path}", *SMALL, "searcher=quadratic", "stop=threshold", "searcher.n_trials=4")
    ran = command("search", "draft=skip", *toy, *words, "objective.max_new_tokens=6", "force=true")
    assert ran.status == 0, ran.err
    age(ran.run)
    again = command("search", f"resume={ran.run}", "searcher.n_trials=6")
    assert again.status == 0, again.err
    assert len(run_files.read_rows(ran.run / run_files.TRIALS)) == 6


def test_an_evaluation_of_before_is_resumed(toy: list[str], tmp_path: Path) -> None:
    words = (
        f"paths.outputs={tmp_path}",
        "n=3",
        "max_new_tokens=6",
        "skip=a1",
        "stop=threshold",
        "generate=false",
        "controls=false",
    )
    ran = command("evaluate", *toy, *words)
    assert ran.status == 0, ran.err
    rows = (ran.run / run_files.RECORDS).read_text().splitlines(keepends=True)
    (ran.run / run_files.RECORDS).write_text("".join(rows[:2]))
    age(ran.run)
    again = command("evaluate", f"resume={ran.run}")
    assert again.status == 0, again.err
    assert len(run_files.read_rows(ran.run / run_files.RECORDS)) == len(rows)


def test_a_cost_table_has_the_text_it_had_before_its_fields_were_renamed() -> None:
    # Its digest is part of a study's identity. Recorded from the commit before.
    table = CostTable((64,), (1.0,), 2.0, 3.0, (9.0,), (9.0, 9.5), overhead_s=0.1, interaction_s=((0.5,),))
    assert table.text == (
        "CostTable(contexts=(64,), attn_s=(1.0,), mlp_s=2.0, base_s=3.0, full_s=(9.0,), verify_s=(9.0, 9.5), "
        "verify_far_s=(), round_s=0.1, head_s=0.0, map_s=0.0, head_saved_s=0.0, attn_saved_s=0.0, mlp_saved_s=0.0, "
        "beside_s=((0.5,),))"
    )
