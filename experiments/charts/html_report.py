"""One HTML file of some runs, to mail or to put beside a paper: it needs no network and no program but a browser.

The same figures as the dashboard's, with plotly's script inside the file once. Light or dark as the reader's system is.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from experiments.charts import comparing, evaluating, searching, theme
from experiments.results import skip_sets
from experiments.results.overlap import only_in
from experiments.results.run_folder import Run
from experiments.results.tables import ArmRow, arm_rows, number, speedup_text, text, verdict_sentences
from selfspec.records import run_files

TITLE = "Self-speculative decoding: report"
_MOST_SETS = 8  # that can be told apart side by side
_STYLE = """
:root{color-scheme:light dark;--ink:#222;--dim:#5a5a5a;--ground:#fff;--line:#d9d9d9;--soft:#f5f6f8}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--dim:#a8a8a8;--ground:#12161d;--line:#343b46;--soft:#1b212b}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:1120px;margin:0 auto;
 padding:1.5rem 1rem 4rem}
h1{font-size:1.9rem;margin:.2rem 0}h2{margin:2.6rem 0 .6rem;font-size:1.35rem}
h3{margin:1.8rem 0 .3rem;font-size:1.05rem}
p.dim,figcaption{color:var(--dim);font-size:.9rem}ul{padding-left:1.2rem}figure{margin:1rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;width:100%}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{background:var(--soft);font-weight:600}code{font-size:.85em}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:0 1.5rem}
"""
_INK = """
const dark=matchMedia('(prefers-color-scheme:dark)');
function ink(){const c=dark.matches?'%s':'%s';document.querySelectorAll('.plotly-graph-div').forEach(g=>{
 const l={'font.color':c,'legend.font.color':c,'title.font.color':c};
 for(const a of ['xaxis','yaxis']){l[a+'.title.font.color']=c;l[a+'.tickfont.color']=c}
 (g.layout.annotations||[]).forEach((_,i)=>l['annotations['+i+'].font.color']=c);
 Plotly.relayout(g,l);g.data.forEach((t,i)=>{
 const b=t.colorbar?'colorbar':t.marker&&t.marker.colorbar?'marker.colorbar':0;
 if(b)Plotly.restyle(g,{[b+'.tickfont.color']:c,[b+'.title.font.color']:c},[i])})})}
