"""The paper's tables and figures: numbers that can be checked by hand, from made-up run folders."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.paper import latency, oracle, positions, predicted, results, skips, stops, sublayers, transfer
from experiments.paper.evidence import Evidence, Measured, read
from experiments.paper.section import Cell, Table
from experiments.paper.write import SECTIONS, write_paper
from experiments.results.find_runs import find_failures, find_runs
from experiments.verbs.report import make_report
from selfspec.skipping.skip_set import SkipSet
from tests.commands import command
from tests.test_report import failed, row, trial, write_run

Row = dict[str, Any]


def drafted(prompt: str, arm: str, rounds: list[tuple[int, int]], **more: Any) -> Row:
    """A record of 11 tokens whose rounds (drafted, accepted) cost 0.1 s a drafted token and 0.2 s a verification."""
    n_drafted, n_accepted = (sum(r[i] for r in rounds) for i in (0, 1))
    draft_s, verify_s = 0.1 * n_drafted, 0.2 * len(rounds)
    counts = {"n_rounds": len(rounds), "drafted": n_drafted, "accepted": n_accepted}
    seconds = {"draft_s": draft_s, "verify_s": verify_s, "other_s": 0.0}
    lists = {"round_drafted": [d for d, _ in rounds], "round_accepted": [a for _, a in rounds]}
    fixed = {"skip": "a1 m1", "stop": "fixed", "round_threshold": [None] * len(rounds)}
    return row(prompt, arm, 11, 1.0, 1 + draft_s + verify_s, **fixed | counts | seconds | lists | more)


def plain(prompt: str) -> Row:
    """Ten tokens in 2 s after the prefill."""
    spent = {"draft_s": 0.0, "verify_s": 2.0, "other_s": 0.0}
    return row(prompt, "plain", 11, 1.0, 3.0, n_rounds=10, round_drafted=[], round_accepted=[], **spent)


ROUNDS = [(4, 4), (4, 2), (2, 0), (1, 1)]  # 11 drafted, 7 accepted
RULES: dict[str, Row] = {
    "fixed": {"stop": "fixed"},
    "static": {"stop": "threshold", "round_threshold": [0.7] * 4},
    "moving": {"stop": "adaptive", "round_threshold": [0.6, 0.61, 0.62, 0.61]},
}
SUMMARY = {"unit": "x plain decoding", "winner": {"skip": "a1 m1"}}
FINALIST = {"schema": 1, "skip": "a1 m1", "fresh_value": 1.2, "speedup": 1.0, "low": 0.9, "high": 1.1}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    rows = [plain(p) for p in ("p1", "p2")]
    rows += [drafted(p, arm, ROUNDS, **more) for p in ("p1", "p2") for arm, more in RULES.items()]
    run = write_run(folder, "evaluate/toy/e", rows)
    (run / "overrides.txt").write_text("skip=a1 m1\nn=2\n")
    (run / "config.yaml").write_text("sampling: {do_sample: false, temperature: 1.0}\n")
    (run / "summary.json").write_text(json.dumps({"predicted": {"fixed": 1.5}}))
    trials = [trial(0, 1.0, "none", "start"), trial(1, 1.3, "a1 m1"), trial(2, None, "a0-3")]
    run = write_run(folder, "search/toy/s", trials, searcher="tpe", objective="expected_speedup")
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    (run / "finals.jsonl").write_text(json.dumps(FINALIST) + "\n")
    return folder


def evidence(outputs: Path, **more: Any) -> Evidence:
    return read(find_runs([str(outputs)], outputs), **more)


def arm(outputs: Path, name: str = "fixed") -> Measured:
    return next(a for a in evidence(outputs).arms if a.row.arm == name)


def cells(table: Table | None) -> list[dict[str, Any]]:
    assert table is not None
    return [dict(zip(table.columns, body, strict=True)) for body in table.body]


# Numbers


def test_the_oracle_pays_for_accepted_tokens_alone(outputs: Path) -> None:
    fixed = arm(outputs)
    assert fixed.row.speedup == pytest.approx(2.0 / (1.1 + 0.8))
    assert oracle.oracle(fixed.pairs).here == pytest.approx(2.0 / (0.7 + 0.8))


def test_the_oracle_is_the_rule_itself_where_nothing_was_rejected(tmp_path: Path) -> None:
    write_run(tmp_path, "evaluate/toy/e", [plain("p"), drafted("p", "sure", [(4, 4), (5, 5)])])
    sure = arm(tmp_path, "sure")
    assert oracle.oracle(sure.pairs).here == sure.row.speedup


def test_a_position_counts_only_the_tokens_that_were_judged(outputs: Path) -> None:
    fixed = arm(outputs)
    found = [positions.at(fixed, n).here for n in range(1, 5)]
    assert found == pytest.approx([3 / 4, 2 / 2, 1 / 2, 1 / 1])
    assert math.isnan(positions.at(fixed, 5).here)


def test_the_parts_of_a_token_add_up_to_all_of_it(outputs: Path) -> None:
    parts = {part: latency.per_token(arm(outputs), part).here for part in ("draft", "verify", "other", "all")}
    assert parts == pytest.approx({"draft": 110, "verify": 80, "other": 0, "all": 190})
    assert (arm(outputs).draft_cost, arm(outputs).verify_cost) == pytest.approx((0.5, 1.0))


def test_intervals_are_over_prompts_not_over_their_samples(tmp_path: Path) -> None:
    rows = [plain("p") | {"sample": n} for n in range(3)]
    rows += [drafted("p", "x", [(n + 2, n + 1)]) | {"sample": n} for n in range(3)]
    write_run(tmp_path, "evaluate/toy/e", rows)
    x = arm(tmp_path, "x")
    assert x.row.n == 3 and x.row.drafted == 9
    assert math.isnan(x.row.low) and math.isnan(x.acceptance.low)


def test_overlap_is_shared_over_joint(outputs: Path) -> None:
    a, b = SkipSet.parse("a1,2 m1", 4), SkipSet.parse("a2,3", 4)
    assert skips.overlaps(a, b) == [1 / 4, 1 / 3, 0.0]
    assert math.isnan(skips.overlaps(SkipSet.parse("a1", 4), SkipSet.parse("a2", 4))[2])


# Tables


def test_static_rules_stand_before_the_adaptive_one_with_their_setting(outputs: Path) -> None:
    fixed, static = stops.fixed_lengths(evidence(outputs)), stops.static_thresholds(evidence(outputs))
    assert [c["rule"] for c in cells(fixed.table)] == ["fixed 4", "adaptive"]
    assert [c["rule"] for c in cells(static.table)] == ["threshold 0.7", "adaptive"]


def test_arms_with_other_drafts_are_not_compared_by_their_rules(tmp_path: Path) -> None:
    rows = [plain("p"), drafted("p", "x", ROUNDS), drafted("p", "y", ROUNDS, stop="adaptive", skip="a2")]
    write_run(tmp_path, "evaluate/toy/e", rows)
    assert stops.fixed_lengths(evidence(tmp_path)).is_empty


@pytest.mark.parametrize("other", [{"draft": "linear"}, {"lookup": "front"}, {"lookup": "only"}])
def test_one_skip_set_in_two_kinds_of_draft_is_not_compared_by_rules(tmp_path: Path, other: Row) -> None:
    rows = [plain("p"), drafted("p", "x", ROUNDS), drafted("p", "y", ROUNDS, stop="adaptive")]
    alike = {"skip": "a1 m1", "draft": "skip", "lookup": None}
    write_run(tmp_path / "same", "evaluate/toy/e", rows, arms={"x": alike, "y": alike})
    write_run(tmp_path / "other", "evaluate/toy/e", rows, arms={"x": alike, "y": alike | other})
    assert not stops.fixed_lengths(evidence(tmp_path / "same")).is_empty
    assert stops.fixed_lengths(evidence(tmp_path / "other")).is_empty


def test_lookup_by_itself_has_no_rule(tmp_path: Path) -> None:
    about = {"x": {"skip": "none", "stop": "fixed", "draft": None, "lookup": "only"}}
    write_run(tmp_path, "evaluate/toy/e", [plain("p"), drafted("p", "x", ROUNDS, skip="none")], arms=about)
    (row,) = cells(oracle.section(evidence(tmp_path)).table)
    assert row["rule"] == "–"


def test_a_published_value_stands_beside_the_same_conditions_alone(outputs: Path) -> None:
    known = {"model": "toy", "data": "mini", "temperature": 0, "metric": "speedup", "value": 1.58, "source": "a log"}
    others = [{**known, "model": "big", "value": 1.99}, {**known, "over": "text", "value": 9.0}]
    section = results.section(evidence(outputs, published=[*others, known]))
    shown = {c["arm"]: c["speedup"] for c in cells(section.table)}
    assert shown["fixed"].published == 1.58 and str(shown["fixed"]).startswith("1.58 / 1.05")
    assert math.isnan(shown["plain"].published)
    assert any("big mini T=0 speedup 1.99 (a log)" in note for note in section.notes)


def test_quality_comes_from_the_judged_answers(outputs: Path) -> None:
    said = [{"arm": "plain", "value": 1.0}, {"arm": "fixed", "value": 0.0}]
    lines = [{"schema": 1, "prompt_id": "p1", "sample": 0, "metric": "exact_match", **s} for s in said]
    (outputs / "evaluate/toy/e/quality.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = {c["arm"]: c["exact_match"].here for c in cells(results.section(evidence(outputs)).table)}
    assert (shown["plain"], shown["fixed"]) == (1.0, 0.0) and math.isnan(shown["moving"])


def test_a_draft_without_its_target_has_no_speedup(tmp_path: Path) -> None:
    alone = row("p", "alone", 11, 1.0, 2.0, verdict="not compared")
    rows = [plain("p"), drafted("p", "x", ROUNDS), alone]
    write_run(tmp_path, "evaluate/toy/e", rows, arms={"alone": {"skip": "a1", "draft_only": True}})
    assert math.isnan(arm(tmp_path, "alone").speedup.here)


def test_transfer_has_a_column_for_each_data_set_of_a_searched_set(outputs: Path) -> None:
    write_run(outputs, "evaluate/toy/f", [plain("p"), drafted("p", "fixed", [(2, 2)])], data="other")
    write_run(outputs, "evaluate/toy/g", [plain("p"), drafted("p", "strange", ROUNDS, skip="a3")], data="third")
    (found,) = [
        c for c in cells(transfer.section(evidence(outputs)).table) if c["arm"] == "fixed" and c["rule"] == "fixed 2"
    ]
    assert found["searched on"] == "mini" and found["on other"].here == pytest.approx(2.0 / 0.4)
    assert math.isnan(found["on mini"].here) and "on third" not in found


def test_promises_stand_beside_what_was_measured(outputs: Path) -> None:
    rows = {str(c["what"]): c for c in cells(predicted.section(evidence(outputs)).table)}
    assert rows["fixed"]["predicted"].here == 1.5
    assert rows["fixed"]["error"].here == pytest.approx(1.5 * 1.9 / 2.0 - 1)
    assert rows["finalist `a1 m1`"]["error"].here == pytest.approx(0.2)


def test_csv_has_columns_for_intervals_and_published_values_if_any() -> None:
    table = Table(["arm", "x", "y"], [["a", Cell(1 / 3, 0.1, 0.5), Cell(2.0)], ["b", Cell(published=4.0), Cell()]])
    one, two = csv.DictReader(io.StringIO(table.csv()))
    assert list(one) == ["arm", "x", "x_low", "x_high", "x_published", "y"]
    assert float(one["x"]) == 1 / 3 and two["x_published"] == "4.0" and two["y"] == ""


def test_latex_escapes_what_would_not_compile() -> None:
    latex = Table(["a_b", "95 %"], [["x & y", Cell()]]).latex()
    assert r"a\_b" in latex and r"95 \%" in latex and r"x \& y" in latex and "--" in latex


# Pictures


def test_the_best_of_each_number_of_sublayers_is_joined(outputs: Path) -> None:
    figure = sublayers.tried(evidence(outputs).searches[0])
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert np.asarray(lines["best of that number"].get_xydata()).tolist() == [[0, 1.0], [2, 1.3]]


# The report


@pytest.mark.usefixtures("rendered")
def test_a_report_holds_every_section_of_which_the_runs_say_something(outputs: Path, tmp_path: Path) -> None:
    parts, paths = write_paper(evidence(outputs), tmp_path)
    text = "\n\n".join(parts)
    assert not (missing := [s.title for make in SECTIONS if (s := make(evidence(outputs))).is_empty]) or missing == [
        "Overlap of skip sets"
    ]
    names = {path.name for path in paths}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names
    assert {
        "results.csv",
        "results.tex",
        "fixed_lengths.png",
        "stop_rules.svg",
        "threshold-1.png",
        "search.png",
    } < names
    assert all(
        f"{part}.png" in names for part in [line[2 : line.index("]")] for line in text.splitlines() if line[:2] == "!["]
    )


def test_what_is_missing_is_told_with_the_command_that_makes_it(outputs: Path, tmp_path: Path) -> None:
    report = make_report(find_runs("search", outputs), tmp_path / "report", preset="paper")
    assert "## Quality, acceptance" not in report.markdown
    assert "- Quality, acceptance and speedup (Table 1): `selfspec evaluate skip=SET data=NAME`" in report.markdown


def test_the_command_of_every_run_is_told(outputs: Path, tmp_path: Path) -> None:
    markdown = make_report(find_runs("e", outputs), tmp_path / "report", preset="paper").markdown
    assert "- e: `selfspec evaluate 'skip=a1 m1' n=2`" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| toy | mini | 0 |")]
    assert rows and all(line.endswith("| e |") for line in rows)


def test_runs_of_other_versions_and_machines_are_not_mixed_silently(outputs: Path, tmp_path: Path) -> None:
    other = write_run(outputs, "evaluate/toy/other", [plain("p"), drafted("p", "x", ROUNDS)])
    known = json.loads((other / "provenance.json").read_text())
    known |= {"packages": {"torch": "2.9.0", "transformers": "5.0.0"}, "cpu": "another", "code": {"commit": "0" * 40}}
    (other / "provenance.json").write_text(json.dumps(known))
    said = (
        "The runs differ in torch, transformers, selfspec, machine: compare speeds only between rows where these agree."
    )
    assert said in make_report(find_runs("evaluate", outputs), tmp_path / "report").markdown
    assert said in results.section(evidence(outputs)).notes


def test_runs_at_another_pace_are_told_apart(outputs: Path, tmp_path: Path) -> None:
    """Plain decoding of the same prompts, the same tokens: 4 % apart is noise, more is the machine's state."""
    (rows,) = [r.rows().whole() for r in find_runs("e", outputs)]
    for name, slower, is_told in (("near", 1.04, False), ("far", 1.2, True)):
        paced = [{**r, "total_s": r["prefill_s"] + (r["total_s"] - r["prefill_s"]) * slower} for r in rows]
        write_run(outputs, f"evaluate/toy/{name}", paced)
        markdown = make_report(find_runs(f"e,{name}", outputs), tmp_path / name).markdown
        assert ("Plain decoding of toy on mini ran at " in markdown) == is_told, markdown


