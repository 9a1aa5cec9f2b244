"""What the pages share: runs read once for as long as they do not change, charts with downloads, and help.

The only memory is Streamlit's cache, keyed by the times and sizes of a run's files.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from experiments.charts import theme
from experiments.results import scan, skip_sets
from experiments.results.find_runs import Verb
from experiments.results.scan import Entry, Rows, Stamp
from experiments.results.tables import ArmRow, arm_rows
from selfspec.errors import InputError

REFRESH_S = 5.0  # how often a running search is looked at; chosen, not tuned
_KEPT_RUNS = 512  # whose rows stay in memory


@st.cache_resource(max_entries=4096, show_spinner=False)
def _entry(path: Path, outputs: Path, stamp: Stamp, minute: str) -> Entry:
    return scan.read(path, outputs, now=datetime.now(UTC))


@st.cache_resource(max_entries=_KEPT_RUNS, show_spinner=False)
def _rows(path: Path, stamp: Stamp, _entry: Entry) -> Rows:
    return scan.read_rows(_entry)


@st.cache_resource(max_entries=_KEPT_RUNS, show_spinner=False)
def _arms(path: Path, stamp: Stamp, _entry: Entry) -> list[ArmRow] | str:
    try:
        return arm_rows(_entry.run)
    except (InputError, TypeError, ValueError) as error:
        return str(error)


@st.cache_resource(max_entries=4096, show_spinner=False)
def _searched(path: Path, stamp: Stamp, _entry: Entry) -> skip_sets.Found | None:
    told = (_entry.summary.get("winner") or _entry.summary.get("best") or {}).get("skip")
    return skip_sets.searched(_entry, scan.read_rows(_entry, holding=json.dumps(told) if told else "").rows)


def entries(outputs: Path) -> list[Entry]:
    """All runs and what looks like one, the newest first."""
    minute = f"{datetime.now(UTC):%Y%m%dT%H%M}"
    found = []
    for path, stamp in scan.find(outputs).items():
        is_finished = any(name == "summary.json" for name, _, _ in stamp)
        found.append(_entry(path, outputs, stamp, "" if is_finished else minute))
    return sorted(found, key=lambda e: (e.started or datetime.min.replace(tzinfo=UTC), e.name), reverse=True)


def rows(entry: Entry) -> Rows:
    """The rows of a run, as they are on disk now."""
    return _rows(entry.path, scan.stamp(entry.path), entry)


def arms(entry: Entry) -> list[ArmRow] | str:
    """The arms of an evaluation, or why there are none."""
    return _arms(entry.path, scan.stamp(entry.path), entry)


def found(entry: Entry) -> skip_sets.Found | None:
    """What a search found, if anything yet."""
    return _searched(entry.path, scan.stamp(entry.path), entry)


def found_sets(all_entries: Sequence[Entry]) -> dict[str, skip_sets.Found]:
    """The skip sets of all runs, and the published ones, by label."""
    readable = [entry for entry in all_entries if entry.state != "unreadable"]
    searches = [found(e) for e in readable if e.verb == "search"]
    evaluated = [arms(e) for e in readable if e.verb == "evaluate"]
    return skip_sets.collect(
        [one for one in searches if one], [row for some in evaluated if not isinstance(some, str) for row in some]
    )


def pick(outputs: Path, verb: Verb) -> Entry | None:
    """The run of a verb that the user chooses; help instead, and None, if there is none."""
    runs = [entry for entry in entries(outputs) if entry.verb == verb and entry.state != "unreadable"]
    if not runs:
        explain_no_runs(outputs, verb)
        return None
    by_name = {entry.name: entry for entry in runs}
    asked = st.query_params.get("run")
    index = list(by_name).index(asked) if asked in by_name else 0
    chosen = st.selectbox("Run", list(by_name), index=index, format_func=lambda name: titled(by_name[name]))
    return by_name[str(chosen)]


def titled(entry: Entry) -> str:
    """A run in one line."""
    parts = [entry.facts.get(name) for name in ("model", "data", "searcher")]
    when = f"{entry.started:%Y-%m-%d %H:%M}" if entry.started else "unknown time"
    flag = "" if entry.state == "finished" else f" ({entry.state})"
    return f"{when} · {' · '.join(str(part) for part in parts if part)} · {entry.id[-8:]}{flag}"


def explain_no_runs(outputs: Path, verb: Verb | None = None) -> None:
    """What to do where there is nothing to show."""
    what = {"search": "search", "evaluate": "evaluation"}.get(str(verb), "run")
    st.info(
        f"No {what} in `{outputs}` yet. This page fills as soon as one has begun; make one:", icon=":material/info:"
    )
    if verb != "evaluate":
        st.code("selfspec search searcher.n_trials=60", language="bash")
    if verb != "search":
        st.code("selfspec evaluate skip=outputs/search", language="bash")
    st.caption("Runs elsewhere? Start the dashboard with `selfspec dashboard runs=FOLDER`.")


def tell_problems(problems: Sequence[str]) -> None:
    """Rows that could not be read, if there are any."""
    if problems:
        with st.expander(f"{len(problems)} rows cannot be read and are left out", icon=":material/warning:"):
            st.code("\n".join(problems[:50]), language=None)


def chart(figure: go.Figure, data: Sequence[Mapping[str, Any]], *, name: str, alt: str) -> None:
    """A chart with its downloads: the picture from its toolbar, the numbers below it.

    Args:
        figure: what to draw.
        data: the numbers in it.
        name: of the files; unlike any other's on the page.
        alt: what is drawn, in words.
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


def head(title: str) -> None:
    """The page's title, and what the charts' camera button gives."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.title(title)
    right.radio("Pictures as", ["svg", "png"], format_func=str.upper, horizontal=True, key="picture")


def to_csv(data: Sequence[Mapping[str, Any]]) -> str:
    """The rows with full precision; empty where there is no number."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in data for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in data:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    return file.getvalue()


def number(value: float | None, digits: int = 3) -> str:
    """A number to read; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def span(seconds: float | None) -> str:
    """A time to read: `42 s`, `12 min`, `3.5 h`."""
    if seconds is None or math.isnan(seconds):
        return "–"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
