"""Reports: numbers that can be checked by hand, sentences that follow from them, and pictures that open."""

import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.results import figures
from experiments.results.find_runs import find_runs
from experiments.results.tables import ArmRow, arm_csv, arm_rows, arm_table
from experiments.results.verdicts import verdict_sentence, verdict_sentences
from experiments.verbs.report import make_report
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

Row = dict[str, Any]

FACTS = {"model": "toy", "data": "mini", "dtype": "bfloat16", "device": "cpu", "attention": "sdpa", "threads": 2}
EVALUATE, SEARCH = "20250102T030405Z-aaaa1111", "20250102T040506Z-bbbb2222"


def row(prompt: str, arm: str, tokens: int, prefill_s: float | None, total_s: float, **more: Any) -> Row:
    """A record whose fields that tables do not read are left out."""
    counts = {"n_tokens": tokens, "n_rounds": 0, "drafted": 0, "accepted": 0, "prefill_s": prefill_s}
    verdict = "baseline" if arm == "plain" else "identical"
    fixed = {"prompt_id": prompt, "arm": arm, "skip": None, "stop": None, "n_layers": 4, "error": None}
    return {**fixed, **counts, "total_s": total_s, "verdict": verdict, **more}


def failed(prompt: str, arm: str) -> Row:
    return {"prompt_id": prompt, "category": "", "arm": arm, "error": "out of memory"}


def trial(number: int, value: float | None, skip: str, origin: str = "searcher") -> Row:
    state = "failed" if value is None else "complete"
    return {"number": number, "origin": origin, "skip": skip, "value": value, "state": state}