def test_a_run_that_began_on_a_busy_machine_is_marked(outputs: Path, tmp_path: Path) -> None:
    busy = write_run(outputs, "evaluate/toy/busy", [plain("p"), drafted("p", "x", ROUNDS)])
    known = json.loads((busy / "provenance.json").read_text())
    (busy / "provenance.json").write_text(json.dumps(known | {"load_before": 7.0, "threads": 2}))
    markdown = make_report(find_runs("evaluate", outputs), tmp_path / "report").markdown
    assert "busy (busy machine)" in markdown and "e (busy machine)" not in markdown


def test_failed_jobs_are_listed(outputs: Path, tmp_path: Path) -> None:
    folder = outputs / "evaluate/toy/broken"
    folder.mkdir()
    (folder / "failure.json").write_text(json.dumps({"error": "no such data", "overrides": ["data=x", "n=2"]}))
    failures = find_failures("evaluate", outputs)
    markdown = make_report(find_runs("evaluate", outputs), tmp_path / "report", failures=failures).markdown
    assert "- evaluate/toy/broken: no such data (`data=x n=2`)" in markdown
    assert find_failures("search", outputs) == []


def test_a_failed_prompt_is_counted_and_in_no_other_number(tmp_path: Path) -> None:
    write_run(tmp_path, "evaluate/toy/e", [plain("p"), plain("q"), drafted("p", "x", ROUNDS), failed("q", "x")])
    (found,) = [c for c in cells(results.section(evidence(tmp_path)).table) if c["arm"] == "x"]
    assert (found["prompts"], found["failed"]) == (1, 1)


@pytest.mark.parametrize(("form", "shown"), [("csv", "results.csv\n\nmodel,data"), ("latex", "\\begin{tabular}")])
def test_the_verb_prints_the_format_that_was_asked_for(outputs: Path, form: str, shown: str) -> None:
    ran = command("report", "preset=paper", f"format={form}", "runs=e", f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    assert shown in ran.out
