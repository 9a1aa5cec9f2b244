"""The script of the dashboard: six pages about one folder of runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from experiments.dashboard import (
    page_calculator,
    page_compare,
    page_evaluation,
    page_runs,
    page_search,
    page_training,
)
from experiments.results.run_folder import Run

Draw = Callable[[Path], None]


def main(outputs: Path) -> None:
    """Draw the page that the user opened."""
    st.set_page_config(page_title="selfspec", page_icon="⚡", layout="wide")

    def page(draw: Draw, title: str, icon: str, path: str) -> st.Page:
        return st.Page(lambda: draw(outputs), title=title, icon=f":material/{icon}:", url_path=path)

    search = page(page_search.draw, "Search", "search_insights", "search")
    evaluation = page(page_evaluation.draw, "Evaluation", "speed", "evaluation")
    training = page(page_training.draw, "Training", "school", "training")
    of_verb = {"search": search, "evaluate": evaluation, "train": training}

    def open_run(run: Run) -> None:
        st.switch_page(of_verb[run.verb], query_params={"run": run.name})

    runs = page(lambda folder: page_runs.draw(folder, open_run), "Runs", "list", "runs")
    # Streamlit gives the first page no address of its own, so none of the six pages is the first page.
    home = st.Page(lambda: st.switch_page(runs), title="selfspec", default=True, visibility="hidden")
    compare = page(page_compare.draw, "Compare", "compare", "compare")
    calculator = page(page_calculator.draw, "Calculator", "calculate", "calculator")
    chosen = st.navigation([home, runs, search, compare, evaluation, training, calculator], position="top")
    st.html("<style>.stMainBlockContainer{padding:4.2rem 1.6rem 3rem;max-width:1440px}</style>")
    chosen.run()
    st.caption(f"Runs in `{outputs}`")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs"))
