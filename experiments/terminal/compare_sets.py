"""A comparison of skip sets: skipped sublayers, shared sublayers, and speedups on each data set.

This module knows sets and their evaluations. It must not know models or where a set comes from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from experiments.results import skip_sets
from experiments.results.find_runs import list_runs
from experiments.results.named_drafts import ComparedSet, named_sets, recorded_predictions
from experiments.results.overlap import jaccard, n_shared, only_in
from experiments.results.skip_sets import KnownSet
from experiments.results.tables import ArmRow, arms_or_problem, number
from experiments.terminal import run_list, skip_map_text
from experiments.terminal.run_list import plain, plain_table
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping.skip_set import SkipSet

FEWEST, MOST = 2, 8  # number of sets that one comparison can show clearly


def compare(words: Sequence[str], outputs: Path, *, n_layers: int | None = None) -> tuple[Any, list[RenderableType]]:
    """The comparison of the sets that the words name: as facts, and as parts to print.

    Args:
        words: names of sets, see `named_sets`.
        outputs: folder of the runs; its evaluations of these sets give the speedups.
        n_layers: number of layers of the model for written sets; None takes it from the other sets.

    Raises:
        InputError: if a word names nothing, or there are fewer than `FEWEST` or more than `MOST` sets.
    """
    chosen = named_sets(words, outputs, n_layers=n_layers)
    if not FEWEST <= len(chosen) <= MOST:
        what = f"{len(chosen)} {'set' if len(chosen) == 1 else 'sets'}"
        raise InputError(f"{' '.join(words)} names {what} to compare; name {FEWEST} to {MOST}")
    evaluations = _evaluations({str(one.found.skip) for one in chosen}, outputs)
    facts = {
        "sets": _sets(chosen, evaluations.rows),
        "pairs": _pairs([one.found.skip for one in chosen]),
        "left_out": evaluations.problems,
    }
    return facts, list(_lines([one.found.skip for one in chosen], facts))


@dataclass(frozen=True, slots=True)
class _Evaluations:
    """Arms, each with the predictions that its run recorded, and a line about each unreadable run."""

    rows: list[tuple[ArmRow, Mapping[str, Any]]]
    problems: list[str]


def _evaluations(skips: set[str], outputs: Path) -> _Evaluations:
    """The arms of all evaluations that skip one of these sets."""
    found = _Evaluations([], [])
    needles = [json.dumps(skip).encode() for skip in skips - {"none"}]
    for run in list_runs(None, outputs):
        file = run.path / run_files.RECORDS
        if run.verb != "evaluate" or not run.is_readable or not file.is_file():
            continue
        held = file.read_bytes()
        if not any(needle in held for needle in needles):
            continue
        rows, recorded = arms_or_problem(run), recorded_predictions(run)
        if isinstance(rows, str):
            found.problems.append(f"{run.name}: {rows}")
        else:
            found.rows.extend((row, recorded.get(row.arm, {})) for row in rows if row.skip in skips)
    return found


def _sets(chosen: Sequence[ComparedSet], evaluated: Sequence[tuple[ArmRow, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    skips = dict.fromkeys(one.found.skip for one in chosen)
    alone = {skip: only_in({str(s): s for s in skips if s.n_layers == skip.n_layers})[str(skip)] for skip in skips}
    lines = skip_sets.table([one.found for one in chosen])
    described = []
    for place, (one, line) in enumerate(zip(chosen, lines, strict=True), start=1):
        found, (attn, mlp) = one.found, skip_map_text.rows(one.found.skip)
        own: Mapping[str, Any] = {"draft": one.draft, "predicted": found.predicted}
        measured = [(row, own) for row in found.measured] or [
            (r, recorded) for r, recorded in evaluated if _is_of(found, r)
        ]
        described.append(
            {"number": place, "set": found.label}
            | {name: plain(line[name]) for name in ("source", "model", "layers", "skip", "skipped", "acceptance")}
            | {"n_skipped": len(found.skip), "draft": one.draft, "draft_cost": plain(found.draft_cost)}
            | {"tokens_per_round": plain(found.tokens_per_round), "predicted": plain(found.predicted)}
            | {"raced": one.raced, "attention": attn, "mlp": mlp, "only_here": str(alone[found.skip])}
            | {"measured": [_measured(row, recorded) for row, recorded in measured]}
        )
    return described


def _is_of(found: KnownSet, row: ArmRow) -> bool:
    """Whether the arm skips this set, and the two do not name different models."""
    return (row.skip, row.n_layers) == (str(found.skip), found.skip.n_layers) and found.model in (None, row.model)


def _measured(row: ArmRow, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's numbers, and the speedup that was predicted for its draft."""
    return run_list.facts_of_arm(row) | {
        "run": row.run,
        "draft": recorded.get("draft"),
        "predicted": recorded.get("predicted"),
    }


