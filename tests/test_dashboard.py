"""The dashboard: every page over runs of every state, what is no run told as such, and the report in one file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="needs selfspec[dashboard]")
go = pytest.importorskip("plotly.graph_objects", reason="needs selfspec[dashboard]")

import streamlit as st  # noqa: E402
from streamlit.testing.v1 import AppTest  # noqa: E402

from experiments.charts import calculating, comparing, evaluating, searching, theme  # noqa: E402
from experiments.charts.html_report import write_html  # noqa: E402
from experiments.dashboard import token_sources  # noqa: E402
from experiments.results.find_runs import find_runs, list_runs  # noqa: E402
from experiments.results.run_folder import Run  # noqa: E402
from experiments.verbs.dashboard import words  # noqa: E402
from search.pareto import front  # noqa: E402
from selfspec.skipping.skip_set import SkipSet  # noqa: E402
from tests.made_up import evaluate_run, search_run, train_run  # noqa: E402, train_run

PAGES = ("runs", "search", "compare", "evaluation", "training", "calculator")
WAIT_S = 30


@pytest.fixture(autouse=True)
def no_memory() -> Iterator[None]:
    """Streamlit's cache would outlive a test."""
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two searches, an evaluation of what one of them found, and four folders that are no runs."""
    folder = tmp_path / "outputs"
    search_run(folder, seed=0, n_trials=40)
    search_run(folder, seed=1, n_trials=12, searcher="tpe", is_finished=False)
    evaluate_run(folder)
    for i, (name, text) in enumerate(
        [
            ("provenance.json", '{"run": {'),
            ("provenance.json", "[]"),
            ("holiday.jpg", "not a run"),
            ("trials.jsonl", "{}\n"),
        ]
    ):
        broken = folder / "search" / "broken" / f"20260101T00000{i}Z-0000000{i}"
        broken.mkdir(parents=True)
        (broken / name).write_text(text, encoding="utf-8")
    return folder


def page(name: str, outputs: Path) -> AppTest:
    """A page, drawn once, without a browser."""

    def script(name: str, outputs: str) -> None:
        from importlib import import_module
        from pathlib import Path

        import_module(f"experiments.dashboard.page_{name}").draw(Path(outputs))

    app = AppTest.from_function(script, args=(name, str(outputs)), default_timeout=WAIT_S).run()
    assert not app.exception, app.exception
    return app


def trained_page(outputs: Path, *, run: int = 0) -> AppTest:
    """The page of trainings with one of its runs chosen."""
    app = page("training", outputs)
    return app.selectbox[0].select_index(run).run() if run else app


def said(app: AppTest) -> str:
    """All words on the page."""
    parts = [*app.title, *app.subheader, *app.caption, *app.info, *app.code, *app.markdown, *app.expander, *app.metric]
    return "\n".join(str(getattr(part, "value", "")) + str(getattr(part, "label", "")) for part in parts)


def n_charts(app: AppTest) -> int:
    return len(app.get("plotly_chart"))


class TestPage:
    @pytest.mark.parametrize("name", PAGES)
    def test_without_runs_tells_how_to_make_one_or_works_without(self, name: str, tmp_path: Path) -> None:
        app = page(name, tmp_path / "nothing")
        assert "selfspec" in said(app) or n_charts(app) == 2

    def test_runs_lists_runs_and_apart_what_is_none(self, outputs: Path) -> None:
        app = page("runs", outputs)
        table, broken = (frame.value for frame in app.dataframe)
        assert sorted(table["kind"]) == ["evaluate", "search", "search"]
        assert sorted(table["state"]) == ["finished", "finished", "running"]
        assert len(broken) == 4 and all(broken["why"])

    def test_runs_keeps_what_fits_the_filters(self, outputs: Path) -> None:
        app = page("runs", outputs)
        app.multiselect[3].set_value(["tpe"]).run()
        assert list(app.dataframe[0].value["searcher"]) == ["tpe"]

    def test_search_draws_a_search_that_goes_on(self, outputs: Path) -> None:
        app = page("search", outputs)
        app.selectbox[0].set_value(next(o for o in scanned(outputs) if o.state == "running").name).run()
        assert not app.exception
        assert n_charts(app) == 5
        assert app.metric[0].value == "12 / 40"
        assert app.metric[4].label == "Time left"
        assert any(code.value.startswith("optuna-dashboard ") for code in app.code)

    def test_training_draws_its_curve_and_says_the_best_so_far(self, tmp_path: Path) -> None:
        train_run(tmp_path, seed=1, is_finished=False)
        train_run(tmp_path, seed=0)
        going, ended = trained_page(tmp_path), trained_page(tmp_path, run=1)
        assert n_charts(going) == 1 and "accepted by depth 0.60 0.70" in said(going) and "1.50" in said(going)
        assert "accepted by depth 0.61 0.71; finished" in said(ended) and "selfspec evaluate drafter=" in said(ended)

    def test_compare_shows_what_each_set_has_alone_and_brings(self, outputs: Path) -> None:
        app = page("compare", outputs)
        assert len(app.multiselect[0].value) >= 2
        assert n_charts(app) == 5
        sets = app.dataframe[0].value
        assert sets["measured speedup"].str.contains("mini").any()

    def test_evaluation_draws_rounds_and_marks_tokens(self, outputs: Path) -> None:
        app = page("evaluation", outputs)
        assert n_charts(app) == 4
        assert "Answers, token by token" in said(app)
        drawn = "".join(part.proto.body for part in app.get("html"))
        assert 'class="accepted"' in drawn and 'class="correction parts"' in drawn

    def test_calculator_follows_its_sliders(self, outputs: Path) -> None:
        app = page("calculator", outputs)
        app.slider[0].set_value(0.9)
        app.slider[1].set_value(0.2)
        app.slider[2].set_value(4)
        app.slider[3].set_value(1.0).run()
        assert app.metric[0].value == f"{(1 + 0.9 + 0.81 + 0.729 + 0.6561) / 1.8:.2f}×"

    def test_a_row_that_cannot_be_read_is_told_and_the_others_are_drawn(self, outputs: Path) -> None:
        run = next(entry for entry in scanned(outputs) if entry.verb == "search" and entry.state == "finished")
        lines = (run.path / "trials.jsonl").read_text(encoding="utf-8").splitlines()
        lines[5] = "oops"
        (run.path / "trials.jsonl").write_text("\n".join([*lines, '{"half']), encoding="utf-8")
        app = page("search", outputs)
        app.selectbox[0].set_value(run.name).run()
        assert app.metric[0].value == "39 / 40"
        assert "1 rows cannot be read" in said(app)


def scanned(outputs: Path) -> list[Run]:
    return list_runs(None, outputs)


ROW = {"arm": "draft", "tokens": list(range(7)), "round_drafted": [2, 2, 0], "round_accepted": [2, 1, 0]}


class TestTokens:
    def test_each_token_is_what_its_round_made_it(self) -> None:
        assert token_sources.kinds(ROW) == [
            "prompt",
            "accepted",
            "accepted",
            "bonus",
            "accepted",
            "correction",
            "plain",
        ]

    def test_an_answer_cut_by_its_length_has_no_more_kinds_than_tokens(self) -> None:
        assert len(token_sources.kinds(ROW | {"tokens": [1, 2, 3]})) == 3

    def test_two_answers_part_at_the_first_difference(self) -> None:
        assert token_sources.parting([1, 2, 3], [1, 9, 3]) == 1
        assert token_sources.parting([1, 2], [1, 2, 3]) == 2
        assert token_sources.parting([1, 2], [1, 2]) is None

    def test_text_cannot_become_markup(self) -> None:
        row = ROW | {"pieces": ["<script>"] * 7}
        assert "<script>" not in token_sources.answer(row, tokenizer=None)


class TestFigure:
    def figures(self) -> Iterator[Any]:
        trials = [
            {"number": i, "state": "complete", "value": 1 + i / 9, "skip": f"a{i - 1}" if i else "none", "mlp": []}
            | {"attn": [i - 1] if i else [], "acceptance": 0.9 - i / 20, "draft_cost": 0.9 - i / 20, "elapsed_s": i}
            | {"drafted": 10, "accepted": 8, "n_rounds": 4}
            for i in range(4)
        ]
        sets = {"one": SkipSet.parse("a0,1 m2", 4), "two": SkipSet.parse("a1 m2-3", 4)}
        timed = [{"label": a, "data": "mini", "predicted": 1.2, "speedup": 1.1, "low": 1.0, "high": 1.2} for a in sets]
        row = {"arm": "draft", "prompt_id": "p", "round_drafted": [2, 2], "round_accepted": [2, 1], "n_tokens": 6}
        row |= {"round_threshold": [0.6, 0.61], "prefill_s": 0.1, "draft_s": 0.2, "verify_s": 0.3, "total_s": 0.7}
        yield searching.best_so_far(trials, objective="expected_speedup", spent="seconds")
        yield searching.trade_off(trials, objective="expected_speedup")
        yield searching.importance(trials, n_layers=4, objective="expected_speedup")
        yield searching.bits(trials, n_layers=4)
        yield comparing.skip_map(sets)
        yield comparing.speedups(timed)
        yield comparing.predicted(timed)
        yield comparing.transfer(timed)
        yield evaluating.position_acceptance([row])
        yield evaluating.thresholds([row])
        yield evaluating.time_split([row])
        yield calculating.surface([], n_drafted=5, verify=1.1)
        yield calculating.lengths(0.8, cost=0.5, verify=1.1, n_drafted=5)

    def test_names_every_axis_and_can_be_read_on_either_ground(self) -> None:
        for figure in self.figures():
            assert figure.data and figure.layout.xaxis.title.text
            json.loads(theme.inked(figure, is_dark=True).to_json())

    def test_empty_rows_give_empty_figures(self) -> None:
        assert not searching.best_so_far([], objective="acceptance").data
        assert not searching.importance([], n_layers=4, objective="acceptance").data
        assert not evaluating.position_acceptance([]).data

    def test_colours_stand_out_on_white_and_on_dark(self) -> None:
        for colour in theme.SERIES:
            for ground in ("#FFFFFF", "#0E1117"):
                assert contrast(colour, ground) >= 3, (colour, ground)  # WCAG 2.1, 1.4.11
        assert contrast(theme.INK[False], "#FFFFFF") >= 4.5 and contrast(theme.INK[True], "#0E1117") >= 4.5

    def test_the_best_so_far_never_falls(self) -> None:
        trials = [{"number": i, "state": "complete", "value": v, "skip": "a1"} for i, v in enumerate([3, 1, 5, 2])]
        best = next(t for t in searching.best_so_far(trials, objective="acceptance").data if t.name == "best so far")
        assert list(best.y) == [3, 3, 5, 5]

    def test_jaccard_counts_sublayers_of_either_kind(self) -> None:
        sets = {"a": SkipSet.parse("a0,1 m2", 4), "b": SkipSet.parse("a1 m2-3", 4), "nothing": SkipSet(4)}
        (heatmap,) = comparing.overlap(sets).data
        assert [list(row) for row in heatmap.z] == [[1, 2 / 4, 0], [2 / 4, 1, 0], [0, 0, None]]

    def test_the_line_of_the_trade_off_is_the_front_of_the_search(self) -> None:
        trials = [
            {
                "number": i,
                "state": "complete",
                "value": 1.0,
                "skip": f"a{i}",
                "draft_cost": cost,
                "acceptance": part,
            }
            for i, (cost, part) in enumerate([(0.5, 0.7), (0.5, 0.9), (0.4, 0.6), (0.9, 0.9), (0.8, 0.95)])
        ]
        figure = searching.trade_off(trials, objective="acceptance")
        (line,) = (trace for trace in figure.data if trace.name == "Pareto front")
        expected = [(row["draft_cost"], row["acceptance"]) for row in front(trials)]
        assert list(zip(line.x, line.y, strict=True)) == expected == [(0.4, 0.6), (0.5, 0.9), (0.8, 0.95)]


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2.1 defines it: from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dim, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dim + 0.05)


class TestHtml:
    def test_holds_the_curve_and_the_result_of_a_training(self, tmp_path: Path) -> None:
        train_run(tmp_path)
        write_html(find_runs("", tmp_path), tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "<h2>Trainings</h2>" in page and "<td>0.61 0.71</td><td>1.53</td>" in page
        assert page.count('class="plotly-graph-div"') == 1

    def test_holds_everything_itself_in_six_megabytes(self, outputs: Path) -> None:
        runs = [run for verb in ("search/made-up", "evaluate") for run in find_runs(verb, outputs)]
        write_html(runs, outputs / "report.html")
        page = (outputs / "report.html").read_text(encoding="utf-8")
        assert len(page.encode()) < 6_000_000
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page)
        for part in ("Skip sets", "Speedup over plain decoding", "Sublayers that each set skips", "Conditions"):
            assert part in page

    def test_text_of_a_run_cannot_become_markup(self, outputs: Path) -> None:
        write_html(
            [*find_runs(str(search_run(outputs, seed=7, model="<img src=x>")), outputs)], outputs / "report.html"
        )
        assert "<img src=x>" not in (outputs / "report.html").read_text(encoding="utf-8")


def test_the_server_is_for_this_machine_and_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    flags = words(tmp_path, address="127.0.0.1", port=8501, open_browser=True)
    assert {"--server.address=127.0.0.1", "--browser.gatherUsageStats=false", "--server.headless=true"} <= set(flags)


@pytest.mark.slow
def test_hundreds_of_runs_stay_usable(tmp_path: Path) -> None:
    """200 searches of 500 trials: 3 s to the first paint and 1 s for a filter are asked; twice that fails."""
    import torch

    from selfspec.measure.stopwatch import Stopwatch

    trials = search_run(tmp_path, seed=0, n_trials=500, searcher="tpe") / "trials.jsonl"
    for seed in range(1, 200):
        shutil.copy(trials, search_run(tmp_path, seed=seed, n_trials=1, searcher=("tpe", "gp")[seed % 2]))
    watch = Stopwatch(torch.device("cpu"))
    took = {name: seconds(lambda name=name: page(name, tmp_path), watch) for name in PAGES}
    app = page("runs", tmp_path)
    took["filter"] = seconds(lambda: app.multiselect[3].set_value(["gp"]).run(), watch)
    assert len(app.dataframe[0].value) == 100
    assert all(took[name] < 6 for name in PAGES) and took["filter"] < 2, took


def seconds(act: Callable[[], object], watch: Any) -> float:
    start = watch.now()
    act()
    return float(watch.now() - start)
