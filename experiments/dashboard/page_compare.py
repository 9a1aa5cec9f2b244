"""The page that compares skip sets: skipped sublayers, shared sublayers, and speedups on each data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from experiments.charts import comparing
from experiments.dashboard import streamlit_helpers
from experiments.results import skip_sets
from experiments.results.overlap import jaccard, only_in
from experiments.results.skip_sets import KnownSet

MOST = 8  # sets; more cannot be told apart in one figure


def draw(outputs: Path) -> None:
    """The page."""
    streamlit_helpers.show_title("Compare")
    found = streamlit_helpers.found_sets(streamlit_helpers.all_runs(outputs))
    models = list(dict.fromkeys(str(one.model) for one in found.values()))
    if all(one.source == "published" for one in found.values()):
        st.info("No run has found a set yet; these are the published ones. `selfspec search` finds yours.")
    left, right = st.columns([1, 3])
    model = left.selectbox("Model", ["all", *models], index=1 + models.index(_most_searched(found)))
    of_model = [label for label, one in found.items() if model in ("all", str(one.model))]
    chosen = right.multiselect(
        f"Skip sets (2 to {MOST})", of_model, default=_first(found, of_model), max_selections=MOST, key=f"sets-{model}"
    )
    picked = {label: found[label] for label in chosen}
    if not picked:
        st.info("Choose skip sets above.")
        return
    _side_by_side(picked)
    _measured(skip_sets.measured_rows(picked.values()))


def _most_searched(found: Mapping[str, KnownSet]) -> str:
    """The model with the most searched sets; without searched sets, the model with the most published sets."""
    own = [str(one.model) for one in found.values() if one.source != "published"]
    return Counter(own or [str(one.model) for one in found.values()]).most_common(1)[0][0]


def _first(found: Mapping[str, KnownSet], labels: Sequence[str]) -> list[str]:
    """The labels of three different sets, which the page shows first."""
    different = {(found[label].skip.n_layers, str(found[label].skip)): label for label in reversed(labels)}
    return [label for label in labels if label in different.values()][:3]


def _side_by_side(picked: Mapping[str, KnownSet]) -> None:
    lines = skip_sets.table(picked.values())
    st.dataframe(
        lines,
        hide_index=True,
        placeholder="–",
        alt="the chosen sets, one a line",
        column_config={
            "skipped": st.column_config.ProgressColumn("skipped sublayers", min_value=0, max_value=1, format="percent"),
            "acceptance": st.column_config.NumberColumn(format="%.3f", help="accepted / drafted tokens"),
            "draft cost": st.column_config.NumberColumn(format="%.3f", help="plain tokens per drafted token"),
            "tokens/round": st.column_config.NumberColumn(format="%.2f"),
            "predicted speedup": st.column_config.NumberColumn(format="%.2f×", help="by the search's cost table"),
            "measured speedup": st.column_config.TextColumn(help="per data set, with its 95 % interval"),
        },
    )
    skips = {label: one.skip for label, one in picked.items()}
    streamlit_helpers.chart(comparing.skip_map(skips), lines, name="skip-map", alt="sublayers that each set skips")
    sizes = {skip.n_layers for skip in skips.values()}
    if len(sizes) > 1:
        st.info(
            f"These sets are for models of {' and '.join(map(str, sorted(sizes)))} layers: they share no sublayers."
        )
    elif len(skips) > 1:
        left, right = st.columns(2)
        with left:
            st.subheader("Overlap")
            st.caption("Jaccard index: sublayers in both over sublayers in either.")
            pairs = [{"set": a, "other": b, "jaccard": jaccard(skips[a], skips[b])} for a in skips for b in skips]
            streamlit_helpers.chart(
                comparing.overlap(skips), pairs, name="overlap", alt="Jaccard index of every two sets"
            )
        with right:
            st.subheader("Only in one")
            st.caption("What each set skips and none of the others does.")
            only = [{"set": a, "skips alone": str(skip)} for a, skip in only_in(skips).items()]
            st.dataframe(only, hide_index=True, alt="what each set alone skips")


def _measured(rows: Sequence[dict[str, Any]]) -> None:
    st.subheader("Measured")
    if not rows:
        st.info("None of these sets was evaluated yet.")
        st.code("selfspec evaluate skip=RUN_FOLDER", language="bash")
        return
    left, right = st.columns(2)
    with left:
        st.caption("Speedup over plain decoding with its 95 % interval over prompts.")
        streamlit_helpers.chart(comparing.speedups(rows), rows, name="speedups", alt="speedup of each set per data set")
    with right:
        st.caption("What the search predicted, and what the clock said.")
        known = [row for row in rows if row["predicted"] is not None]
        streamlit_helpers.chart(
            comparing.predicted(rows), known, name="predicted", alt="measured over predicted speedup"
        )
    value = st.segmented_control(
        "How each set carries over to other data", ["speedup", "acceptance"], default="speedup"
    )
    name = "acceptance (accepted / drafted)" if value == "acceptance" else "speedup (× plain decoding)"
    figure = comparing.transfer(rows, value=value or "speedup", name=name)
    streamlit_helpers.chart(figure, rows, name="transfer", alt=f"{name} of each set on each data set")
