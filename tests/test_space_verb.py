"""A search over more than skip sets as it is typed, and what its folder is evaluated and decoded with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.job import COSTS
from search.point import Point
from search.replay.objectives import ReplayObjective
from selfspec.records import run_files
from selfspec.records.run_files import read_rows
from tests.commands import N_LAYERS, Ran, command

SMALL = [
    *("objective.n_prompts=1", "objective.max_new_tokens=8", "finals.n_prompts=1", "calibration.max_new_tokens=8"),
    *("costs.contexts=[8,24]", "costs.max_tokens=6", "costs.repeats=1", "stop=threshold", "stop.max_draft=3"),
    "stop.threshold=0.5",
]
SPACE = (
    "space={head: [40, full], precision: [same, int8], lookup: [null, front], memory: {values: [0, 20], when: "
    "{lookup: front}}, stop.max_draft: {low: 1, high: 4}, stop.threshold: {low: 0.3, high: 0.9}, draft: [skip, mean]}"
)
TIMES = ("seconds", "elapsed_s")

OWN = """
from selfspec.drafters.chain import ModelDraft
from selfspec.errors import DrafterError
from selfspec.engine.protocols import BaseDrafter


class Mine(BaseDrafter):
    name = "mine"

    def __init__(self, forward, spec, *, depth=1, faulty=False):
        self.inner = ModelDraft(forward, needs_confidence=spec.stop.needs_confidence, name=self.name)
        self.fails = faulty and len(spec.skip) > 0
        self.depth = depth

    def propose(self, rows, *, cache):
        if self.fails:
            raise DrafterError("mine proposed nothing that can be verified")
        return self.inner.propose(rows, cache=cache)

    def observe(self, row, draft, verdict, target):
        self.inner.observe(row, draft, verdict, target)
