"""The table of all systems: numbers that can be checked by hand, from made-up run folders."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.paper.evidence import read
from experiments.results.find_runs import find_runs
from experiments.results.published import published_figures
from experiments.systems import account, table
from experiments.systems.figure import kind
from experiments.systems.systems import System, slug, systems
from experiments.verbs.report import make_report
from scripts.result_page import write_page
from selfspec.errors import InputError
from tests.test_paper_report import ROUNDS, cells, drafted, plain
from tests.test_report import row, write_run

Row = dict[str, Any]

HEAD = {"skip": "a1 m1", "draft": "head eagle", "lookup": None, "extra_bytes": 2_000_000}
SLOW = [(4, 1), (4, 0), (2, 0)]  # 10 drafted, 1 accepted


def write_all(folder: Path) -> Path:
    """Two classes of text, a training, a search, and an unverified draft."""
    train = write_run(folder, "train/head/20250102T030405Z-tttt1111", [], drafter="eagle", n_answer_tokens=500)
    (train / "curve.jsonl").write_text(json.dumps({"schema": 1, "step": 1, "seconds": 3.0}) + "\n")
    (train / "records.jsonl").unlink()
    (train / "summary.json").write_text(json.dumps({"seconds": 100.0}))
    search = write_run(folder, "search/s/20250102T030405Z-ssss1111", [])
    (search / "summary.json").write_text(json.dumps({"elapsed_s": 7.0}))
    (search / "config.yaml").write_text("trained: null\n")
    for data, chat, slow in (("humaneval", False, ROUNDS), ("gsm8k", True, SLOW)):
        rows = [plain(p) for p in ("p1", "p2")]
        for p in ("p1", "p2"):
            rows += [drafted(p, "EAGLE-3", ROUNDS), drafted(p, "Draft & Verify", slow)]
            rows += [row(p, "int4", 11, 1.0, 2.0, verdict="mismatch")]
        arms = {"EAGLE-3": HEAD, "Draft & Verify": {"skip": "a1 m1"}, "int4": {"draft_only": True}}
        run = write_run(folder, f"evaluate/{data}/20250102T030405Z-{data}", rows, data=data, chat=chat, arms=arms)
        named = {"EAGLE-3": {"skip": str(train)}, "Draft & Verify": {"skip": search.name}, "int4": {"skip": "none"}}
        (run / "config.yaml").write_text(json.dumps({"arms": named, "skip": "none"}))
        (run / "summary.json").write_text(json.dumps({"predicted": {"Draft & Verify": 1.0}}))
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def found(outputs: Path) -> dict[str, System]:
    runs = find_runs([str(outputs)], outputs)
    made = systems(read(runs, published=published_figures()), runs)
    assert made[0].is_baseline
    return {system.name: system for system in made}


def test_a_round_gains_what_it_accepts_and_pays_for_the_rest(found: dict[str, System]) -> None:
    one = found["EAGLE-3"].account
    assert one is not None  # 11 drafted and 7 accepted in 4 rounds; .1 s a drafted token, .2 s a verification or token
    assert (one.accepted, one.drafted, one.draft_cost) == pytest.approx((7 / 4, 11 / 4, 0.5))
    assert list(one.costs.values()) == pytest.approx([0.5 * 7 / 4, 0.5, 0.0, 0.0], abs=1e-12)
    assert one.speedup == pytest.approx((1 + 7 / 4) / (1 + 11 / 8))


def test_the_terms_make_up_the_speedup_of_the_clock(tmp_path: Path) -> None:
    seconds = {"verify_s": 0.9, "other_s": 0.3}
    slower = drafted("p", "x", ROUNDS) | seconds | {"total_s": 1 + 1.1 + 1.2}
    write_run(tmp_path, "evaluate/toy/e", [plain("p"), slower])
    (x,) = (arm for arm in read(find_runs([str(tmp_path)], tmp_path)).drafts)
    one = account.account([x])
    assert one is not None and one.accepted + 1 == 11 / 4  # four rounds gave 11 tokens, of which the clock timed ten
    assert one.speedup == pytest.approx(x.row.speedup * 11 / 10)


@pytest.mark.parametrize(
    ("found", "largest"),
    [
        (account.Account(1.0, 1.0, 1.2, 0.1, 0.1, (0, 0, 0)), account.C),
        (account.Account(0.2, 4.0, 0.3, 0.1, 0.1, (0, 0, 0)), account.ACCEPTANCE),
        (account.Account(0.2, 4.0, 0.0, 0.4, 0.1, (0, 0, 0)), account.VERIFICATION),
        (account.Account(0.5, 1.0, 0.1, 0.1, 0.9, (0, 0, 0)), account.OVERHEAD),
    ],
)
def test_the_reason_is_the_largest_cost(found: account.Account, largest: str) -> None:
    assert found.largest == largest and f"{largest}: {account.REASONS[largest]}" in account.reason(found)


def test_a_row_a_system_and_a_column_a_class_of_text(found: dict[str, System]) -> None:
    section = table.speeds(list(found.values()))
    shown = {str(c["system"]): c for c in cells(section.table)}
    assert list(shown) == ["plain", "EAGLE-3", "Draft & Verify", "int4 (another output)"]
    assert list(shown["plain"])[2:] == ["code, raw", "arithmetic", "all"]
    fast, slow = 2.0 / (1.1 + 0.8), 2.0 / (1.0 + 0.6)
    assert shown["EAGLE-3"]["arithmetic"].here == pytest.approx(fast)
    assert shown["Draft & Verify"]["arithmetic"].here == pytest.approx(slow)
    assert shown["Draft & Verify"]["all"].here == pytest.approx(4.0 / (1.9 + 1.6))
    assert shown["int4 (another output)"]["all"].here == pytest.approx(2.0)
    assert "systems_preparation" in section.figures
    assert any(note.startswith("Fastest on arithmetic, toy: Draft & Verify") for note in section.notes)


def test_preparation_follows_the_names_in_the_settings(found: dict[str, System]) -> None:
    head, searched, none = (found[name].prepared for name in ("EAGLE-3", "Draft & Verify", "int4"))
    assert (head.training_s, head.search_s, head.n_tokens) == (100.0, 0.0, 500)
    assert (searched.training_s, searched.search_s, searched.n_tokens) == (0.0, 7.0, 0)
    assert none.seconds == 0.0
    assert [kind(found[name]) for name in ("EAGLE-3", "Draft & Verify")] == ["a training", "a search"]


def test_a_predictor_and_the_training_of_a_search_are_preparation_too(tmp_path: Path) -> None:
    write_all(tmp_path)
    (train,), (search,) = ([*tmp_path.glob(f"{verb}/*/*")] for verb in ("train", "search"))
    (search / "config.yaml").write_text(json.dumps({"trained": str(train)}))
    runs = tmp_path / "runs.of.steps"
    predictor = runs / "predict" / "x"
    (predictor / "published").mkdir(parents=True)
    (tmp_path / "steps.jsonl").write_text(
        json.dumps({"schema": 1, "step": "p", "run": str(predictor), "seconds": 12.5}) + "\n"
    )
    for config in tmp_path.glob("evaluate/*/*/config.yaml"):
        body = json.loads(config.read_text())
        body["arms"]["Draft & Verify"]["stop"] = {"specdec": {"predictor": str(predictor / "published")}}
        config.write_text(json.dumps(body))
    every = find_runs([str(tmp_path)], tmp_path)
    found = {s.name: s.prepared for s in systems(read(every), every)}["Draft & Verify"]
    assert (found.training_s, found.search_s, found.n_tokens) == (112.5, 7.0, 500)


def test_costs_show_what_was_counted(found: dict[str, System]) -> None:
    shown = {str(c["system"]): c for c in cells(table.costs(list(found.values())).table)}
    head = shown["EAGLE-3"]
    assert (head["tokens/round"].here, head["MB"].here, head["training s"].here) == (2.75, 2.0, 100.0)
    assert head["by depth"] == "0.75 1.00 0.50 1.00" and head["draft/verify/other"] == "0.58/0.42/0.00"
    assert (head["identical"], head["near ties"], head["mismatches"]) == (4, 0, 0)
    assert "5.51x on five tasks, Vicuna-13B" in head["published"]
    assert shown["int4 (another output)"]["mismatches"] == "–" and shown["plain"]["published"] == "–"
    assert shown["Draft & Verify"]["predicted"] == "-0.20 -0.05"


def test_what_loses_has_its_reason(tmp_path: Path) -> None:
    rejected = [(8, 0)] * 3
    rows = [plain("p"), drafted("p", "x", rejected), drafted("p", "y", ROUNDS)]
    rows += [row("p", "generate", 11, 1.0, 9.0)]
    write_run(tmp_path, "evaluate/toy/e", rows)
    runs = find_runs([str(tmp_path)], tmp_path)
    shown = {str(c["system"]): str(c["why"]) for c in cells(table.losses(systems(read(runs), runs)).table)}
    assert list(shown) == ["x", "generate"]
    assert shown["x"].endswith("acceptance: most of the time goes into drafts that are rejected")
    assert "no rounds" in shown["generate"]


def test_batches_are_systems_of_their_own(tmp_path: Path) -> None:
    for batch in (1, 8):
        rows = [plain("p"), drafted("p", "SmartSpec", ROUNDS)]
        write_run(tmp_path, f"evaluate/toy/e{batch}", rows, batch=batch)
    runs = find_runs([str(tmp_path)], tmp_path)
    names = [s.name for s in systems(read(runs, published=published_figures()), runs)]
    assert names == ["plain", "plain, batch 8", "SmartSpec", "SmartSpec, batch 8"]


def test_the_report_writes_tables_and_the_picture(outputs: Path, tmp_path: Path) -> None:
    report = make_report(find_runs([str(outputs)], outputs), tmp_path, preset="systems", figures_of=published_figures())
    names = {path.name for path in report.paths}
    stems = ("systems", "systems_costs")
    assert names >= {"table.md", "systems_preparation.svg", *(f"{s}.{e}" for s in stems for e in ("csv", "tex"))}
    assert "## Conditions" in report.markdown and "Draft & Verify" in report.markdown


def test_every_published_figure_has_a_source_and_a_system() -> None:
    rows = [r for r in published_figures("systems")]
    assert all(r["source"] and slug(r["system"]) == r["system"] and not math.isnan(r["value"]) for r in rows)


def test_a_report_becomes_a_page_with_its_pictures_once(tmp_path: Path) -> None:
    report, docs = tmp_path / "report", tmp_path / "docs"
    report.mkdir()
    docs.mkdir()
    (report / "table.md").write_text("# Report\n\n![speed](speed.png)\n")
    (report / "speed.png").write_bytes(b"png")
    provenance = {"cpu": "A CPU", "started": "2026-01-02T03:04:05Z", "run": {"name": "all"}}
    (report / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(InputError, match="no finished report"):
        write_page(report, "page", docs)
    (report / "summary.json").write_text("{}")
    page = write_page(report, "page", docs)
    assert page.read_text() == "# A CPU, 2026-01-02\n\nMade from `all`.\n\n![speed](page/speed.png)\n"
    assert (docs / "page" / "speed.png").read_bytes() == b"png"
    with pytest.raises(InputError, match="not changed afterwards"):
        write_page(report, "page", docs)
