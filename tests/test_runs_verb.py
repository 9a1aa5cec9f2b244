"""selfspec runs: what lies in an outputs folder, one run of it, and skip sets side by side; as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.results.overlap import jaccard, n_shared, only_in
from experiments.terminal import skip_map_text
from selfspec.records import run_files
from selfspec.records.run_files import FAILURE
from selfspec.skipping.skip_set import SkipSet
from selfspec.skipping.skip_set_files import save_skip_set
from tests.commands import Ran, command
from tests.made_up import N_LAYERS, evaluate_run, search_run


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A finished search, its evaluation, a search that goes on, a failed job, and three folders that are no runs."""
    root = tmp_path / "outputs"
    search_run(root, seed=1)
    evaluate_run(root, seed=2)
    search_run(root, seed=3, n_trials=12, searcher="tpe", is_finished=False)
    failed = root / "search" / "made-up" / "20261101T000001Z-failed00"
    failed.mkdir()
    (failed / FAILURE).write_text(json.dumps({"error": "no such model", "overrides": ["model=x"]}), encoding="utf-8")
    for name, text in (("half", '{"run": '), ("foreign", "[]"), ("empty", None)):
        folder = root / "search" / "made-up" / f"20261101T000000Z-{name}"
        folder.mkdir()
        if text is not None:
            (folder / "provenance.json").write_text(text, encoding="utf-8")
    return root


def runs(outputs: Path, *words: str) -> str:
    ran = command("runs", *words, f"paths.outputs={outputs}")
    assert (ran.status, ran.err) == (0, ""), ran
    return ran.out


def facts(outputs: Path, *words: str) -> Any:
    return json.loads(runs(outputs, *words, "--json"))


def refused(*words: str) -> str:
    """The one line of an error, with nothing on standard output."""
    ran: Ran = command("runs", *words)
    assert (ran.status, ran.out) == (2, ""), ran
    (line,) = ran.err.splitlines()
    return line


class TestList:
    def test_tells_the_state_of_every_folder_and_why_some_cannot_be_read(self, outputs: Path) -> None:
        listed = facts(outputs, "list")
        states = {run["name"].rpartition("-")[2]: run["state"] for run in listed}
        assert states == {
            **{"00000001": "finished", "00000002": "finished", "00000003": "running"},
            **{"failed00": "failed", "half": "unreadable", "foreign": "unreadable", "empty": "unreadable"},
        }
        problems = {run["state"]: run["problem"] for run in listed if run["problem"]}
        assert problems["failed"] == "no such model"
        text = runs(outputs, "list")
        assert [run["name"] for run in listed if Path(run["path"]).name not in text] == []
        assert "no such model" in text and "is not JSON" in text

    def test_tells_what_was_found_and_measured(self, outputs: Path) -> None:
        going, evaluated, searched = facts(outputs, "list")[:3]  # the newest first
        summary = json.loads((Path(searched["path"]) / "summary.json").read_text(encoding="utf-8"))
        assert searched["best"]["skip"] == summary["best"]["skip"]
        assert going["best"]["value"] > 0 and going["n_rows"] == 12
        arms = {arm["arm"]: arm for arm in evaluated["arms"]}
        # 9 tokens in 0.91 s against 9 in 0.71 s, the first token and the prefill apart
        assert arms["searched"]["speedup"] == pytest.approx(0.91 / 0.71)
        assert f"speedup {0.91 / 0.71:.2f}" in runs(outputs, "list", "evaluate/")

    def test_a_raced_speedup_in_doubt_says_so(self, outputs: Path) -> None:
        file = Path(facts(outputs, "list", "00000001")[0]["path"]) / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8"))
        raced = {"skip": summary["best"]["skip"], "speedup": 1.5, "low": 1.03, "high": 2.14}
        for in_doubt in (["a busy machine"], [], None):
            file.write_text(
                json.dumps(summary | {"winner": raced | ({} if in_doubt is None else {"in_doubt": in_doubt})})
            )
            (run,) = facts(outputs, "list", "00000001")
            assert run["best"]["in_doubt"] == (in_doubt or [])
            assert ("in doubt" in " ".join(runs(outputs, "list", "00000001").split())) == bool(in_doubt)

    @pytest.mark.parametrize(
        ("pattern", "n"),
        [("00000001", 1), ("tpe", 1), ("search/made-up", 6), ("*-0000000?*", 3), ("search", 6), ("toy", 3)],
    )
    def test_takes_a_folder_an_id_or_a_part_of_what_is_known(self, outputs: Path, pattern: str, n: int) -> None:
        assert len(facts(outputs, "list", pattern)) == n

    def test_without_runs_says_how_to_make_one(self, empty_folder: Path) -> None:
        ran = command("runs", "list")
        assert ran.status == 0 and "selfspec search" in ran.out
        assert command("runs", "list", "--json").out == "[]\n"