ink();dark.addEventListener('change',ink);
"""


def write_html(runs: Sequence[Run], path: Path) -> None:
    """Write the report of the runs: tables, figures, and their skip sets side by side.

    Args:
        runs: evaluate and search runs, finished or not.
        path: the file; replaced whole if it is there.

    Raises:
        InputError: if the rows of a run cannot be read.
    """
    arms = [row for run in runs if run.verb == "evaluate" for row in arm_rows(run)]
    parts = [_sentences(arms), _arms(arms)]
    parts += [_evaluation(run) for run in runs if run.verb == "evaluate"]
    parts += [_sets(runs, arms)]
    parts += [_search(run) for run in runs if run.verb == "search"]
    parts += [_conditions(runs)]
    run_files.write_text(path, _page("\n".join(parts)))


def _page(body: str) -> str:
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body><main>"
        f'<h1>{TITLE}</h1><p class="dim">made {when} by <code>selfspec report format=html</code></p>\n{body}\n</main>'
        f"<script>{_INK % (theme.INK[True], theme.INK[False])}</script></body></html>\n"
    )


def _figure(figure: go.Figure, caption: str) -> str:
    if not figure.data:
        return ""
    name = caption.partition(".")[0].lower().replace(" ", "-")
    image = {"format": "svg", "filename": name}
    config = {"displaylogo": False, "responsive": True, "toImageButtonOptions": image}
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    label = html.escape(caption, quote=True)
    return f'<figure role="group" aria-label="{label}">{drawn}<figcaption>{label}</figcaption></figure>'


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "".join(line(cells, "td") for cells in body)
    return (
        f'<div class="wide" tabindex="0"><table><thead>{line(header, "th")}</thead><tbody>{rows}</tbody></table></div>'
    )


def _sentences(arms: Sequence[ArmRow]) -> str:
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in verdict_sentences(arms))
    return f"<ul>{said}</ul>" if said else ""


def _arms(arms: Sequence[ArmRow]) -> str:
    if not arms:
        return ""
    header = [
        "model",
        "data",
        "arm",
        "prompts",
        "acceptance",
        "tokens/round",
        "tokens/s",
        "speedup [95 %]",
        "identical",
    ]
    body = [
        [
            *(row.model, row.data, row.arm, str(row.n), number(row.acceptance, 3), number(row.tokens_per_round, 2)),
            *([number(row.tokens_per_s, 1), speedup_text(row)] if row.is_judged else ["–", "–"]),
            "baseline" if row.is_baseline else f"{row.n_identical}/{row.n}",
        ]
        for row in arms
    ]
    timed = [
        asdict(row) | {"label": row.arm, "data": f"{row.model}, {row.data}"}
        for row in arms
        if not row.is_baseline and row.is_judged and row.speedup == row.speedup
    ]
    picture = _figure(comparing.speedups(timed), "Speedup over plain decoding, with its 95 % interval over prompts.")
    return f"<h2>Arms</h2>{_table(header, body)}{picture}"


def _evaluation(run: Run) -> str:
    rows = [row for row in run.records().whole() if row["error"] is None]
    if not rows:
        return ""
    pictures = _figure(evaluating.position_acceptance(rows), "Acceptance by position in the draft.")
    pictures += _figure(evaluating.time_split(rows), "Where the seconds go.")
    return f'<h3>{html.escape(run.name)}</h3><div class="pair">{pictures}</div>'


def _sets(runs: Sequence[Run], arms: Sequence[ArmRow]) -> str:
    """The sets of these runs side by side; published ones only where they were evaluated."""
    searched = [found for run in runs if run.verb == "search" and (found := _searched(run)) is not None]
    every = skip_sets.collect(searched, arms)
    chosen = {label: one for label, one in every.items() if one.source != "published" or one.measured}
    chosen = dict(list(chosen.items())[:_MOST_SETS])
    if not chosen:
        return ""
    skips = {label: one.skip for label, one in chosen.items()}
    lines = skip_sets.table(chosen.values())
    parts = ["<h2>Skip sets</h2>", _table(list(lines[0]), [[_cell(v) for v in line.values()] for line in lines])]
    parts += [_figure(comparing.skip_map(skips), "Sublayers that each set skips.")]
    if len(skips) > 1 and len({skip.n_layers for skip in skips.values()}) == 1:
        only = [[label, str(skip)] for label, skip in only_in(skips).items()]
        parts += [_figure(comparing.overlap(skips), "Overlap. Jaccard index: sublayers in both over those in either.")]
        parts += [_table(["set", "skipped by no other"], only)]
    measured = skip_sets.measured_rows(chosen.values())
    if len({row["data"] for row in measured}) > 1:
        parts += [_figure(comparing.transfer(measured), "Transfer. Speedup of each set on each data set.")]
    return "".join(parts)


def _searched(run: Run) -> skip_sets.KnownSet | None:
    return skip_sets.searched_set(run, run.trials().whole())


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _search(run: Run) -> str:
    trials = sorted(run.trials().whole(), key=lambda row: row["number"])
    if not trials:
        return ""
    objective, n_layers = str(run.facts.get("objective")), run.facts.get("n_layers")
    pair = _figure(searching.best_so_far(trials, objective=objective), "Best so far over trials.")
    pair += _figure(
        searching.trade_off(trials, objective=objective), "Acceptance over draft cost, with the Pareto front."
    )
    parts = [f'<h2>Search {html.escape(run.name)}</h2><div class="pair">{pair}</div>']
    if isinstance(n_layers, int):
        alone = searching.importance(trials, n_layers=n_layers, objective=objective)
        parts += [_figure(alone, "Importance. Change of value from skipping one sublayer alone.")]
        parts += [
            _figure(searching.bits(trials, n_layers=n_layers), "What good sets share. A line each, the best above.")
        ]
    return "".join(parts)


def _conditions(runs: Sequence[Run]) -> str:
    header = ["run", "state", "started", "model", "data", "dtype", "device", "threads"]
    names = ("model", "data", "dtype", "device", "threads")
    body = [
        [
            *(run.name, "finished" if run.is_finished else "unfinished", text(run.provenance.get("started"))),
            *(text(run.facts.get(name)) for name in names),
        ]
        for run in runs
    ]
    return f"<h2>Conditions</h2>{_table(header, body)}"
