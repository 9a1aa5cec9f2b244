"""The page of one search: best value so far, trials, and the worth of sublayers. It refreshes during the run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from experiments.charts import comparing, searching
from experiments.charts.theme import Row
from experiments.dashboard import streamlit_helpers
from experiments.results.figure_data import nothing_value, unit
from experiments.results.rows import scored
from experiments.results.run_folder import Run
from experiments.terminal.run_list import interval
from search.point import row_text
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

COLUMNS = ("number", "origin", "state", "value", "acceptance", "draft_cost", "n_rounds", "elapsed_s", "skip")


def draw(outputs: Path) -> None:
    """The page."""
    streamlit_helpers.watched_page(outputs, "Search", "search", _search)


def _search(run: Run, rows: Sequence[Any]) -> None:
    trials = sorted(rows, key=lambda row: int(row["number"]))
    _figures_in_brief(run, trials)
    if not trials:
        st.info("No trial has ended yet; this page looks again every few seconds while the search runs.")
        return
    objective, n_layers = str(run.facts.get("objective")), _n_layers(run, trials)
    data = [{name: trial.get(name) for name in COLUMNS} for trial in trials]
    left, right = st.columns(2)
    with left:
        st.subheader("Best so far")
        spent = st.segmented_control("Over", ["evaluations", "seconds"], default="evaluations", key="spent")
        figure = searching.best_so_far(
            trials, objective=objective, spent="seconds" if spent == "seconds" else "evaluations"
        )
        streamlit_helpers.chart(
            figure, data, name="best-so-far", alt=f"best {unit(objective)} over {spent or 'evaluations'}"
        )
    with right:
        st.subheader("Acceptance against cost")
        st.caption("Every complete trial; up and to the left is better. The line is the Pareto front.")
        priced = [row for row in data if row["draft_cost"] is not None]
        figure = searching.trade_off(trials, objective=objective)
        streamlit_helpers.chart(
            figure, priced, name="trade-off", alt="acceptance over draft cost of every complete trial"
        )
    best = max(scored(trials), key=lambda t: float(t["value"]), default=None)
    if best is not None:
        st.subheader("Best set so far")
        st.code(row_text(best), language=None)
        drawn = _sets(best, run, n_layers)
        lines = [{"set": name, "skip": str(skip)} for name, skip in drawn.items()]
        streamlit_helpers.chart(
            comparing.skip_map(drawn), lines, name="best-set", alt="sublayers that the best set skips"
        )
    st.subheader("What each sublayer is worth")
    st.caption(
        "One sublayer skipped alone: blue gains, orange-red loses, empty was not tried. From the `singles` start."
    )
    alone = [
        row
        for row, trial in zip(data, trials, strict=True)
        if len(trial.get("attn", ())) + len(trial.get("mlp", ())) == 1
    ]
    figure = searching.importance(trials, n_layers=n_layers, objective=objective)
    streamlit_helpers.chart(figure, alone, name="importance", alt="change of value from skipping each sublayer alone")
    st.subheader("What good sets share")
    st.caption(
        "The best distinct sets, a line each, the best above. A full column is a sublayer that all of them skip."
    )
    streamlit_helpers.chart(
        searching.bits(trials, n_layers=n_layers), data, name="bits", alt="skipped sublayers of the best sets"
    )
    with st.expander("All trials"):
        st.dataframe(data, placeholder="–", hide_index=True, alt="all trials, one a line")
    _elsewhere(run)


def _figures_in_brief(run: Run, trials: list[Row] | list[dict[str, Any]]) -> None:
    n_trials = (streamlit_helpers.config(run).get("searcher") or {}).get("n_trials")
    valued = scored(trials)
    best = max((float(t["value"]) for t in valued), default=None)
    elapsed = max((t["elapsed_s"] for t in trials if t.get("elapsed_s") is not None), default=None)
    left = None
    if run.state == "running" and elapsed and isinstance(n_trials, int) and trials:
        left = elapsed / len(trials) * max(0, n_trials - len(trials))
    cells = st.columns(5)
    cells[0].metric("Trials", f"{len(trials)} / {n_trials}" if n_trials else len(trials))
    cells[1].metric("Best value", streamlit_helpers.format_number(best), help=unit(str(run.facts.get("objective"))))
    cells[2].metric("Skip nothing", streamlit_helpers.format_number(nothing_value(trials)))
    cells[3].metric("Searched for", streamlit_helpers.format_duration(elapsed))
    cells[4].metric(
        *(("Time left", streamlit_helpers.format_duration(left)) if run.state == "running" else ("State", run.state))
    )
    if run.state == "running" and isinstance(n_trials, int) and n_trials:
        st.progress(min(1.0, len(trials) / n_trials))
    winner = run.summary.get("winner") or {}
    if winner.get("speedup") is not None:
        speed = interval(*(winner.get(name) for name in ("speedup", "low", "high")))
        st.success(
            f"The winner decodes {speed} times as fast as plain decoding on "
            f"{winner.get('n_prompts', 'some')} prompts that the search did not see.",
            icon=":material/emoji_events:",
        )
        if winner.get("in_doubt"):
            st.warning(f"This speedup is in doubt: {'; '.join(winner['in_doubt'])}.")
    verdict = run.summary.get("verdict") or {}
    if verdict.get("text"):
        st.caption(f"From the importance map: {verdict['text']}.")


def _n_layers(run: Run, trials: list[dict[str, Any]]) -> int:
    known = run.facts.get("n_layers")
    if isinstance(known, int):
        return known
    return 1 + max((layer for t in trials for layer in (*t.get("attn", ()), *t.get("mlp", ()))), default=0)


def _sets(best: Row, run: Run, n_layers: int) -> dict[str, SkipSet]:
    found: dict[str, SkipSet] = {}
    winner = run.summary.get("winner") or {}
    for name, text in (("best value", best["skip"]), ("winner of the finals", winner.get("skip"))):
        if text and str(text) not in map(str, found.values()):
            try:
                found[name] = SkipSet.parse(str(text), n_layers)
            except InputError:
                continue
    return found


def _elsewhere(run: Run) -> None:
    journal = run.path / "study.journal"
    if journal.is_file():
        st.caption("The same study in Optuna's own dashboard:")
        st.code(f"optuna-dashboard {shlex.quote(str(journal))}", language="bash")
