"""selfspec serve-sim: rows for each arm at each rate, from the model or from records; it goes on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.results.find_runs import find_runs
from experiments.serving import study
from experiments.verbs.report import make_report
from selfspec.control import StepCosts
from selfspec.records.run_files import read_rows
from tests.commands import Ran, command
from tests.made_up import evaluate_run

pytestmark = pytest.mark.usefixtures("empty_folder")

QUICK = "costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=1", "costs.rows=[1,2]", "max_new_tokens=6"
SMALL = *QUICK, "skip=a1 m2", "n=4", "n_prompts=2", "batch=2", "stop.max_draft=3", "memory.max_rows=3"
ARMS = "arms={off: {fixed: {max_draft: 0}}, two: {fixed: {max_draft: 2}}, oracle: oracle}"
H100 = {"steps": StepCosts((0.01, 0.001, 0, 0.001, 0.0), (0.004, 0.0001), of={"device": "cuda"}).to_dict()}


@pytest.fixture(scope="module")
def small(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings with one cache for all, so that costs are measured once."""
    return [*toy, *SMALL, f"paths.cache={tmp_path_factory.mktemp('cache')}"]


def rows_of(ran: Ran) -> list[dict[str, Any]]:
    assert ran.status == 0, ran.err
    return read_rows(ran.run / "loads.jsonl")