def write_run(outputs: Path, where: str, rows: Iterable[Row], *, finished: bool = True, **facts: Any) -> Path:
    """A run folder `verb/name/id`, as the verbs leave it."""
    folder = outputs / where
    folder.mkdir(parents=True)
    provenance = {
        "started": "2025-01-02T03:04:05Z",
        "packages": {"torch": "2.8.0", "transformers": "5.20.0"},
        "load_before": 0.25,
        "run": {**FACTS, "n_layers": 4, **facts},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    name = "trials.jsonl" if where.startswith("search") else "records.jsonl"
    (folder / name).write_text("".join(json.dumps({"schema": 1, **r}) + "\n" for r in rows))
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


DRAFTED: list[Row] = [
    {"n_rounds": 4, "drafted": 10, "accepted": 6},
    {"n_rounds": 10, "drafted": 30, "accepted": 20, "verdict": "near_tie"},
]
GOLDEN = [
    row("p1", "plain", 11, 1.0, 6.0, n_rounds=10),  # 10 tokens in 5 s
    row("p1", "odd", 11, 1.0, 3.5, skip="a1 m1", **DRAFTED[0]),  # 10 in 2.5 s: twice as fast
    row("p2", "odd", 31, 5.0, 12.5, skip="a1 m1", **DRAFTED[1]),  # 30 in 7.5 s: two thirds as fast
    row("p2", "plain", 31, 2.0, 7.0, n_rounds=30),  # 30 tokens in 5 s
    row("p3", "plain", 1, 1.0, 1.0),  # nothing to time but the prefill
    row("p3", "odd", 1, 1.0, 1.0, skip="a1 m1"),
    row("p4", "plain", 11, 1.0, 100.0, n_rounds=10),
    failed("p4", "odd"),
    failed("p5", "plain"),
    row("p5", "odd", 11, 1.0, 100.0, skip="a1 m1"),
]
TRIALS = [
    trial(0, 20.0, "none", "start"),
    trial(1, 15.0, "a1 m1", "start"),
    trial(2, None, "a0-3"),
    trial(3, 22.5, "a2"),
    trial(4, 21.0, "m2"),
]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    write_run(folder, f"evaluate/toy/{EVALUATE}", GOLDEN)
    write_run(folder, f"search/toy/{SEARCH}", TRIALS, searcher="tpe", objective="tokens_per_second")
    return folder


def arms(outputs: Path, pattern: str = EVALUATE) -> dict[str, ArmRow]:
    return {r.arm: r for run in find_runs(pattern, outputs) for r in arm_rows(run)}


def at_speeds(outputs: Path, ratios: Iterable[float], **more: Any) -> ArmRow:
    """An arm that decodes 10 tokens a prompt, at these multiples of plain decoding's speed."""
    rows = []
    for i, ratio in enumerate(ratios):
        rows += [row(f"p{i}", "plain", 11, 1.0, 3.0), row(f"p{i}", "odd", 11, 1.0, 1 + 2 / ratio, skip="a1", **more)]
    write_run(outputs, "evaluate/speeds/s", rows)
    return arms(outputs, "s")["odd"]


def cells_per_row(markdown: str) -> set[int]:
    return {line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")}


# Numbers


def test_ratios_are_pooled_over_prompts_and_not_means_of_ratios(outputs: Path) -> None:
    odd = arms(outputs)["odd"]
    assert odd.acceptance == 26 / 40
    assert odd.tokens_per_round == (26 + 14) / 14
    assert odd.tokens_per_s == 40 / 10
    assert odd.speedup == 1.0  # 40 tokens in 10 s on both sides; the mean of the prompts' ratios would be 1.33
    assert odd.end_to_end_speedup == pytest.approx(14 / 17)  # 43 tokens in 6 + 7 + 1 s, and in 3.5 + 12.5 + 1 s


def test_prompts_that_failed_on_either_side_are_only_counted(outputs: Path) -> None:
    odd, plain = arms(outputs)["odd"], arms(outputs)["plain"]
    assert (odd.n, odd.n_failed, odd.n_tokens) == (3, 2, 11 + 31 + 1)
    assert (plain.n, plain.n_failed) == (4, 1)


def test_prompts_not_reached_by_both_arms_are_no_failures(outputs: Path) -> None:
    write_run(outputs, "evaluate/toy/killed", GOLDEN[:3], finished=False)
    odd = arms(outputs, "killed")["odd"]
    assert (odd.n, odd.n_failed, odd.is_finished) == (1, 0, False)


def test_interval_contains_the_point_estimate(outputs: Path) -> None:
    odd = at_speeds(outputs, [1.1, 1.3, 0.9, 1.2, 1.05])
    assert odd.low < odd.speedup < odd.high
    assert odd.end_to_end_low < odd.end_to_end_speedup < odd.end_to_end_high


def test_plain_decoding_has_no_acceptance_and_a_speedup_of_one(outputs: Path) -> None:
    plain = arms(outputs)["plain"]
    assert math.isnan(plain.acceptance) and math.isnan(plain.tokens_per_round)
    assert plain.speedup == 1
    assert plain.n_identical == plain.n


def test_an_arm_that_cannot_tell_its_prefill_has_an_end_to_end_speed_only(outputs: Path) -> None:
    rows = [row("p", "plain", 11, 1.0, 6.0), row("p", "generate", 11, None, 3.0)]
    write_run(outputs, "evaluate/toy/g", rows)
    generate = arms(outputs, "g")["generate"]
    assert math.isnan(generate.speedup)
    assert generate.end_to_end_speedup == 2


def test_a_prompt_decoded_again_counts_once_with_its_later_row(outputs: Path) -> None:
    write_run(outputs, "evaluate/toy/again", [failed("p1", "odd"), *GOLDEN[:2]])
    assert (arms(outputs, "again")["odd"].n, arms(outputs, "again")["odd"].n_failed) == (1, 0)


def test_rows_of_another_kind_are_refused(outputs: Path) -> None:
    write_run(outputs, "evaluate/toy/odd", [{"prompt_id": "p"}])
    with pytest.raises(InputError, match="line 1: no field arm"):
        arms(outputs, "odd")


# Tables


def test_table_shows_speed_with_interval_near_ties_and_losslessness(outputs: Path) -> None:
    table = arm_table(list(arms(outputs).values()))
    header, _, plain, odd = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    shown = dict(zip(header, odd, strict=True))
    assert shown["identical"] == "2/3" and shown["near ties"] == "1" and shown["mismatches"] == "0"
    assert shown["speedup [95 %]"] == "1.00 [0.00, 1074.48]"  # half a log-ratio of 3, by Student's 12.7 of 2 prompts
    assert shown["acceptance"] == "0.650" and shown["failed"] == "2"
    assert dict(zip(header, plain, strict=True))["acceptance"] == "–"


def test_no_speed_is_shown_without_a_verdict(outputs: Path) -> None:
    odd = at_speeds(outputs, [2.0, 2.0], verdict=None)
    assert "2.00" not in arm_table([odd])
    assert "is open" in verdict_sentence([odd])


def test_sampled_outputs_are_said_not_to_be_compared(outputs: Path) -> None:
    odd = at_speeds(outputs, [2.0, 2.0], verdict="not compared")
    assert "not compared" in arm_table([odd]) and "2.00" in arm_table([odd])
    assert "sampled outputs, not compared" in verdict_sentence([odd])


def test_every_row_of_a_table_has_as_many_cells_as_its_header(outputs: Path, tmp_path: Path) -> None:
    write_run(outputs, "evaluate/toy/bar", [row("p", "plain", 3, 1.0, 2.0), row("p", "a|b", 3, 1.0, 2.0)])
    assert len(cells_per_row(arm_table(list(arms(outputs, "bar").values())))) == 1
    markdown = make_report(find_runs("", outputs), tmp_path / "report").markdown
    assert all(len(cells_per_row(part)) <= 1 for part in markdown.split("\n\n"))


def test_csv_keeps_full_precision_and_leaves_missing_numbers_empty(outputs: Path) -> None:
    plain, odd = csv.DictReader(io.StringIO(arm_csv(list(arms(outputs).values()))))
    assert float(odd["tokens_per_round"]) == 40 / 14
    assert float(odd["end_to_end_speedup"]) == arms(outputs)["odd"].end_to_end_speedup
    assert plain["acceptance"] == ""


# Sentences


def test_sentence_when_skipping_pays(outputs: Path) -> None:
    sentence = verdict_sentence([at_speeds(outputs, [1.25] * 4)])
    assert sentence == (
        "Skipping pays on toy with mini: odd decodes 1.25x [1.25, 1.25] as fast as plain decoding "
        "(bfloat16 on cpu with 2 threads, 4/4 outputs identical, 0 near ties)."
    )


def test_sentence_when_skipping_does_not_pay(outputs: Path) -> None:
    odd = at_speeds(outputs, [0.8] * 4)
    sentence = verdict_sentence([odd])
    assert sentence.startswith("Plain skipping does not pay on toy with mini: the best arm odd runs at 0.80x [0.80, ")
    assert sentence.endswith("; plain decoding is faster.")
    priced = replace(odd, draft_cost=0.8, acceptance=0.58)
    assert "a drafted token takes 0.80 of a plain one's time, and 0.58 of them" in verdict_sentence([priced])


def test_sentence_when_no_difference_could_be_shown(outputs: Path) -> None:
    assert "no difference could be shown: the best arm odd" in verdict_sentence([at_speeds(outputs, [0.8, 1.0, 1.25])])


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (1.5, "Drafting pays on toy with mini, skipping is not shown to add to it: odd decodes 1.25x"),
        (1.1, "Skipping pays on toy with mini: odd decodes 1.25x"),
    ],
)
def test_an_arm_that_skips_nothing_shares_the_verdict(outputs: Path, speed: float, said: str) -> None:
    odd = at_speeds(outputs, [1.25] * 4)
    lookup = replace(odd, arm="lookup alone", skip="none", speedup=speed)
    sentence = verdict_sentence([odd, lookup])
    assert sentence.startswith(said) and f"lookup alone, which skips nothing, runs at {speed:.2f}x." in sentence
    assert "(bfloat16" in sentence  # picked among one skipping arm
    assert "skips nothing" not in verdict_sentence([odd, replace(lookup, speedup=0.9)])


