"""Helpers of all pages: cached readers of runs, charts with downloads, and help texts.

A run is read again only if it changes. Streamlit's cache is the only memory; its keys are times and sizes of files.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from experiments.charts import theme
from experiments.results import skip_sets
from experiments.results.find_runs import newest_first
from experiments.results.rows import Rows
from experiments.results.run_facts import Settings
from experiments.results.run_folder import Run, Stamp, Verb, open_run, run_folders, stamp
from experiments.results.tables import ArmRow, arms_or_problem
from selfspec.errors import InputError
from selfspec.records import run_files

REFRESH_S = 5.0  # seconds between two looks at a running search; chosen, not tuned
_KEPT_RUNS = 512  # runs with rows in memory


@st.cache_resource(max_entries=4096, show_spinner=False)
def _opened(path: Path, outputs: Path, stamp: Stamp, minute: str) -> Run:
    return open_run(path, outputs)


@st.cache_resource(max_entries=_KEPT_RUNS, show_spinner=False)
def _rows(path: Path, stamp: Stamp, _run: Run) -> Rows[Any]:
    return _run.rows()


@st.cache_resource(max_entries=_KEPT_RUNS, show_spinner=False)
def _arms(path: Path, stamp: Stamp, _run: Run) -> list[ArmRow] | str:
    return arms_or_problem(_run)


@st.cache_resource(max_entries=4096, show_spinner=False)
def _searched(path: Path, stamp: Stamp, _run: Run) -> skip_sets.KnownSet | None:
    skip = (_run.summary.get("winner") or _run.summary.get("best") or {}).get("skip")
    return skip_sets.searched_set(_run, _run.trials(holding=json.dumps(skip) if skip else "").rows)


def all_runs(outputs: Path) -> list[Run]:
    """All runs and the folders that look like runs, the newest first."""
    minute = f"{datetime.now(UTC):%Y%m%dT%H%M}"
    found = []
    for path, seen in run_folders(outputs).items():
        is_finished = any(name == run_files.SUMMARY for name, _, _ in seen)
        found.append(_opened(path, outputs, seen, "" if is_finished else minute))
    return newest_first(found)


def rows(run: Run) -> Rows[Any]:
    """The rows of a run that are on disk now."""
    return _rows(run.path, stamp(run.path), run)


def arms(run: Run) -> list[ArmRow] | str:
    """The arms of an evaluation, or the reason why they cannot be read."""
    return _arms(run.path, stamp(run.path), run)


def searched_set(run: Run) -> skip_sets.KnownSet | None:
    """The set that a search found; None if there is none yet."""
    return _searched(run.path, stamp(run.path), run)


def config(run: Run) -> Settings:
    """The settings of a run; empty if they are unreadable."""
    try:
        return run.config()
    except InputError:
        return {}


def found_sets(runs: Sequence[Run]) -> dict[str, skip_sets.KnownSet]:
    """Label to skip set, for the sets of all runs and the published sets."""
    readable = [run for run in runs if run.is_readable]
    searches = [searched_set(run) for run in readable if run.verb == "search"]
    evaluated = [arms(run) for run in readable if run.verb == "evaluate"]
    return skip_sets.collect(
        [one for one in searches if one], [row for some in evaluated if not isinstance(some, str) for row in some]
    )


def choose_run(outputs: Path, verb: Verb) -> Run | None:
    """The run of a verb that the user chooses; None if there is no run, and the page then shows help."""
    by_name = {run.name: run for run in all_runs(outputs) if run.verb == verb and run.is_readable}
    if not by_name:
        explain_no_runs(outputs, verb)
        return None
    wanted = st.query_params.get("run")
    index = list(by_name).index(wanted) if wanted in by_name else 0
    chosen = st.selectbox("Run", list(by_name), index=index, format_func=lambda name: run_title(by_name[name]))
    return by_name[str(chosen)]


def run_title(run: Run) -> str:
    """A run in one line."""
    parts = [run.facts.get(name) for name in ("model", "data", "searcher")]
    when = f"{run.started:%Y-%m-%d %H:%M}" if run.started else "unknown time"
    flag = "" if run.state == "finished" else f" ({run.state})"
    return f"{when} · {' · '.join(str(part) for part in parts if part)} · {run.id[-8:]}{flag}"


def explain_no_runs(outputs: Path, verb: Verb | None = None) -> None:
    """Show the user how to make a first run."""
    what = {"search": "search", "evaluate": "evaluation", "train": "training"}.get(str(verb), "run")
    st.info(
        f"No {what} in `{outputs}` yet. This page fills as soon as one has begun; make one:", icon=":material/info:"
    )
    commands = {
        "search": "selfspec search searcher.n_trials=60",
        "evaluate": "selfspec evaluate skip=outputs/search",
        "train": "selfspec collect data=gsm8k; selfspec train drafter=eagle",
    }
    for name, command in commands.items():
        if verb in (None, name):
            st.code(command, language="bash")
    st.caption("Runs elsewhere? Start the dashboard with `selfspec dashboard runs=FOLDER`.")


def show_problems(problems: Sequence[str]) -> None:
    """Show the unreadable rows, if any."""
    if problems:
        with st.expander(f"{len(problems)} rows cannot be read and are left out", icon=":material/warning:"):
            st.code("\n".join(problems[:50]), language=None)


def chart(figure: go.Figure, data: Sequence[Mapping[str, Any]], *, name: str, alt: str) -> None:
    """Show a chart with downloads: its toolbar offers the picture, a link below it offers the numbers.

    Args:
        figure: figure to draw.
        data: numbers in the figure.
        name: name of the files; unique on the page.
        alt: description of the figure in words.
    """
    if not figure.data or not data:
        st.caption(f"{alt}: nothing to draw yet.")
        return
    form = st.session_state.get("picture", "svg")
    theme.inked(figure, is_dark=st.context.theme.type == "dark")
    image = {"format": form, "filename": name, "scale": 2}
    st.plotly_chart(
        figure, key=name, alt=alt, config={"displaylogo": False, "responsive": True, "toImageButtonOptions": image}
    )
    st.download_button(
        "CSV", lambda: to_csv(data), f"{name}.csv", "text/csv", key=f"{name}-csv", type="tertiary",
        icon=":material/download:", help="The numbers of this chart; its picture is in the toolbar above it",
    )  # fmt: skip


def show_title(title: str) -> None:
    """Show the title of the page and the choice of the format for pictures of charts."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.title(title)
    right.radio("Pictures as", ["svg", "png"], format_func=str.upper, horizontal=True, key="picture")