class TestShow:
    def test_a_search_shows_its_best_set_and_its_map(self, outputs: Path) -> None:
        (run,) = facts(outputs, "list", "00000001")
        text = runs(outputs, "show", "00000001")
        attn, mlp = skip_map_text.rows(SkipSet.parse(run["best"]["skip"], N_LAYERS))
        for piece in (f"skip={run['best']['skip']}", f"attention {attn}", f"MLP       {mlp}", "study.journal", "mini"):
            assert piece in text, text

    def test_an_evaluation_shows_its_arms(self, outputs: Path) -> None:
        text = runs(outputs, "show", "00000002")
        for piece in ("searched", "longer", "near ties", "float64", "selfspec evaluate", "records.jsonl"):
            assert piece in text, text

    def test_a_row_that_cannot_be_read_is_told_and_the_others_count(self, outputs: Path) -> None:
        file = next((outputs / "search").rglob("*-00000003")) / "trials.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines()
        lines[5] = "oops"
        file.write_text("\n".join([*lines, '{"half']), encoding="utf-8")
        shown = facts(outputs, "show", "00000003")
        assert shown["problems"] == ["trials.jsonl, line 6: not JSON"] and shown["best"]["value"] > 0
        assert "left out: trials.jsonl, line 6" in runs(outputs, "show", "00000003")

    @pytest.mark.parametrize("name", ["failed00", "half", "foreign", "empty"])
    def test_a_folder_that_is_no_run_is_shown_with_the_reason(self, outputs: Path, name: str) -> None:
        shown = facts(outputs, "show", f"0Z-{name}" if name != "failed00" else name)
        assert shown["problem"] and shown["problem"] in runs(
            outputs, "show", f"0Z-{name}" if name != "failed00" else name
        )


