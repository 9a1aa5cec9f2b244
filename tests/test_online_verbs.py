"""Drafts that change while text is decoded, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.results.online_files import ONLINE, STEPS, read_learnt, read_steps
from selfspec.records import run_files
from tests.commands import Ran, command

SWIFT = [
    *("online=swift", "online.searcher.window=2", "online.searcher.skip_ratio=0.5", "online.searcher.bayes_interval=2"),
    "online.searcher.max_score=1",
]
PORTFOLIO = ["online=portfolio", "online.searcher.arms={copy: {lookup: only}, half: {skip: a1 m1, stop: fixed}}"]
SMALL = ["max_new_tokens=8", "n=3", "generate=false", "controls=false"]


def evaluated(toy: list[str], *words: str) -> Ran:
    ran = command("evaluate", *toy, *SMALL, *words)
    assert ran.status == 0, ran.err
    return ran


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return run_files.read_rows(folder / run_files.RECORDS)


def test_a_stream_is_lossless_and_shown_as_a_search(toy: list[str], empty_folder: Path) -> None:
    ran = evaluated(toy, *SWIFT)
    rows = [row for row in rows_of(ran.run) if row["arm"] == "online swift"]
    assert {row["verdict"] for row in rows} == {"identical"} and any("round_version" in row for row in rows)
    learnt = read_learnt(ran.run / ONLINE)["online swift"]
    steps = read_steps(ran.run / STEPS)["online swift"]
    n_trials = sum(len(step["trials"]) for step in steps)
    assert n_trials and steps[-1]["n_rounds"] == sum(row["n_rounds"] for row in rows)
    shown = command("runs", "show", Path(learnt["study"]).name)
    assert shown.status == 0 and "Best set" in shown.out, shown.err
    assert len(run_files.read_rows(ran.run / learnt["study"] / run_files.TRIALS)) == n_trials


def test_a_stream_begins_with_what_another_one_has_learnt(toy: list[str], empty_folder: Path) -> None:
    first = evaluated(toy, *PORTFOLIO)
    learnt = read_learnt(first.run / ONLINE)["online portfolio"]["state"]
    assert sum(arm["rounds"] for arm in learnt["arms"].values()) > 0
    ran = command("decode", *toy, *PORTFOLIO, f"online.start={first.run}", "prompt=ab ab ab", "max_new_tokens=6")
    assert ran.status == 0 and "online=portfolio: " in ran.out and "output identical" in ran.out, ran.err
    other = command("decode", *toy, *SWIFT, f"online.start={first.run}", "prompt=ab", "max_new_tokens=6")
    assert other.status == 2 and "online=portfolio learnt, and nothing of online=swift" in other.err


def test_a_killed_stream_goes_on_with_what_it_had_learnt(
    toy: list[str], empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.evaluation import online_arm

    whole = online_arm.OnlineFiles.told

    def cut(self: Any, row: dict[str, Any]) -> None:
        whole(self, row)
        if len(rows_of(self._file.parent)) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(online_arm.OnlineFiles, "told", cut)
        stopped = command("evaluate", *toy, *SMALL, *SWIFT)
    assert stopped.status == 130
    (folder,) = Path("outputs/evaluate").glob("*/*")
    before = read_learnt(folder / ONLINE)["online swift"]
    resumed = command("evaluate", f"resume={folder}")
    assert resumed.status == 0, resumed.err
    after = read_learnt(folder / ONLINE)["online swift"]
    assert before["study"] == after["study"] and after["state"]["n_iter"] > before["state"]["n_iter"] > 0
    rows = [row for row in rows_of(folder) if row["arm"] == "online swift"]
    assert after["state"]["n_rounds"] == sum(row["n_rounds"] for row in rows)
    assert json.loads((folder / after["study"] / run_files.SUMMARY).read_text())["best"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["online=portfolio", "online.searcher.arms={x: {head: 8}}"], "online.searcher.arms.x has head"),
        (["online=swift", "online.searcher.skip_ratio=0.01"], "leaves nothing to search"),
        (["online=swift", "online.start=nowhere"], "no run or file with online.yaml"),
        (["online=swift", "online.searcher.window=0"], "the first three are 1 at least"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: list[str], told: str, toy: list[str], empty_folder: Path) -> None:
    ran = command("decode", *toy, "prompt=ab", "max_new_tokens=6", *words)
    assert ran.status == 2 and told in ran.err and len(ran.error_lines) == 1, ran.err
