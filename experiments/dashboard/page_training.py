"""The page of one training: loss, acceptance by depth, expected speedup. It refreshes while the training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from experiments.charts import training
from experiments.dashboard import streamlit_helpers
from experiments.results.run_folder import Run
from experiments.results.trainings import looks, trained


def draw(outputs: Path) -> None:
    """The page."""
    streamlit_helpers.watched_page(outputs, "Training", "train", _training)


def _training(run: Run, rows: Sequence[Any]) -> None:
    found = trained(run, rows)
    cells = st.columns(5)
    speedup = streamlit_helpers.format_number(found.expected_speedup, 2)
    cells[0].metric("Expected speedup", speedup, help="over plain decoding, at the measured costs")
    cells[1].metric("Tokens a draft", found.draft_length or "–")
    cells[2].metric("Steps", found.steps, help=f"the best weights are those of step {found.best_step or '–'}")
    cells[3].metric("Trained for", streamlit_helpers.format_duration(found.seconds))
    cells[4].metric("Weights", "–" if found.n_weights is None else f"{found.n_weights / 1e6:.2f} M")
    st.caption(f"{found.drafter}, accepted by depth {found.by_depth}; {run.state}")
    if not rows:
        st.info("No step has ended yet; this page looks again every few seconds while the training runs.")
        return
    data = [
        {name: row.get(name) for name in ("step", "seconds", "loss", "expected_speedup")}
        | {f"depth {depth}": a for depth, a in enumerate(row.get("conditional", ()), start=1)}
        for row in rows
    ]
    alt = "loss, and acceptance of held-out texts by depth, over steps"
    streamlit_helpers.chart(training.curve(rows), data, name="training", alt=alt)
    if run.is_finished:
        st.code(f"selfspec evaluate drafter={run.path} stop=searched lookup=searched", language="bash")
    with st.expander("Looks at held-out texts"):
        chosen = {row["step"] for row in looks(rows)}
        lines = [line for line in data if line["step"] in chosen]
        st.dataframe(lines, placeholder="–", hide_index=True, alt="looks at held-out texts, one a line")
