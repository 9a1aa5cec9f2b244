"""The skip sets that a user names: by runs, files, published names, or as written sets.

`selfspec.drafters.spec_files.find_draft` resolves names other than runs. This module knows run folders. It must not
know what callers do with the sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.results import skip_sets
from experiments.results.find_runs import list_runs
from experiments.results.run_folder import Run
from experiments.results.skip_sets import KnownSet
from experiments.results.tables import arms_or_problem
from selfspec.drafters.spec_files import NamedDraft, find_draft
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping import plan_files
from selfspec.skipping.skip_set_files import unknown_draft

UNIT = "x plain decoding"  # of a value that predicts a speedup


def predicted_value(body: Mapping[str, Any]) -> float | None:
    """The predicted speedup that the file of a draft holds; None if it holds none."""
    # The value on the search's own prompts is too high, that on its fresh ones a little.
    value = next((body[name] for name in ("expected", "fresh_value", "value") if body.get(name) is not None), None)
    return float(value) if body.get("unit") == UNIT and value is not None else None


@dataclass(frozen=True, slots=True)
class ComparedSet:
    """One set of the comparison.

    Attributes:
        found: the set with its known facts.
        draft: the parts of the draft besides the skip set, if a plan names them.
        raced: speedup, low and high from the search's race against plain decoding, on calibration prompts.
    """

    found: KnownSet
    draft: str | None = None
    raced: Mapping[str, float | None] | None = None


def named_sets(words: Sequence[str], outputs: Path, *, n_layers: int | None = None) -> list[ComparedSet]:
    """The sets that the words name, in the order of the words.

    Args:
        words: names that `find_draft` knows, and runs: a search names its set, an evaluation each of its drafts.
        outputs: folder of the runs.
        n_layers: number of layers of the model for written sets; None takes it from the other sets.

    Raises:
        InputError: if a word names nothing, or the depth for a written set is unknown.
    """
    found = [_named(word, outputs) for word in words]
    depths = {one.found.skip.n_layers for some in found if isinstance(some, list) for one in some}
    return [
        one for some in found for one in ([_written(some, n_layers, depths)] if isinstance(some, NamedDraft) else some)
    ]


def _named(word: str, outputs: Path) -> NamedDraft | list[ComparedSet]:
    """The sets that a word names; a written set stays a `NamedDraft`, because its model is not known yet."""
    path, draft = Path(word).expanduser(), None
    if not os.path.isfile(path / run_files.PROVENANCE):  # a run holds more facts than its draft files
        try:
            draft = find_draft(word)
        except InputError:
            if os.path.isfile(path):
                raise
    if draft is not None and draft.kind != "written":
        return [_filed(draft)]
    if draft is not None and draft.is_well_written:
        return draft
    runs = [run for run in list_runs(word, outputs) if run.is_readable]
    if runs:
        return [one for run in runs for one in _sets_of(run)]
    if draft is not None:
        return draft
    raise unknown_draft(word, runs=[run.id for run in list_runs(None, outputs)])


def _written(draft: NamedDraft, n_layers: int | None, depths: set[int]) -> ComparedSet:
    if n_layers is None and len(depths) != 1:
        what = "sets of several depths" if depths else "written sets alone"
        raise InputError(f"{draft.name!r} is compared with {what}; tell the layers of its model: --layers N")
    return ComparedSet(KnownSet(draft.name, "written", None, draft.skip(n_layers or next(iter(depths)))))


def _filed(draft: NamedDraft) -> ComparedSet:
    """The set of a skip-set file, of a plan file, or of a published name."""
    if draft.kind == "published":
        return ComparedSet(next(one for one in skip_sets.published_sets() if one.label == draft.name))
    model = draft.settings.get("model")
    found = KnownSet(
        draft.name,
        "file",
        None if model is None else str(model),
        draft.skip(),
        predicted=predicted_value(draft.settings),
    )
    return ComparedSet(found, draft=_plan(draft.settings) if draft.kind == "plan" else None)


def _plan(body: Mapping[str, Any]) -> str:
    """The parts of a plan's file besides the skip set, as text: `linear, head 4096, int8`."""
    parts = [str(body.get("kind", "skip"))]
    parts += [f"head {body['head_size']}"] if body.get("head_size") else []
    parts += [str(body["precision"])] if body.get("precision") not in (None, "same") else []
    return ", ".join(parts)


def _sets_of(run: Run) -> Iterator[ComparedSet]:
    if run.verb == "train":
        raise InputError(f"{run.name} is a training, whose head takes the place of all sublayers; it has no skip set")
    return _searched(run) if run.verb == "search" else _evaluated(run)


def _searched(run: Run) -> Iterator[ComparedSet]:
    found = skip_sets.searched_set(run, run.trials().rows)
    if found is None:
        raise InputError(f"{run.name} has scored no set yet; leave it out, or wait for its first trial")
    winner = run.summary.get("winner") or {}
    file = run.path / plan_files.NAME
    draft = _plan(plan_files.read_plan_file(file)) if file.is_file() else None
    raced = {name: winner.get(name) for name in ("speedup", "low", "high")}
    yield ComparedSet(found, draft=draft, raced=raced if winner else None)


def _evaluated(run: Run) -> Iterator[ComparedSet]:
    rows = arms_or_problem(run)
    if isinstance(rows, str):
        raise InputError(f"{run.name} cannot be compared: {rows}")
    recorded = recorded_predictions(run)
    for row in rows:
        skip = row.skip_set
        if row.is_baseline or skip is None:
            continue
        found = KnownSet(
            f"{row.arm} · {row.data} · {row.run[-8:]}",
            "evaluation",
            row.model,
            skip,
            acceptance=row.acceptance,
            tokens_per_round=row.tokens_per_round,
            predicted=recorded[row.arm]["predicted"] if row.arm in recorded else None,
            measured=(row,),
        )
        yield ComparedSet(found, draft=recorded[row.arm]["draft"] if row.arm in recorded else None)


def recorded_predictions(run: Run) -> dict[str, dict[str, Any]]:
    """Arm name to its recorded `draft` and its `predicted` speedup, each None if it was not recorded."""
    arms, predicted = run.facts.get("arms"), run.summary.get("predicted") or {}
    described = arms if isinstance(arms, Mapping) else {}
    return {arm: {"draft": about.get("draft"), "predicted": predicted.get(arm)} for arm, about in described.items()}