def test_a_trained_head_and_lookup_are_no_skipping_arms(outputs: Path) -> None:
    odd = at_speeds(outputs, [0.8] * 4)
    trained, lookup = (replace(odd, arm=kind, kind=kind, skip="a0-1 m0-1") for kind in ("trained", "lookup"))
    fast, copied = replace(trained, speedup=2.0, low=1.9, high=2.1), replace(lookup, speedup=1.3)
    skipping, of_trained = verdict_sentences([odd, fast, copied])
    assert "the best arm odd" in skipping and "fastest of" not in skipping
    assert of_trained.startswith("A trained draft pays on toy with mini: trained decodes 2.00x [1.90, 2.10]")
    assert "lookup, which has no trained head, runs at 1.30x." in of_trained
    assert trained.skip_set is None and verdict_sentences([copied]) == []
    told = {"draft": "head eagle, head of 8192", "lookup": None}, {"draft": None, "lookup": "only"}
    arms_told = {arm: facts for arm, facts in zip(("t", "c"), told, strict=True)}
    rows = [row("p", arm, 11, 1.0, 3.0, skip=(arm != "plain" and "a0") or None) for arm in ("plain", "t", "c")]
    write_run(outputs, "evaluate/toy/kinds", rows, arms=arms_told)
    assert [r.kind for r in arms(outputs, "kinds").values()] == ["layers", "trained", "lookup"]


