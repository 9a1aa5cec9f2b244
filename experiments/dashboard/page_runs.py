"""The page of all runs: users filter, sort and open them. Unreadable folders are listed with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import streamlit as st

from experiments.dashboard import streamlit_helpers
from experiments.results.run_folder import Run

FILTERS = ("model", "data", "searcher", "objective")


def draw(outputs: Path, open_run: Callable[[Run], None] | None = None) -> None:
    """The page.

    Args:
        outputs: the folder with the runs.
        open_run: opens the page of one run.
    """
    st.title("Runs")
    found = streamlit_helpers.all_runs(outputs)
    readable = [run for run in found if run.is_readable]
    if not readable:
        streamlit_helpers.explain_no_runs(outputs)
    else:
        _table(_filtered(readable), open_run)
    _unreadable([run for run in found if not run.is_readable])


def _filtered(runs: Sequence[Run]) -> list[Run]:
    kept = list(runs)
    columns = st.columns(len(FILTERS) + 2)
    verbs = columns[0].multiselect("Kind", sorted({run.verb for run in runs}), placeholder="all")
    kept = [run for run in kept if not verbs or run.verb in verbs]
    for column, name in zip(columns[1:], FILTERS, strict=False):
        values = sorted({str(e.facts[name]) for e in runs if e.facts.get(name) is not None})
        chosen = column.multiselect(name.capitalize(), values, placeholder="all", disabled=not values)
        kept = [run for run in kept if not chosen or str(run.facts.get(name)) in chosen]
    days = sorted(run.started.date() for run in runs if run.started)
    if days:
        ends = columns[-1].date_input("Started (UTC)", (days[0], days[-1]), days[0], days[-1])
        if isinstance(ends, tuple) and len(ends) == 2:
            kept = [run for run in kept if _within(run, *ends)]
    return kept


def _within(run: Run, first: date, last: date) -> bool:
    return run.started is None or first <= run.started.date() <= last


def _table(runs: Sequence[Run], open_run: Callable[[Run], None] | None) -> None:
    if not runs:
        st.info("No run fits all filters; clear one of them.", icon=":material/filter_alt_off:")
        return
    states = [run.state for run in runs]
    n_stopped = states.count("stopped") + states.count("interrupted")
    st.caption(
        f"{len(runs)} runs: {states.count('finished')} finished, {states.count('running')} running, "
        f"{n_stopped} stopped early. Choose a line to open its run; a column's head sorts."
    )
    lines = [_line(run) for run in runs]
    chosen = st.dataframe(
        lines,
        hide_index=True,
        placeholder="–",
        on_select="rerun",
        selection_mode="single-row",
        key="runs",
        height=min(38 + 35 * len(lines), 600),
        alt="all runs, one a line",
        column_config={
            "started": st.column_config.DatetimeColumn("started (UTC)", format="YYYY-MM-DD HH:mm"),
            "best": st.column_config.NumberColumn(
                "best", format="%.3f", help="of a search its value, of a training the expected speedup"
            ),
            "speedup": st.column_config.NumberColumn(
                "raced speedup", format="%.2f×", help="of a search's winner, by the clock, on prompts it did not see"
            ),
        },
    )
    picked = chosen.get("selection", {}).get("rows", []) if isinstance(chosen, dict) else []
    if picked and picked[0] < len(runs):
        _details(runs[picked[0]], open_run)
    st.download_button(
        "CSV",
        lambda: streamlit_helpers.to_csv(lines),
        "runs.csv",
        "text/csv",
        type="tertiary",
        icon=":material/download:",
    )


def _line(run: Run) -> dict[str, Any]:
    best, winner = run.summary.get("best") or {}, run.summary.get("winner") or {}
    return {
        "started": run.started,
        "kind": run.verb,
        **{name: run.facts.get(name) for name in FILTERS},
        "state": run.state,
        "rows": run.n_rows,
        "best": best.get("value", run.summary.get("expected_speedup")),
        "speedup": winner.get("speedup"),
        "run": run.name,
    }


def _details(run: Run, open_run: Callable[[Run], None] | None) -> None:
    with st.container(border=True):
        st.markdown(f"**{streamlit_helpers.run_title(run)}**")
        best = (run.summary.get("winner") or run.summary.get("best") or {}).get("skip")
        if best:
            st.code(f"skip={best!r}", language=None)
        names = ("dtype", "device", "threads", "stop", "draft", "n_prompts", "n_layers", "seed")
        st.caption(" · ".join(f"{name} {run.facts[name]}" for name in names if run.facts.get(name) is not None))
        if open_run and st.button("Open", type="primary", icon=":material/open_in_new:"):
            open_run(run)


def _unreadable(runs: Sequence[Run]) -> None:
    if not runs:
        return
    with st.expander(f"{len(runs)} folders that cannot be read as runs", icon=":material/warning:"):
        st.dataframe(
            [{"folder": run.name, "why": run.problem} for run in runs],
            hide_index=True,
            alt="folders that are no runs, and why",
        )
