"""The schema of a run folder: what the verbs write fits it, older rows are read, and a bad row is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from experiments.results.find_runs import find_runs
from experiments.results.rows import FILES, PromptRow, Raced, Record, RowOfSchema, Trial, parse_row, read_rows, scored
from experiments.results.run_folder import open_run
from scripts import run_folder_docs
from selfspec.errors import InputError
from selfspec.records import run_files
from tests.commands import command
from tests.made_up import evaluate_run, search_run

BARE_TRIAL = {"schema": 1, "number": 0, "state": "complete", "skip": "a1"}
BARE_RECORD = {"schema": 1, "prompt_id": "p", "arm": "plain"}


def line(row: Any) -> bytes:
    return json.dumps(row).encode()


def test_the_document_of_the_run_folder_is_made_of_the_schema() -> None:
    assert run_folder_docs.FILE.read_text(encoding="utf-8") == run_folder_docs.text(), "run scripts/run_folder_docs.py"


def test_the_schema_has_the_version_that_rows_are_written_with() -> None:
    assert parse_row(line({"schema": run_files.SCHEMA}), RowOfSchema) == {"schema": run_files.SCHEMA}


@pytest.mark.slow
def test_search_and_evaluate_write_no_field_that_the_schema_lacks(toy: list[str], tmp_path: Path) -> None:
    quick = ["objective.max_new_tokens=8", "searcher.n_trials=6", "force=true", f"paths.outputs={tmp_path}"]
    searched = command("search", "draft=skip", *toy, *quick)
    assert searched.status == 0, searched.err
    words = ["n=2", "max_new_tokens=8", f"skip={searched.run}", f"paths.outputs={tmp_path}"]
    evaluated = command("evaluate", *toy, *words)
    assert evaluated.status == 0, evaluated.err
    for run in (searched.run, evaluated.run):
        for name in {file.name for file in run.glob("*.jsonl")} & FILES.keys():
            known = get_type_hints(FILES[name]).keys()
            rows = read_rows(run / name, FILES[name]).whole()
            assert rows and {key for row in rows for key in row} <= known, name


def test_fields_of_later_versions_have_defaults_in_older_rows() -> None:
    trial, record = parse_row(line(BARE_TRIAL), Trial), parse_row(line(BARE_RECORD), Record)
    assert (trial["origin"], trial["value"], trial["draft_cost"], trial["elapsed_s"]) == ("searcher", None, None, None)
    assert (record["sample"], record["turn"], record["error"]) == (0, 0, None)
    assert "drafted" not in record and "settings" not in trial  # what was not measured is not made up


def test_fields_that_this_version_does_not_know_are_kept() -> None:
    assert parse_row(line(BARE_TRIAL | {"later": [1, {"x": 2}]}), Trial)["later"] == [1, {"x": 2}]  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (Trial, b"oops", "not JSON"),
        (Trial, b"[1]", "not a row of schema 1"),
        (Trial, line(BARE_TRIAL | {"schema": 2}), "not a row of schema 1"),
        (Trial, line({"schema": 1, "number": 0, "state": "complete"}), "no field skip"),
        (Trial, line(BARE_TRIAL | {"value": "fast"}), "field value: .*number.*, not 'fast'"),
        (Trial, line(BARE_TRIAL | {"state": "lost"}), "field state: .*'complete', 'pruned' or 'failed', not 'lost'"),
        (Record, line(BARE_RECORD | {"round_drafted": [1, "x"]}), "field round_drafted.1: .*integer.*, not 'x'"),
        (Raced, line({"schema": 1}), "no field skip"),
        (PromptRow, line({"schema": 1, "conversation": "c", "prompt_id": "p", "turn": 0}), "no field ids"),
    ],
)
def test_a_row_that_cannot_be_read_names_its_field(kind: type[Any], text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        parse_row(text, kind)


def test_a_bad_row_is_one_line_with_file_line_and_field(tmp_path: Path) -> None:
    run = search_run(tmp_path, n_trials=5)
    file = run / run_files.TRIALS
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"draft_cost": "cheap"})
    file.write_text("\n".join([*lines, '{"half']), encoding="utf-8")
    read = read_rows(file, Trial)
    assert [trial["number"] for trial in scored(read.rows)] == [0, 1, 3, 4]
    (problem,) = read.problems
    assert problem.startswith("trials.jsonl, line 3: field draft_cost: ") and "\n" not in problem
    (found,) = find_runs(str(run), tmp_path)
    with pytest.raises(InputError, match=f"{run.name}/trials.jsonl, line 3: field draft_cost") as refusal:
        found.trials().whole()
    assert "\n" not in str(refusal.value)


def test_a_search_and_an_evaluation_are_read_by_the_same_door(tmp_path: Path) -> None:
    search, evaluation = (open_run(make(tmp_path), tmp_path) for make in (search_run, evaluate_run))
    assert (search.verb, evaluation.verb) == ("search", "evaluate")
    assert len(search.rows().whole()) == search.n_rows and len(evaluation.rows().whole()) == evaluation.n_rows
    assert search.finals().whole() == []


def test_a_failed_job_is_a_state_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "search" / "name" / "20260101T000000Z-0"
    folder.mkdir(parents=True)
    run_files.write_json(folder / run_files.FAILURE, {"error": "no such model", "overrides": []})
    run = open_run(folder, tmp_path)
    assert (run.state, run.problem, run.is_readable) == ("failed", "no such model", False)
