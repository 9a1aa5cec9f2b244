"""The page of one evaluation: speedups, acceptance by position, seconds, and a comparison of answers by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import streamlit as st

from experiments.charts import comparing, evaluating
from experiments.dashboard import streamlit_helpers, token_sources
from experiments.results import figure_data
from experiments.results.run_folder import Run
from experiments.results.tables import BASELINE, ArmRow, same_text
from experiments.results.verdicts import verdict_sentences


def draw(outputs: Path) -> None:
    """The page."""
    streamlit_helpers.show_title("Evaluation")
    run = streamlit_helpers.choose_run(outputs, "evaluate")
    if run is None:
        return
    read, arms = streamlit_helpers.rows(run), streamlit_helpers.arms(run)
    streamlit_helpers.show_problems(read.problems)
    if isinstance(arms, str):
        st.warning(f"No table of this run: {arms}", icon=":material/warning:")
    else:
        _table(arms)
    whole = [row for row in read.rows if row.get("error") is None and "round_drafted" in row]
    if not whole:
        st.info("No prompt was decoded yet.")
        return
    _rounds(whole)
    _answers(whole, run)


def _table(arms: Sequence[ArmRow]) -> None:
    for sentence in verdict_sentences(arms):
        st.info(sentence, icon=":material/gavel:")
    data = [asdict(row) for row in arms]
    drafts = [line | {"label": line["arm"]} for line, row in zip(data, arms, strict=True) if not row.is_baseline]
    timed = [line for line, row in zip(drafts, [r for r in arms if not r.is_baseline], strict=True) if row.is_judged]
    st.subheader("Speedup")
    timed = [line for line in timed if line["speedup"] == line["speedup"]]
    streamlit_helpers.chart(
        comparing.speedups(timed), timed, name="speedup", alt="speedup of every arm with its 95 % interval"
    )
    lines = [
        {
            "arm": row.arm,
            "prompts": row.n,
            "acceptance": row.acceptance,
            "tokens/round": row.tokens_per_round,
            "tokens/s": row.tokens_per_s if row.is_judged else None,
            "speedup": row.speedup if row.is_judged else None,
            "identical": same_text(row),
            "near ties": row.n_near_ties,
            "mismatches": row.n_mismatches,
            "skip": row.skip,
        }
        for row in arms
    ]
    form = {"acceptance": "%.3f", "tokens/round": "%.2f", "tokens/s": "%.1f", "speedup": "%.2f×"}
    columns = {name: st.column_config.NumberColumn(format=f) for name, f in form.items()}
    st.dataframe(lines, hide_index=True, placeholder="–", alt="the arms, one a line", column_config=columns)


def _rounds(rows: Sequence[dict[str, Any]]) -> None:
    left, right = st.columns(2)
    with left:
        st.subheader("Acceptance by position")
        data = [
            {"arm": arm, "position": p.number, "drafted": p.drafted, "judged": p.judged, "accepted": p.accepted}
            for arm, ours in figure_data.answered_by_arm(rows).items()
            for p in figure_data.positions(ours)
        ]
        figure = evaluating.position_acceptance(rows)
        streamlit_helpers.chart(
            figure, data, name="position", alt="accepted part of the tokens judged at each position"
        )
    with right:
        st.subheader("Where the seconds go")
        names = ("arm", "prompt_id", "n_tokens", "prefill_s", "draft_s", "verify_s", "other_s", "total_s")
        seconds = [{name: row.get(name) for name in names} for row in rows]
        streamlit_helpers.chart(
            evaluating.time_split(rows), seconds, name="seconds", alt="seconds per 100 tokens, by what they went to"
        )
    with st.expander("The stop rule's threshold, round by round", icon=":material/show_chart:"):
        course = [
            {"arm": row["arm"], "prompt_id": row["prompt_id"], "round": i, "threshold": threshold}
            for row in rows
            for i, threshold in enumerate(row["round_threshold"], start=1)
            if threshold is not None
        ]
        streamlit_helpers.chart(
            evaluating.thresholds(rows), course, name="threshold", alt="stop threshold over rounds, by arm"
        )


@st.cache_resource(max_entries=8, show_spinner=False)
def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _answers(rows: Sequence[dict[str, Any]], run: Run) -> None:
    st.subheader("Answers, token by token")
    prompts = list(dict.fromkeys(str(row["prompt_id"]) for row in rows))
    prompt = st.selectbox("Prompt", prompts)
    ours = {str(row["arm"]): row for row in rows if str(row["prompt_id"]) == prompt}
    drafts = [arm for arm, row in ours.items() if row["drafted"]]
    first = [BASELINE] if BASELINE in ours else []
    chosen = st.multiselect("Arms", list(ours), default=(first + drafts)[:2], max_selections=4)
    if not chosen:
        return
    has_pieces = any("pieces" in row for row in ours.values())
    file = None if has_pieces else token_sources.tokenizer_file(streamlit_helpers.config(run))
    tokenizer = _tokenizer(file) if file else None
    if tokenizer is None and not has_pieces:
        st.caption("The model's tokenizer is not on this machine, so token ids stand for the text.")
    st.html(f"<style>{token_sources.STYLE}</style>{token_sources.legend()}")
    baseline = ours.get(BASELINE)
    for column, arm in zip(st.columns(len(chosen)), chosen, strict=True):
        row = ours[arm]
        at = None if baseline is None or arm == BASELINE else token_sources.parting(baseline["tokens"], row["tokens"])
        with column:
            st.markdown(f"**{arm}**")
            st.caption(_answer_in_brief(row, at))
            st.html(token_sources.answer(row, tokenizer=tokenizer, parts_at=at))


def _answer_in_brief(row: dict[str, Any], at: int | None) -> str:
    rate = f"{row['accepted']}/{row['drafted']} drafted accepted, {row['n_rounds']} rounds, " if row["drafted"] else ""
    verdict = str(row.get("verdict", "")).replace("_", " ")
    gap = f", top-2 gap {row['top2_gap']:.4f}" if row.get("top2_gap") is not None else ""
    parts = f"; first difference at token {at}{gap}" if at is not None else ""
    return f"{row['n_tokens']} tokens in {row['total_s']:.2f} s, {rate}{verdict}{parts}"