def _pairs(skips: Sequence[SkipSet]) -> list[dict[str, Any]]:
    """The sublayers that every two sets of one depth share."""
    return [
        {"sets": [i + 1, j + 1], "both": n_shared(a, b), "jaccard": plain(jaccard(a, b))}
        for (i, a), (j, b) in combinations(enumerate(skips), 2)
        if a.n_layers == b.n_layers
    ]


def _lines(skips: Sequence[SkipSet], facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    header = ("", "set", "model", "sublayers", "draft", "acceptance", "draft cost", "tokens/round", "predicted")
    table = plain_table(*header, "raced [95 %]")
    for one in facts["sets"]:
        about = (
            one["set"],
            one["model"] or "–",
            f"{one['n_skipped']} of {2 * one['layers']}",
            one["draft"] or "–",
        )
        raced = run_list.interval(*one["raced"].values()) if one["raced"] else "–"
        cells = (_cell(one[name], d) for name, d in (("acceptance", 3), ("draft_cost", 3), ("tokens_per_round", 2)))
        table.add_row(str(one["number"]), *map(Text, about), *cells, _cell(one["predicted"], 2), raced)
    yield table
    yield Text("")
    same: dict[SkipSet, list[str]] = {}  # drafts with equal skip sets share one map
    for place, skip in enumerate(skips, start=1):
        same.setdefault(skip, []).append(str(place))
    yield skip_map_text.skip_map(*((", ".join(numbers), skip) for skip, numbers in same.items()))
    if len(same) > 1:
        yield from _agreement({int(numbers[0]): ", ".join(numbers) for numbers in same.values()}, facts)
    yield Text("\nMeasured: speedup over plain decoding, 95 % interval over prompts", style="bold")
    table = plain_table("", "data", "arm", "draft", "acceptance", "tokens/round", "predicted", "speedup [95 %]", "run")
    for one in facts["sets"]:
        for row in one["measured"]:
            names = (row["data"], row["arm"], row["draft"] or "–")
            counts = _cell(row["acceptance"], 3), _cell(row["tokens_per_round"], 2), _cell(row["predicted"], 2)
            speed = run_list.interval(row["speedup"], row["low"], row["high"])
            table.add_row(str(one["number"]), *map(Text, names), *counts, speed, Text(row["run"]))
    yield table if table.rows else Text("None of these sets was evaluated yet: selfspec evaluate skip=SET")
    yield from (Text(f"left out: {problem}", style="red") for problem in facts["left_out"])


def _agreement(labels: Mapping[int, str], facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The sublayers that different sets share, and those of each set alone; one label stands for all equal sets."""
    yield Text("\nOverlap: sublayers in both, and over those in either (Jaccard)", style="bold")
    table = plain_table("sets", "both", "Jaccard")
    for pair in facts["pairs"]:
        if all(place in labels for place in pair["sets"]):
            both = " | ".join(labels[place] for place in pair["sets"])
            table.add_row(both, str(pair["both"]), _cell(pair["jaccard"], 2))
    yield table if table.rows else Text("These sets are for models of different depths: they share no sublayers.")
    yield Text("\nSkipped by one alone", style="bold")
    table = plain_table("sets", "skip")
    for one in facts["sets"]:
        if one["number"] in labels:
            table.add_row(labels[one["number"]], Text(one["only_here"]))
    yield table


def _cell(value: float | None, digits: int) -> str:
    return number(math.nan if value is None else value, digits)
