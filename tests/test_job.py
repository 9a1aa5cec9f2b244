"""A search as a value, run from plain Python: it gives the trials that the command gives."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.costs.draft_tables import DraftCosts
from search.costs.table import CostTable
from search.draft_of_point import Drafts
from search.goal import Goal
from search.job import Finals, Searcher, SearchJob, SearchListener
from search.samplers.quadratic import Quadratic
from search.space import Space
from search.study.loop import Budget, Found
from search.study.pruning import WilcoxonPruning
from selfspec.data.jsonl import Jsonl
from selfspec.data.prompts import encode
from selfspec.data.task import select
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.records import run_files
from selfspec.records.run_files import read_rows
from selfspec.stopping import Adaptive, Threshold
from tests.commands import N_LAYERS, command
from tests.toys import toy as toy_model

REPLAYED = "value", "acceptance", "drafted", "accepted", "n_rounds", "skip", "origin", "state", "number"


def ids_of(prompts_file: Path, model_folder: Path, *, n: int) -> list[list[int]]:
    task = Jsonl(
        path=str(prompts_file),
        prompt_field="prompt",
        reference_field=None,
        id_field=None,
        calibration_fraction=0.5,
        repair=False,
    )
    found = encode(
        AutoTokenizer.from_pretrained(model_folder),
        select(task.examples("calibration"), n=n, seed=0),
        chat=True,
        template=None,
        context_length=96,
        max_new_tokens=8,
    )
    return [p.ids for p in found]


def small_job(**settings: Any) -> SearchJob:
    decoder = Decoder(toy_model("llama", num_hidden_layers=N_LAYERS))
    costs = CostTable((8,), (1.0,), 2.0, 3.0, (15.0,), (15.0, 16.0))
    job = SearchJob(
        decoder=decoder,
        prompts={"mine": [[1, 2, 3], [9, 8, 7, 6]]},
        drafts=Drafts(Threshold(4, 0.6)),
        costs=DraftCosts(costs),
        space=Space(N_LAYERS),
        searcher=Searcher("quadratic", Quadratic),
        budget=Budget(n_trials=6),
        goal=Goal(max_new_tokens=8),
        starts=("nothing",),
        finals=Finals(top=0),
    )
    return replace(job, **settings)


def test_plain_python_gives_the_trials_of_the_command(
    toy: list[str], model_folder: Path, prompts_file: Path, empty_folder: Path
) -> None:
    words = [
        *("objective.n_prompts=2", "objective.max_new_tokens=8", "finals.n_prompts=2", "force=true"),
        *("costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=2", "searcher.n_trials=20"),
    ]
    ran = command("search", "draft=skip", *toy, *words)
    assert ran.status == 0, ran.err
    ids = ids_of(prompts_file, model_folder, n=4)
    decoder = Decoder(AutoModelForCausalLM.from_pretrained(model_folder, dtype="float64"))
    job = SearchJob(
        decoder=decoder,
        prompts={"jsonl": ids[:2]},
        fresh={"jsonl": ids[2:]},
        drafts=Drafts(Adaptive(12, 0.6, 0.85, 0.01, 0.5, 0.9, False)),
        costs=DraftCosts(CostTable.read(ran.run / "costs.json")),
        space=Space(decoder.n_layers),
        searcher=Searcher("quadratic", Quadratic),
        budget=Budget(n_trials=20),
        goal=Goal(max_new_tokens=8),
        pruning=WilcoxonPruning(),
        force=True,
    )
    result = job.run()
    rows = read_rows(ran.run / run_files.TRIALS)
    assert [[r[k] for k in REPLAYED] for r in result.rows] == [[r[k] for k in REPLAYED] for r in rows]
    finals = read_rows(ran.run / run_files.FINALS)
    fresh = {(str(r.finalist.point.skip), r.row["fresh_value"]) for r in result.raced}
    assert fresh == {(row["skip"], row["fresh_value"]) for row in finals}


def test_the_example_of_the_docstring_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect.getdoc(SearchJob) or ""
    example = text.partition("some prompts:\n")[2].partition("Attributes:")[0]
    lines = [line for line in textwrap.dedent(example).strip().splitlines() if line]
    assert 10 < len(lines) <= 25
    ids = [[1, 2, 3, i] for i in range(10)]
    model = toy_model("llama", num_hidden_layers=2, max_position_embeddings=128)
    exec("\n".join(lines).replace("n_trials=100", "n_trials=4"), {"model": model, "ids": ids})
    assert capsys.readouterr().out.strip()


def test_a_job_goes_on_in_its_folder_as_if_uninterrupted(tmp_path: Path) -> None:
    whole = small_job(budget=Budget(12)).run()
    folder = tmp_path / "run"
    folder.mkdir()
    small_job(budget=Budget(5)).run(folder)
    resumed = small_job(budget=Budget(12)).run(folder)
    same = [[[row[k] for k in REPLAYED] for row in result.rows] for result in (whole, resumed)]
    assert same[0] == same[1]
    assert len(read_rows(folder / run_files.TRIALS)) == 12


def test_a_listener_hears_every_trial_once_and_then_the_race() -> None:
    class Heard(SearchListener):
        def __init__(self) -> None:
            self.told: list[str] = []

        def begin(self, rows: Any, unit: str) -> None:
            self.told.append(f"begin {len(rows)} {unit}")

        def trial(self, row: dict[str, Any]) -> None:
            self.told.append(f"trial {row['number']}")

        def searched(self, found: Found, verdict: Any, rungs: Any) -> None:
            self.told.append(f"searched {found.n_trials}")

        def race(self, n_done: int, n_prompts: int) -> None:
            self.told.append(f"race {n_done}/{n_prompts}")

    heard = Heard()
    small_job(budget=Budget(2), finals=Finals(top=1, race=1), fresh={"mine": [[4, 5]]}).run(listener=heard)
    until, race = heard.told[:4], heard.told[4:]
    assert until == ["begin 0 x plain decoding", "trial 0", "trial 1", "searched 2"]
    assert race in (["race 0/1", "race 1/1"], 2 * ["race 0/1", "race 1/1"])  # again, where a busy machine makes doubt


def test_a_job_without_costs_is_refused_by_an_objective_that_needs_them() -> None:
    with pytest.raises(InputError, match="needs the costs of drafts"):
        small_job(costs=None).run()


def test_a_draft_that_nobody_measured_is_refused(tmp_path: Path) -> None:
    job = small_job(drafts=Drafts(Threshold(4, 0.6), precision="int8"))
    with pytest.raises(InputError, match="nobody knows what drafts cost with head full, int8"):
        job.run(tmp_path)
