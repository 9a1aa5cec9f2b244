"""The sections of the report on systems: speed by class of text, counts and costs, and why systems lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.paper.section import Cell, Section, Table, Value
from experiments.results.tables import SPEEDUP, cautions, number
from experiments.systems.account import reason
from experiments.systems.figure import scatter
from experiments.systems.systems import DEPTHS, System
from experiments.systems.text_class import in_order, text_class

TO_DO = "selfspec reproduce experiment=systems/smollm2-135m data_folder=FOLDER"
ANOTHER = " (another output)"
PUBLISHED = (
    "Published: the figure of the authors, or of Spec-Bench where it says so, on their own models and machines; it "
    "cannot be compared with a speedup here."
)
MEMORY = "MB: tensors that the draft holds besides the model. Trained on: answer tokens of the model's own text."
ROUND = (
    "A round gives one token as plain decoding would, and the accepted ones besides. It pays for drafting accepted "
    "tokens (c), for drafting rejected ones (acceptance), for verifying beyond one plain token (verification), and for "
    "the rest (overhead), all in plain tokens: it loses where it pays more than it gains."
)
BY_DEPTH = f"By depth: of tokens at depths 1 to {DEPTHS} that were judged, the accepted ones; of a tree, in its order."


def speeds(systems: Sequence[System]) -> Section:
    """A row for each system, a column for each class of text."""
    stem, title = "systems", "All systems: speedup by class of text"
    classes = in_order({text_class(arm.run) for s in systems for arm in s.arms})
    if not any(arm.row.drafted for s in systems for arm in s.arms):
        return Section(stem, title, to_do=TO_DO)
    columns = ["model", "system", *classes, "all"]
    body: list[list[Value]] = [
        [s.model, name_of(s), *(s.speedup(text) for text in classes), s.speedup()] for s in systems
    ]
    rows = [arm.row for s in systems for arm in s.arms]
    lines = [SPEEDUP, *cautions(rows), *best(systems, classes)]
    lines += [PREPARED] if (drawn := scatter(systems)) else []
    return Section(stem, title, Table(columns, body), {"systems_preparation": drawn} if drawn else {}, lines)


PREPARED = "The picture: speedup over all texts against the seconds of training and search before the first prompt."


def best(systems: Sequence[System], classes: Sequence[str]) -> list[str]:
    """A sentence on each class of text: its fastest system with the model's own output."""
    found = []
    for model in dict.fromkeys(s.model for s in systems):
        for text in classes:
            own = [s for s in systems if s.model == model and not s.is_another_output and not s.is_baseline]
            timed = [(s, cell) for s in own if not math.isnan((cell := s.speedup(text)).here)]
            if timed:
                first, cell = max(timed, key=lambda pair: pair[1].here)
                found.append(f"Fastest on {text}, {model}: {first.name}, {cell} (of {len(timed)} systems).")
    return found


def costs(systems: Sequence[System]) -> Section:
    """A row for each system: what its rounds give and take, what it needed before, and how exact its outputs are."""
    stem, title = "systems_costs", "All systems: rounds, costs, preparation, outputs"
    columns = ["model", "system", "tokens/round", "by depth", "c", "draft/verify/other", "MB", "training s"]
    columns += ["search s", "trained on", "predicted", "identical", "near ties", "mismatches", "published"]
    body = [_costs(s) for s in systems]
    sources = [f"{s.name}: {read_out(row)} ({row['source']})." for s in systems for row in s.published]
    notes = [BY_DEPTH, MEMORY, PUBLISHED, *dict.fromkeys(sources)]
    return Section(stem, title, Table(columns, body) if body else None, notes=notes, to_do=TO_DO)


def _costs(system: System) -> list[Value]:
    found, prepared = system.account, system.prepared
    n_bytes = system.extra_bytes
    is_compared = not (system.is_baseline or system.is_another_output or system.count("n_not_compared"))
    verdict = [system.count(n) if is_compared else "–" for n in ("n_identical", "n_near_ties", "n_mismatches")]
    return [
        *(system.model, name_of(system)),
        Cell(1 + found.accepted if found else math.nan),
        " ".join(number(a, 2) for a in system.by_depth) or "–",
        Cell(found.draft_cost if found else math.nan, digits=3),
        "/".join(number(share, 2) for share in found.shares) if found else "–",
        Cell(math.nan if n_bytes is None else n_bytes / 1e6, digits=1),
        *(Cell(math.nan if s is None else s, digits=0) for s in (prepared.training_s, prepared.search_s)),
        "–" if prepared.n_tokens is None else prepared.n_tokens,
        _predicted(system),
        *verdict,
        "; ".join(read_out(row) for row in system.published) or "–",
    ]


def _predicted(system: System) -> str:
    """Predicted over measured speedups of the searches' drafts, less 1: `+0.03 -0.02`, one for each evaluation."""
    errors = []
    for arm in system.arms:
        promise = (arm.run.summary.get("predicted") or {}).get(arm.row.arm)
        if promise and arm.speedup.here > 0:
            errors.append(f"{float(promise) / arm.speedup.here - 1:+.2f}")
    return " ".join(errors) or "–"


def losses(systems: Sequence[System]) -> Section:
    """A line for each system that is slower than plain decoding, with the reason from its own counts."""
    stem, title = "systems_losses", "Where systems lose, and why"
    body: list[list[Value]] = []
    for system in systems:
        if system.is_baseline or system.is_another_output:
            continue
        slow = [t for t in in_order({text_class(a.run) for a in system.arms}) if system.speedup(t).here < 1]
        if not slow:
            continue
        losing = System(system.model, system.name, [arm for t in slow for arm in system.of(t)])
        found = losing.account
        why = reason(found) if found else "it records no rounds, so the reason is unknown"
        body.append([system.model, system.name, ", ".join(slow), losing.speedup(), why])
    table = Table(["model", "system", "loses on", "speedup", "why"], body) if body else None
    return Section(stem, title, table, notes=[ROUND], to_do=f"nothing loses in these runs, or there are none: {TO_DO}")


def name_of(system: System) -> str:
    """The name of a system in tables, with a mark if its text is not the model's own."""
    return system.name + ANOTHER * system.is_another_output


def read_out(row: Mapping[str, Any]) -> str:
    """A published figure with its model and hardware: `3.01x on GSM8K, Vicuna-7B, A100`."""
    unit = {"speedup": "x", "tokens_per_round": " tokens a round", "acceptance": " accepted"}.get(row["metric"], "")
    ends = {"high": "up to ", "low": "from "}.get(str(row.get("bound")), "")
    where = [str(row[key]) for key in ("over", "model", "hardware") if row.get(key)]
    value = f"{row['value']:+g}" if row.get("is_gain") else f"{row['value']:g}"
    return f"{ends}{value}{unit} on {', '.join(where)}" if where else f"{ends}{value}{unit}"