def test_one_prompt_shows_no_difference_however_fast(outputs: Path) -> None:
    assert "no difference could be shown: the best arm odd runs at 3.00x [–, –]" in verdict_sentence(
        [at_speeds(outputs, [3.0])]
    )


def test_sentence_does_not_call_an_arm_with_mismatches_lossless(outputs: Path) -> None:
    sentence = verdict_sentence([at_speeds(outputs, [2.0, 2.0], verdict="mismatch")])
    assert "0/2 outputs identical" in sentence and "2 of its outputs do not match" in sentence


def test_arms_that_skip_nothing_are_kept_out_of_a_verdict(outputs: Path) -> None:
    rows = [
        row(f"p{i}", arm, 11, 1.0, 3.0, skip=skip) for i in (1, 2) for arm, skip in (("plain", None), ("x", "none"))
    ]
    write_run(outputs, "evaluate/toy/nothing", rows)
    write_run(outputs, "evaluate/toy/gpu", GOLDEN, device="cuda:0")
    assert verdict_sentences(list(arms(outputs, "nothing").values())) == []
    both = [r for run in find_runs(f"{EVALUATE},gpu", outputs) for r in arm_rows(run)]
    assert ["cuda:0" in sentence for sentence in verdict_sentences(both)] == [False, True]


# Run folders


@pytest.mark.parametrize(
    "pattern",
    [
        EVALUATE,
        f"evaluate/toy/{EVALUATE}",
        "evaluate/toy",
        "evaluate",
        "evaluate/*/*aaaa1111",
        "**/*aaaa1111",
        "evalu*",
    ],
)
def test_a_run_is_found_by_id_folder_and_glob(outputs: Path, pattern: str) -> None:
    (run,) = find_runs([pattern], outputs)
    assert (run.id, run.verb, run.name) == (EVALUATE, "evaluate", f"evaluate/toy/{EVALUATE}")
    assert run.is_finished and run.facts["model"] == "toy"


def test_a_run_is_found_by_a_path_with_commas_and_brackets(outputs: Path) -> None:
    folder = write_run(outputs, "evaluate/a,b [1]/run", GOLDEN)
    assert [run.path for run in find_runs(str(folder), outputs)] == [folder.resolve()]