def watched_page(outputs: Path, title: str, verb: Verb, show: Callable[[Run, Sequence[Any]], None]) -> None:
    """A page of one run that is drawn anew every few seconds while the run goes on.

    Args:
        outputs: the folder of all runs.
        title: of the page.
        verb: of the runs to choose from.
        show: draws the run and its rows.
    """
    show_title(title)
    run = choose_run(outputs, verb)
    if run is not None:
        is_running = run.state == "running"
        every = REFRESH_S if is_running else None
        st.fragment(_watched, run_every=every)(run.path, outputs, show, is_watched=is_running)


def _watched(path: Path, outputs: Path, show: Callable[[Run, Sequence[Any]], None], *, is_watched: bool) -> None:
    run = next(e for e in all_runs(outputs) if e.path == path)  # read again: the run may have gone on
    if is_watched and run.state != "running":
        st.rerun()  # redraws the whole page, which then stops refreshing
    read = rows(run)
    show_problems(read.problems)
    show(run, read.rows)


def to_csv(data: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV with full precision; the cell of a missing number is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in data for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in data:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    return file.getvalue()


def format_number(value: float | None, digits: int = 3) -> str:
    """The rounded number as text; a dash for a missing number."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_duration(seconds: float | None) -> str:
    """The duration as text: `42 s`, `12 min`, `3.5 h`."""
    if seconds is None or math.isnan(seconds):
        return "–"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
