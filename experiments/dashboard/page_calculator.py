"""The calculator page: expected speedup over acceptance, cost and length of a draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from experiments.charts import calculating
from experiments.dashboard import streamlit_helpers
from experiments.results.run_folder import Run
from selfspec.measure.closed_form import best_length, chance_of_acceptance, expected_speedup


def draw(outputs: Path) -> None:
    """The page."""
    streamlit_helpers.show_title("Calculator")
    st.caption(
        "What a draft of K tokens brings, if each is accepted with the same chance. Drag the sliders; the stars are "
        "the best sets of your searches."
    )
    cells = st.columns(4)
    chance = cells[0].slider(
        "Chance of acceptance", 0.0, 1.0, 0.8, 0.01, help="per drafted token, those before accepted"
    )
    cost = cells[1].slider("Draft cost c", 0.05, 1.0, 0.5, 0.01, help="plain tokens per drafted token")
    n_drafted = cells[2].slider("Draft length K", 1, 24, 5, help="tokens drafted a round")
    verify = cells[3].slider(
        "Verification v", 1.0, 3.0, 1.1, 0.05, help="cost of verifying K + 1 tokens, in plain tokens"
    )
    speedup = expected_speedup(chance, n_drafted=n_drafted, draft_cost=cost, verify_cost=verify)
    best = best_length(chance, draft_cost=cost, verify_cost=verify)
    best_speedup = expected_speedup(chance, n_drafted=best, draft_cost=cost, verify_cost=verify)
    shown_best = st.columns(3)
    shown_best[0].metric("Expected speedup", f"{speedup:.2f}×", f"{speedup - 1:+.2f}")
    shown_best[1].metric("Best draft length", f"{best} tokens")
    shown_best[2].metric("Speedup there", f"{best_speedup:.2f}×", f"{best_speedup - 1:+.2f}")
    points = [point for run in streamlit_helpers.all_runs(outputs) if (point := _point(run)) is not None]
    left, right = st.columns(2)
    with left:
        st.subheader(f"At K = {n_drafted}")
        figure = calculating.surface(points, n_drafted=n_drafted, verify=verify)
        data = points or [{"chance": chance, "cost": cost, "speedup": speedup}]
        streamlit_helpers.chart(
            figure, data, name="surface", alt="expected speedup over chance of acceptance and draft cost"
        )
    with right:
        st.subheader(f"At c = {cost:.2f}")
        figure = calculating.lengths(chance, cost=cost, verify=verify, n_drafted=n_drafted)
        curve: list[dict[str, Any]] = [
            {"n_drafted": k, "speedup": expected_speedup(chance, n_drafted=k, draft_cost=cost, verify_cost=verify)}
            for k in range(1, 25)
        ]
        streamlit_helpers.chart(figure, curve, name="lengths", alt="expected speedup over the draft length")
    st.caption(
        "(1 + a + … + aᴷ) / (K·c + v): Leviathan et al. 2023 (arXiv:2211.17192), theorem 3.8, with v in place of 1. "
        "The chance a of a run is what explains its accepted / drafted, as if every round drafted as many "
        "tokens as rounds do on average."
    )


def _point(run: Run) -> dict[str, Any] | None:
    """The best set of a search; None if its costs or counts are unknown."""
    if run.verb != "search" or not run.is_readable:
        return None
    found = streamlit_helpers.searched_set(run)
    if found is None or found.draft_cost is None:
        return None
    if found.tokens_per_round is None or not found.acceptance:
        return None
    length = max(1, round((found.tokens_per_round - 1) / found.acceptance))
    chance = chance_of_acceptance(found.acceptance, length)
    return {"label": found.label, "chance": chance, "cost": found.draft_cost, "speedup": found.predicted}