def test_a_run_named_twice_is_read_once_and_order_is_kept(
    outputs: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert [run.id for run in find_runs(f"{SEARCH}, {EVALUATE},**", outputs)] == [SEARCH, EVALUATE]


def test_a_long_list_of_runs_is_a_list(outputs: Path) -> None:
    assert len(find_runs(",".join([EVALUATE] * 200), outputs)) == 1


def test_without_a_name_the_newest_finished_run_of_each_verb_is_taken(outputs: Path) -> None:
    write_run(outputs, "evaluate/later/20250103T000000Z-cccc3333", GOLDEN)
    write_run(outputs, "evaluate/toy/20250104T000000Z-dddd4444", GOLDEN, finished=False)
    assert [run.id for run in find_runs("", outputs)] == ["20250103T000000Z-cccc3333", SEARCH]
    assert find_runs([], outputs) == find_runs("", outputs)


def test_an_unknown_run_is_one_line_that_says_what_there_is(outputs: Path) -> None:
    with pytest.raises(InputError, match=f"no run 'nowhere'.*holds 2 .2 finished.*{SEARCH}") as caught:
        find_runs("nowhere", outputs)
    assert "\n" not in str(caught.value)


def test_without_any_run_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run was named and none is finished.*selfspec evaluate"):
        find_runs("", tmp_path / "outputs")


def test_a_half_written_last_line_is_not_a_row(outputs: Path) -> None:
    folder = write_run(outputs, "evaluate/toy/killed", GOLDEN[:2], finished=False)
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"schema": 1, "prompt_id": "p2", "ar')
    (run,) = find_runs("killed", outputs)
    assert len(run.rows().whole()) == 2 and not run.is_finished


def test_a_run_killed_before_its_first_row_is_a_run_without_rows(outputs: Path) -> None:
    folder = write_run(outputs, "search/toy/killed", [], finished=False)
    (folder / "trials.jsonl").unlink()
    (run,) = find_runs("killed", outputs)
    assert run.verb == "search" and run.rows().whole() == []


def test_damaged_provenance_is_named(outputs: Path) -> None:
    folder = write_run(outputs, "evaluate/toy/damaged", GOLDEN)
    (folder / "provenance.json").write_text("{")
    with pytest.raises(InputError, match=r"provenance\.json is not JSON"):
        find_runs("damaged", outputs)


# Pictures and the report


@pytest.mark.usefixtures("rendered")
def test_figures_are_written_as_png_and_svg(tmp_path: Path) -> None:
    skip_map = figures.skip_map({"odd": SkipSet.parse("a1,3 m2", 8), "none": SkipSet(4)})
    for path in figures.save(skip_map, tmp_path / "map.v1"):
        assert path.name in ("map.v1.png", "map.v1.svg")
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert len(list(tmp_path.iterdir())) == 2, "nothing temporary is left"


def test_search_progress_marks_what_it_knows() -> None:
    figure = figures.best_so_far(TRIALS, objective="tokens_per_second")
    axes = figure.axes[0]
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn["start"] == [20.0, 15.0] and drawn["searcher"] == [22.5, 21.0]
    assert drawn["best so far"] == [20.0, 20.0, 20.0, 22.5, 22.5]
    assert drawn["skip nothing"] == [20.0, 20.0]
    (failures,) = (line for line in axes.lines if line.get_label() == "failed (no value)")
    assert np.asarray(failures.get_xdata()).tolist() == [3]
    assert axes.get_ylabel() == "tokens per second"


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("trials", [[], [trial(0, None, "none", "start")]])
def test_a_search_without_values_still_has_a_picture(trials: list[Row], tmp_path: Path) -> None:
    assert len(figures.save(figures.best_so_far(trials, objective="acceptance"), tmp_path / "search")) == 2


def test_report_writes_table_and_pictures_and_how_to_make_it_again(outputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    report = make_report(find_runs("", outputs), folder, overrides=["runs=", "paths.outputs=some where"])
    names = {"skip_map.png", "skip_map.svg", "search.png", "search.svg", "table.csv", "table.md", "table.tex"}
    assert {path.name for path in report.paths} == {path.name for path in folder.iterdir()} == names
    assert (folder / "table.md").read_text(encoding="utf-8") == report.markdown + "\n"
    assert report.sentences and report.sentences[0] in report.markdown
    assert "| best of tpe | `a2` | 1 of 8 |" in report.markdown
    assert "| 3 | 22.50 | 20.00 | `a2` |" in report.markdown
    assert "| 0.25 | 2.8.0 | 5.20.0 |" in report.markdown
    again = f"selfspec report runs=evaluate/toy/{EVALUATE},search/toy/{SEARCH} 'paths.outputs=some where'"
    assert again in report.markdown


def test_report_flags_unfinished_runs_and_different_conditions(outputs: Path, tmp_path: Path) -> None:
    write_run(outputs, "evaluate/toy/killed", GOLDEN[:2], finished=False, dtype="float32")
    markdown = make_report(find_runs("evaluate/toy", outputs), tmp_path / "report").markdown
    assert "killed (unfinished)" in markdown and "Unfinished: evaluate/toy/killed." in markdown
    assert "The runs differ in dtype:" in markdown
    assert "0 near ties, unfinished run)" in markdown


def test_two_searches_have_a_picture_each_and_labels_of_their_own(outputs: Path, tmp_path: Path) -> None:
    write_run(outputs, "search/toy/other", [trial(0, 1.0, "m3")], searcher="tpe", objective="tokens_per_second")
    report = make_report(find_runs("search", outputs), tmp_path / "report")
    assert {"search-other.png", f"search-{SEARCH}.png"} < {path.name for path in report.paths}
    assert "table.csv" not in {path.name for path in report.paths}
    assert "| best of tpe | `a2`" in report.markdown and "| best of tpe, other | `m3`" in report.markdown


def test_report_of_no_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs to report on"):
        make_report([], tmp_path)