class TestCompare:
    def test_sets_from_anywhere_stand_side_by_side(self, outputs: Path, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        save_skip_set(file, SkipSet.parse("a1-3 m9", N_LAYERS), model="toy")
        compared = facts(outputs, "compare", "00000001", "00000002", str(file), "a1,2 m15")
        assert [one["source"] for one in compared["sets"]] == ["search", "evaluation", "evaluation", "file", "written"]
        assert {one["layers"] for one in compared["sets"]} == {N_LAYERS}
        assert compared["sets"][4]["attention"] == "·██" + "·" * 13 and compared["sets"][4]["only_here"] == "m15"
        pairs = {tuple(pair["sets"]): pair for pair in compared["pairs"]}
        assert len(pairs) == 10
        assert pairs[4, 5] == {"sets": [4, 5], "both": 2, "jaccard": 2 / 5}
        assert pairs[1, 2]["jaccard"] == 1  # the evaluation is of what the search found

    def test_a_set_has_the_measurements_of_every_run_that_evaluated_it(self, outputs: Path) -> None:
        evaluate_run(outputs, seed=4)
        compared = facts(outputs, "compare", "00000001", "a1-3", "a9")
        searched, written, unmeasured = compared["sets"]
        assert [row["run"][-8:] for row in searched["measured"]] == ["00000004", "00000002"]
        row = written["measured"][0]
        assert (row["data"], row["arm"]) == ("mini", "longer")
        assert row["speedup"] == pytest.approx(0.91 / 0.71) and row["low"] <= row["speedup"] <= row["high"]
        assert row["acceptance"] == 6 / 8 and row["tokens_per_round"] == 3
        assert unmeasured["measured"] == []
        assert f"{0.91 / 0.71:.2f} [" in runs(outputs, "compare", "00000001", "a1-3")

    def test_drafts_that_skip_the_same_have_one_map(self, outputs: Path) -> None:
        text = runs(outputs, "compare", "00000001", "00000002")
        assert text.count("attention") == 2 and "1, 2 | 3" in text

    def test_sets_of_models_of_different_depths_share_nothing(self, outputs: Path) -> None:
        text = runs(outputs, "compare", "00000001", "llama-2-13b/swift")
        assert "different depths" in text

    def test_published_sets_need_no_run(self, empty_folder: Path) -> None:
        ran = command("runs", "compare", "llama-2-13b/swift", "llama-2-13b/draft-and-verify")
        assert ran.status == 0 and "24    0.55" in ran.out, ran

    def test_an_evaluation_that_cannot_be_read_is_left_out_and_told(self, outputs: Path) -> None:
        file = next((outputs / "evaluate").rglob("records.jsonl"))
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join([*lines[:3], "oops\n", *lines[3:]]), encoding="utf-8")
        compared = facts(outputs, "compare", "00000001", "a1-3")
        assert len(compared["left_out"]) == 1 and "line 4" in compared["left_out"][0]


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("", ["list|show|compare"]),
        ("lst", ["invalid choice: 'lst'"]),
        ("list a b", ["unrecognized arguments: b"]),
        ("list nothing-like-it", ["no run 'nothing-like-it'", "selfspec runs list"]),
        ("show nothing-like-it", ["no run 'nothing-like-it'", "selfspec runs list"]),
        ("show made-up", ["names 7 runs", "give one id"]),
        ("compare a1 a2", ["--layers N"]),
        ("compare a1 --layers 4", ["1 set", "2 to 8"]),
        ("compare a1 a9 --layers 4", ["layers 0..3"]),
        ("compare a1 none a2 a3 m1 m2 m3 m0 a0 --layers 4", ["9 sets", "2 to 8"]),
        ("compare nothing-like-it a1", ["unknown draft 'nothing-like-it'", "no run", "selfspec runs list"]),
        ("compare llama-2-13b/swif a1", ["did you mean 'llama-2-13b/swift'"]),
        ("compare 20261101T100100Z-0000001 a1", ["did you mean '20261101T100100Z-00000001'"]),
        ("list paths.outputs=nowhere", ["paths.outputs=nowhere is no folder"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(outputs: Path, words: str, pieces: list[str]) -> None:
    line = refused(f"paths.outputs={outputs}", *words.split())
    assert line.startswith("selfspec: ") and [piece for piece in pieces if piece not in line] == [], line


def test_a_report_takes_its_further_sets_by_the_same_names(outputs: Path) -> None:
    run = next((outputs / "evaluate").glob("*/*-00000002"))
    ran = command("report", f"runs={run}", "sets=['*-00000001',llama-2-13b/swift]", f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    assert "| quadratic · toy · 00000001 |" in ran.out and "| llama-2-13b/swift |" in ran.out


def test_nothing_is_folded_or_coloured_in_a_pipe(outputs: Path) -> None:
    text = runs(outputs, "list")
    assert len(text.splitlines()) == 8 and "\x1b" not in text


def test_overlap_counts_sublayers_of_either_kind() -> None:
    a, b = SkipSet.parse("a0,1 m2", 4), SkipSet.parse("a1 m2-3", 4)
    assert (n_shared(a, b), jaccard(a, b)) == (2, 2 / 4)
    assert {name: str(skip) for name, skip in only_in({"a": a, "b": b}).items()} == {"a": "a0", "b": "m3"}


def test_a_map_has_a_character_a_layer_below_its_number() -> None:
    skip = SkipSet.parse("a0,10 m11", 12)
    assert skip_map_text.rows(skip) == ("█·········█·", "···········█")
    assert skip_map_text.ruler(12).index("10") == 10


@pytest.mark.parametrize(
    ("verb", "summary", "pieces"),
    [
        ("profile", {"check": {"n": 3, "worst": 0.08, "median": 0.02}}, ["cost of 3 skip sets", "0.08"]),
        ("report", {"files": ["table.md"]}, ["selfspec report name=x"]),
        ("reproduce", {"steps": {}}, ["step first: outputs/search/a"]),
    ],
)
def test_a_run_without_rows_is_shown_too(verb: str, summary: dict[str, Any], pieces: list[str], tmp_path: Path) -> None:
    folder = tmp_path / verb / "x" / "20261128T000000Z-0000000a"
    folder.mkdir(parents=True)
    (folder / run_files.PROVENANCE).write_text(json.dumps({"run": {"model": "toy"}}))
    (folder / run_files.SUMMARY).write_text(json.dumps({"verb": verb, **summary}))
    (folder / run_files.OVERRIDES).write_text("name=x\n")
    (folder / "steps.jsonl").write_text('{"step": "first", "run": "outputs/search/a"}\n{"half')
    for word in (str(folder), folder.name, "0000000a"):
        text = runs(tmp_path, "show", word)
        assert [piece for piece in (*pieces, verb, "model: toy", "finished") if piece not in text] == []