@pytest.fixture(scope="module")
def both(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of model and replay; not to be changed."""
    place = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        ran = command("serve-sim", *small, ARMS, "loads=[0.5,2]", "engine=both")
        assert ran.status == 0, ran.err
        assert "outputs beside plain decoding's: 24 identical" in ran.out
        assert "tokens a second of the replay over those of real decoding" in ran.out
        return place / ran.run


def test_each_arm_has_a_row_for_each_load_and_engine(both: Path) -> None:
    rows = read_rows(both / "loads.jsonl")
    assert len({(row["engine"], row["load"], row["arm"]) for row in rows}) == len(rows) == 12
    assert {row["arm"] for row in rows} == {"off", "two", "oracle"}
    assert all(row["n_requests"] == 4 and 0 < row["first_token_s"] <= row["latency_s"] for row in rows)
    assert {row["mean_draft"] for row in rows if row["arm"] == "off"} == {0}
    assert all(row["mean_draft"] > 0 for row in rows if row["arm"] == "two")
    pictures = {path.name for path in both.glob("*.png")}
    assert pictures == {f"{what}_{engine}.png" for what in ("latency", "switching") for engine in ("model", "replay")}
    assert (both / "loads.md").read_text().count("\n") == 14


def test_records_are_replayed_under_costs_of_another_device(both: Path) -> None:
    Path("h100.json").write_text(json.dumps(H100))
    asked = f"records={both}", "engine=replay", ARMS, "model.path=nowhere", "loads=[0.5,2]", "n=12"
    rows = rows_of(command("serve-sim", "model=local", *asked, "costs.path=h100.json"))
    assert len(rows) == 6 and {row["n_requests"] for row in rows} == {12}
    again = rows_of(command("serve-sim", "model=local", *asked, "costs.path=h100.json", "name=again"))
    assert again == rows  # nothing of it is by chance
    faster = {row["arm"]: row["latency_s"] for row in rows if row["load"] == rows[0]["load"]}
    assert faster["oracle"] <= faster["off"]
    own = rows_of(command("serve-sim", "model=local", *asked))
    assert own[0]["latency_s"] != rows[0]["latency_s"]


def test_a_killed_run_goes_on_with_what_is_missing(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = *small, ARMS, "loads=[1]", "engine=both"
    run, n_left = study.Study.run, 3

    class Killed(BaseException):
        """As sudden as a kill."""

    def dying(self: study.Study, cell: study.Cell) -> study.Row:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise Killed
        return run(self, cell)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(study.Study, "run", dying)
        command("serve-sim", *asked)
    (folder,) = Path("outputs/serve-sim").glob("*/*")
    before = (folder / "loads.jsonl").read_bytes()
    assert before.count(b"\n") == 2 and not (folder / "summary.json").exists()
    with (folder / "loads.jsonl").open("ab") as file:
        file.write(b'{"engine": "mo')  # cut off
    monkeypatch.setattr("experiments.builders.build_serving.record", lambda *a, **k: pytest.fail("recorded twice"))
    ran = command("serve-sim", f"resume={folder}")
    rows = rows_of(ran)
    assert (
        "resumed: 2 of 6 simulations are there" in ran.err
        and (folder / "loads.jsonl").read_bytes()[: len(before)] == before
    )
    assert len({(row["engine"], row["load"], row["arm"]) for row in rows}) == len(rows) == 6
    assert json.loads((folder / "summary.json").read_text())["n_simulations"] == 6


def test_a_trace_says_what_is_asked_and_when(small: list[str]) -> None:
    lines = [{"at_s": 0, "prompt": "one two"}, {"at_s": 0.01, "prompt": "a b c"}, {"at_s": 30, "prompt": "why?"}]
    Path("trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arms = "arms={off: {fixed: {max_draft: 0}}, free: none}"
    rows = rows_of(command("serve-sim", *small, arms, "trace=trace.jsonl", "engine=model"))
    assert [(row["load"], row["n_requests"]) for row in rows] == [("trace", 3)] * 2
    assert all(row["latency_s"] < 5 for row in rows)  # 30 s are not waited for


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["trace=back.jsonl"], "back.jsonl, line 2: at_s=1.0 is before 5.0 of the line above; sort the lines by time"),
        (["memory.max_tokens=20"], "memory.max_tokens=20: it can never be served; give more memory"),
        (["memory.max_rows=0"], "memory.max_rows=0 was asked for, but it must be a whole number from 1 on"),
        (["costs.path=h100.json"], "were measured with device=cuda, and here it is cpu; measure them here"),
        (["records=nowhere", "engine=replay"], "records=nowhere holds no recorded requests"),
        (["records=x"], "records=x are replayed, and engine=model decodes; take engine=replay"),
        (["clock=real", "engine=replay"], "clock=real has no effect on engine=replay"),
        (["sampling=sample"], "serve-sim decodes greedily"),
        (["stop=adaptive"], "stop=adaptive learns from rounds, and recorded drafts know none"),
        (["arms={a: gootput}"], "unknown controller 'gootput'; did you mean 'goodput'?"),
        (["arms={a: {fixed: {lenght: 2}}}"], "controller.fixed.lenght"),
        (["rates=[0]"], "rate=0.0; requests arrive at a rate above 0 a second"),
        (["trace=back.jsonl", "rates=[1]"], "says when requests arrive, as do rates=[1.0]"),
    ],
)
def test_what_is_impossible_is_told_in_one_line(words: list[str], why: str, small: list[str]) -> None:
    Path("back.jsonl").write_text('{"at_s": 5, "prompt": "a"}\n{"at_s": 1, "prompt": "b"}\n')
    Path("h100.json").write_text(json.dumps(H100))
    ran = command("serve-sim", *small, *words)
    assert ran.status == 2 and why in ran.error_lines[-1], ran.err
    assert not list(Path("outputs/serve-sim").glob("*/*/summary.json"))
    shutil.rmtree("outputs", ignore_errors=True)


def test_a_report_shows_speeds_by_batch(tmp_path: Path) -> None:
    for seed, batch in enumerate((1, 8)):
        evaluate_run(tmp_path, skip="a1", seed=seed, arms=("fixed 2", "goodput"), batch=batch)
    markdown = make_report(find_runs("evaluate", tmp_path), tmp_path / "report").markdown
    section = markdown.partition("## Batches")[2]
    assert "| model | data | batch | plain tokens/s | fixed 2 | goodput | goodput over the best |" in section
    assert [line.split(" | ")[2] for line in section.splitlines() if line.startswith("| toy")] == ["1", "8"]
    assert "| 1.000 |" in section  # both arms have the same made-up seconds
    shutil.rmtree(tmp_path / "evaluate" / "made-up" / "20261101T100100Z-00000001")
    assert "## Batches" not in make_report(find_runs("evaluate", tmp_path), tmp_path / "report").markdown
