"""The page of all runs: filter, sort, open one; and what in the folder is no run, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import streamlit as st

from experiments.dashboard import streamlit_helpers
from experiments.results.scan import Entry

FILTERS = ("model", "data", "searcher", "objective")


def draw(outputs: Path, open_run: Callable[[Entry], None] | None = None) -> None:
    """The page.

    Args:
        outputs: the folder with the runs.
        open_run: goes to the page of one run.
    """
    st.title("Runs")
    found = streamlit_helpers.entries(outputs)
    readable = [entry for entry in found if entry.state != "unreadable"]
    if not readable:
        streamlit_helpers.explain_no_runs(outputs)
    else:
        _table(_filtered(readable), open_run)
    _unreadable([entry for entry in found if entry.state == "unreadable"])


def _filtered(entries: Sequence[Entry]) -> list[Entry]:
    kept = list(entries)
    columns = st.columns(len(FILTERS) + 2)
    verbs = columns[0].multiselect("Kind", sorted({entry.verb for entry in entries}), placeholder="all")
    kept = [entry for entry in kept if not verbs or entry.verb in verbs]
    for column, name in zip(columns[1:], FILTERS, strict=False):
        values = sorted({str(e.facts[name]) for e in entries if e.facts.get(name) is not None})
        chosen = column.multiselect(name.capitalize(), values, placeholder="all", disabled=not values)
        kept = [entry for entry in kept if not chosen or str(entry.facts.get(name)) in chosen]
    days = sorted(entry.started.date() for entry in entries if entry.started)
    if days:
        ends = columns[-1].date_input("Started (UTC)", (days[0], days[-1]), days[0], days[-1])
        if isinstance(ends, tuple) and len(ends) == 2:
            kept = [entry for entry in kept if _within(entry, *ends)]
    return kept


def _within(entry: Entry, first: date, last: date) -> bool:
    return entry.started is None or first <= entry.started.date() <= last


def _table(entries: Sequence[Entry], open_run: Callable[[Entry], None] | None) -> None:
    if not entries:
        st.info("No run fits all filters; clear one of them.", icon=":material/filter_alt_off:")
        return
    states = [entry.state for entry in entries]
    st.caption(
        f"{len(entries)} runs: {states.count('finished')} finished, {states.count('running')} running, "
        f"{states.count('stopped')} stopped early. Choose a line to open its run; a column's head sorts."
    )
    lines = [_line(entry) for entry in entries]
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
            "best": st.column_config.NumberColumn("best", format="%.3f", help="the objective's value of a search"),
            "speedup": st.column_config.NumberColumn(
                "raced speedup", format="%.2f×", help="of a search's winner, by the clock, on prompts it did not see"
            ),
        },
    )
    picked = chosen.get("selection", {}).get("rows", []) if isinstance(chosen, dict) else []
    if picked and picked[0] < len(entries):
        _details(entries[picked[0]], open_run)
    st.download_button(
        "CSV",
        lambda: streamlit_helpers.to_csv(lines),
        "runs.csv",
        "text/csv",
        type="tertiary",
        icon=":material/download:",
    )


def _line(entry: Entry) -> dict[str, Any]:
    best, winner = entry.summary.get("best") or {}, entry.summary.get("winner") or {}
    return {
        "started": entry.started,
        "kind": entry.verb,
        **{name: entry.facts.get(name) for name in FILTERS},
        "state": entry.state,
        "rows": entry.n_rows,
        "best": best.get("value"),
        "speedup": winner.get("speedup"),
        "run": entry.name,
    }


def _details(entry: Entry, open_run: Callable[[Entry], None] | None) -> None:
    with st.container(border=True):
        st.markdown(f"**{streamlit_helpers.titled(entry)}**")
        best = (entry.summary.get("winner") or entry.summary.get("best") or {}).get("skip")
        if best:
            st.code(f"skip={best!r}", language=None)
        names = ("dtype", "device", "threads", "stop", "draft", "n_prompts", "n_layers", "seed")
        st.caption(" · ".join(f"{name} {entry.facts[name]}" for name in names if entry.facts.get(name) is not None))
        if open_run and st.button("Open", type="primary", icon=":material/open_in_new:"):
            open_run(entry)


def _unreadable(entries: Sequence[Entry]) -> None:
    if not entries:
        return
    with st.expander(f"{len(entries)} folders that cannot be read as runs", icon=":material/warning:"):
        st.dataframe(
            [{"folder": entry.name, "why": entry.problem} for entry in entries],
            hide_index=True,
            alt="folders that are no runs, and why",
        )