"""


def searched(toy: list[str], *words: str) -> Ran:
    ran = command("search", "draft=skip", *toy, *SMALL, *words)
    assert ran.status == 0, ran.err
    return ran


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(run / run_files.TRIALS)]


class TestSpace:
    def test_every_dimension_is_searched_raced_saved_and_decoded_with(self, empty_folder: Path, toy: list[str]) -> None:
        ran = searched(toy, "searcher=tpe", "searcher.n_trials=20", "starts=[nothing,uniform]", SPACE)
        rows = rows_of(ran.run)
        points = [Point.from_row(row, N_LAYERS) for row in rows]
        start = {"head": 40, "precision": "same", "lookup": None, "stop.max_draft": 3, "stop.threshold": 0.5}
        start |= {"draft": "skip"}  # the first value of a list, and of a range the run's own
        assert [p.settings for p in points[:2]] == [start, start]
        assert {p.settings["precision"] for p in points} == {"same", "int8"}
        assert {p.settings["head"] for p in points} == {40, "full"}
        assert all(("memory" in p.settings) == (p.settings["lookup"] == "front") for p in points)
        summary = json.loads((ran.run / run_files.SUMMARY).read_text())
        winner = summary["winner"]
        plan, skip_set = (yaml.safe_load((ran.run / f"{name}.yaml").read_text()) for name in ("plan", "skip_set"))
        settings = winner["settings"]
        assert plan["settings"] == skip_set["settings"] == settings
        assert plan["precision"] == settings["precision"] and plan["lookup"] == settings["lookup"]
        assert (plan["head_size"] or "full") == settings["head"]
        assert bool(plan["memory_size"]) == bool(settings.get("memory"))
        assert skip_set["stop"]["rule"] == {
            "name": "threshold",
            "max_draft": settings["stop.max_draft"],
            "threshold": settings["stop.threshold"],
        }
        tables = json.loads((ran.run / COSTS).read_text())
        assert set(tables["others"]) <= {"head full, same", "head full, int8", "head 40, int8"} and tables["others"]
        words = f"skip={ran.run}", "stop=searched", "lookup=searched", "max_new_tokens=8"
        evaluated = command("evaluate", *toy, *words, "n=1")
        assert evaluated.status == 0, evaluated.err
        verdicts = {r["verdict"] for r in read_rows(evaluated.run / run_files.RECORDS) if r["arm"] != "plain"}
        assert verdicts == {"identical"}
        decoded = command("decode", *toy, "prompt=one two", *words)
        assert decoded.status == 0, decoded.err

    def test_resume_equals_uninterrupted(
        self, empty_folder: Path, toy: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["searcher=tpe", "searcher.n_trials=13", "finals.top=0", "starts=[nothing]", SPACE]
        words += ["objective=acceptance"]  # which does not depend on the clock
        whole = searched(toy, *words)
        score, calls = ReplayObjective.__call__, 0

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 11:
                raise KeyboardInterrupt
            return score(*args, **kwargs)

        monkeypatch.setattr(ReplayObjective, "__call__", interrupted)
        cut = command("search", *toy, *SMALL, "draft=skip", *words)
        assert cut.status == 130, cut.err
        assert len(rows_of(cut.run)) < 13
        resumed = command("search", f"resume={cut.run}")
        assert resumed.status == 0, resumed.err
        same = [[{k: v for k, v in r.items() if k != "draft_cost"} for r in rows_of(ran.run)] for ran in (whole, cut)]
        assert same[0] == same[1]

    @pytest.mark.parametrize("searcher", ["quadratic", "uniform", "cmaes", "gp"])
    def test_other_searchers_run_in_it(self, searcher: str, empty_folder: Path, toy: list[str]) -> None:
        space = "space={precision: [int8, same], lookup: [front, null]}"
        ran = searched(toy, f"searcher={searcher}", "searcher.n_trials=5", "finals.top=0", "starts=[nothing]", space)
        settings = [row["settings"] for row in rows_of(ran.run)]
        if searcher in ("quadratic", "uniform"):
            assert all(s == {"precision": "int8", "lookup": "front"} for s in settings)
        assert settings[0] == {"precision": "int8", "lookup": "front"}

    def test_a_cost_cap_is_on_the_draft_of_the_point(self, empty_folder: Path, toy: list[str]) -> None:
        words = "constraints.max_memory=0.7", "searcher=random", "searcher.n_trials=12", "finals.top=0"
        ran = searched(toy, *words, "starts=[nothing]", "space={precision: [int4, same]}")
        sizes: dict[str, list[int]] = {"int4": [], "same": []}
        for row in rows_of(ran.run):
            sizes[row["settings"]["precision"]].append(len(row["attn"]) + len(row["mlp"]))
        assert min(sizes["int4"]) == 0 < min(sizes["same"])

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ("space={hed: [1]}", "did you mean 'head'"),
            ("space={precision: [int3]}", "int3"),
            ("space={precision: 3}", "write [a, b]"),
            ("space={stop.max_draft: {low: 0, high: 3}}", "max_draft=0"),
            ("space={stop.start: [1]}", "stop.start is not a setting of Threshold"),
            ("space={memory: [0, 20]}", "search lookup, too"),
            ("space={memory: {values: [0], when: {lookup: front}}}", "unknown dimension"),
            ("space={lookup: [null, front]} objective=matchness", "does not see space.lookup"),
            ("space={stop.max_draft: [1, 2]} objective.tune_stop=true", "tune_stop"),
            ("space={head: {low: 1, high: 9}}", "list of values"),
            ("space={head: [0]}", "head=0"),
            ("space={tree.width: [1, 2]}", "no tree"),
        ],
    )
    def test_what_cannot_be_searched_is_refused_in_one_line(
        self, words: str, told: str, empty_folder: Path, toy: list[str]
    ) -> None:
        head, _, rest = words.partition("} ")
        asked = [head + "}", *rest.split()] if rest else [words]
        ran = command("search", "draft=skip", *toy, *SMALL, "searcher.n_trials=3", *asked)
        assert ran.status == 2, ran.out + ran.err
        (line,) = [li for li in ran.error_lines if not li.startswith(("measuring", "costs:", "no importance", "data="))]
        assert told in line
        assert not list(empty_folder.glob("outputs/search/*/*"))


class TestOwnDrafter:
    @pytest.fixture
    def mine(self, empty_folder: Path) -> list[str]:
        (empty_folder / "own" / "drafter").mkdir(parents=True)
        (empty_folder / "own" / "my_drafter.py").write_text(OWN)
        (empty_folder / "own" / "drafter" / "mine.yaml").write_text("_target_: my_drafter.Mine\ndepth: 2\n")
        return ["--config-dir=own", "drafter=mine"]

    def test_a_users_drafter_is_searched_evaluated_and_decoded_with(self, mine: list[str], toy: list[str]) -> None:
        ran = searched(
            toy, *mine, "objective=tokens_per_second", "searcher=tpe", "searcher.n_trials=6", "starts=[nothing]",
            "space={drafter.depth: [1, 2, 3]}",
        )  # fmt: skip
        saved = yaml.safe_load((ran.run / "skip_set.yaml").read_text())
        assert saved["drafter"] == {"_target_": "my_drafter.Mine", "depth": saved["settings"]["drafter.depth"]}
        arms = "arms={builtin: {skip: a1, drafter: layer_skip}, named: {skip: a1, drafter: mine}, copy: {lookup: only}}"
        evaluated = command(
            "evaluate", *toy, *mine, arms, "max_new_tokens=8", "stop=threshold", "skip=a1", "n=1", "controls=false"
        )
        assert evaluated.status == 0, evaluated.err
        abouts = json.loads((evaluated.run / run_files.PROVENANCE).read_text())["run"]["arms"]
        assert {name: about.get("drafter", {}).get("_target_") for name, about in abouts.items()} == {
            "plain": None,
            "generate": None,
            "Mine, threshold": "my_drafter.Mine",
            "builtin": None,
            "named": "my_drafter.Mine",
            "copy": None,
        }
        records_ = [
            r
            for r in read_rows(evaluated.run / run_files.RECORDS)
            if r["arm"] in ("Mine, threshold", "builtin", "named")
        ]
        assert {r["verdict"] for r in records_} == {"identical"}
        assert len({tuple(r["round_drafted"]) for r in records_}) == 1, "it drafts as the built-in one"
        words = "stop=searched", "max_new_tokens=8", "n=1", "generate=false"
        of_run = command("evaluate", "--config-dir=own", *toy, f"skip={ran.run}", *words)
        assert of_run.status == 0, of_run.err
        abouts = json.loads((of_run.run / run_files.PROVENANCE).read_text())["run"]["arms"]
        assert [about.get("drafter") for about in abouts.values()] == [None, saved["drafter"]]
        decoded = command("decode", *toy, *mine, "prompt=one two", "max_new_tokens=8")
        assert decoded.status == 0, decoded.err

    def test_its_fault_fails_the_trial_with_the_reason_and_the_run_goes_on(
        self, mine: list[str], toy: list[str]
    ) -> None:
        words = "objective=tokens_per_second", "searcher.n_trials=4", "starts=[nothing,uniform]", "finals.top=0"
        ran = searched(toy, *mine, "+drafter.faulty=true", *words)
        rows = rows_of(ran.run)
        assert [r["state"] for r in rows] == ["complete", "failed", "failed", "failed"]
        assert {r["reason"] for r in rows[1:]} == {"mine proposed nothing that can be verified"}

    def test_what_cannot_replay_it_refuses_it_in_one_line(self, mine: list[str], toy: list[str]) -> None:
        ran = command("search", *toy, *SMALL, *mine)
        assert ran.status == 2 and ran.error_lines == [
            "selfspec: drafter=my_drafter.Mine cannot be replayed, as objective=expected_speedup does; use "
            "objective=tokens_per_second"
        ]
        missing = command("decode", *toy, "+drafter._target_=my_drafter.Yours", "prompt=one two", "max_new_tokens=8")
        assert missing.status == 2 and "my_drafter.Yours cannot be imported" in missing.err
