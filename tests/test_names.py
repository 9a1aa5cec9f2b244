"""Names: of one folder, never of a path; on one line, and without a say on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.paper.section import Table
from experiments.results.tables import markdown_table
from selfspec.errors import InputError
from selfspec.records.names import one_line, path_part, printable
from tests.commands import command
from tests.made_up import evaluate_run, search_run

EVIL = "a\nb\x1b[31m\x1b]0;title\x07\x00\u202e|\x9b2J\u2028"


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../x", "/", "/abs", "a/b", "a\\b", ".hidden", "a\nb", EVIL, "ä" * 101]
)
def test_what_is_no_name_of_a_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="name=") as error:
        path_part(name, "name")
    assert one_line(str(error.value)) == str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["a b", "$x", "<b>", "näe", "a..b", "x" * 200, "20260101T000000Z-0", "-"])
def test_other_names_stay_as_they_are(name: str, tmp_path: Path) -> None:
    assert path_part(name, "name") == name
    (tmp_path / name).mkdir()


@pytest.mark.parametrize("setting", ["name", "model.name", "data.name"])
@pytest.mark.parametrize("verb", ["search", "evaluate", "profile"])
def test_a_run_stays_in_the_outputs_folder(verb: str, setting: str, empty_folder: Path) -> None:
    for name in ("../../x", "/", ""):
        ran = command(verb, f"{setting}={name}", "model=local", "model.path=/nowhere")
        assert ran.status == 2 and ran.err.startswith(f"selfspec: {setting}="), ran
    assert list(empty_folder.iterdir()) == []


def test_a_cell_is_one_line_and_obeyed_by_nothing() -> None:
    table = Table(["arm"], [[EVIL]])
    for text in (markdown_table(["arm"], [[EVIL]]), table.markdown()):
        assert printable(text) == text and len(text.splitlines()) == 3
    latex = table.latex()
    assert (
        printable(latex) == latex and len([line for line in latex.split("\n") if "title" in line and "b" in line]) == 1
    )


def test_a_run_folder_from_elsewhere_writes_nothing_on_the_terminal(tmp_path: Path) -> None:
    search, evaluation = search_run(tmp_path), evaluate_run(tmp_path)
    for run in (search, evaluation):
        file = run / "provenance.json"
        facts = json.loads(file.read_text(encoding="utf-8"))
        facts["run"] |= {"model": EVIL, "data": EVIL, "searcher": EVIL}
        file.write_text(json.dumps(facts), encoding="utf-8")
    rows = (evaluation / "records.jsonl").read_text(encoding="utf-8").replace('"longer"', json.dumps(EVIL))
    (evaluation / "records.jsonl").write_text(rows, encoding="utf-8")
    place = f"paths.outputs={tmp_path}"
    for words in (("runs", "list"), ("runs", "show", str(evaluation)), ("report", f"runs={evaluation},{search}")):
        ran = command(*words, place)
        assert ran.status == 0 and printable(ran.out + ran.err) == ran.out + ran.err, ran
    assert len(command("runs", "list", place).out.splitlines()) == 3
    listed = command("runs", "list", "--json", place).out
    assert printable(listed) == listed and json.loads(listed)[0]["model"] == EVIL
    (table,) = tmp_path.glob("report/*/*/table.md")
    text = table.read_text(encoding="utf-8")
    assert printable(text) == text
