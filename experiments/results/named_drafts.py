"""The skip sets that words name: of runs, of files, published, or written as they are.

Knows run folders and files; knows nothing of what is made of the sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.evaluation.predicted import promised
from experiments.results import scan, skip_sets
from experiments.results.scan import Entry
from experiments.results.skip_sets import Found
from experiments.terminal import run_list
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.skipping import plan_files, skip_set_files
from selfspec.skipping.skip_set import SYNTAX, SkipSet


@dataclass(frozen=True, slots=True)
class Compared:
    """One set of the comparison.

    Attributes:
        found: the set, and what is known of it.
        draft: what stands in for what is skipped, if a plan tells.
        raced: speedup, low and high of the search's race against plain decoding, on calibration prompts.
    """

    found: Found
    draft: str | None = None
    raced: Mapping[str, float | None] | None = None


def named_sets(words: Sequence[str], outputs: Path, *, n_layers: int | None = None) -> list[Compared]:
    """The sets that the words name, in that order.

    Args:
        words: runs (of an evaluation: each of its drafts), files of skip sets or plans, published names, written sets.
        outputs: the folder of the runs.
        n_layers: of the model that written sets are for; None: of the other sets.

    Raises:
        InputError: if a word names nothing, or a written set's model is not known.
    """
    named = {word: list(_named(word, outputs)) for word in words if not _is_written(word)}
    depths = {one.found.skip.n_layers for some in named.values() for one in some}
    return [one for word in words for one in named.get(word) or [_written(word, n_layers, depths)]]


def _is_written(word: str) -> bool:
    return word == "none" or SYNTAX.fullmatch(word) is not None


def _written(word: str, n_layers: int | None, depths: set[int]) -> Compared:
    if n_layers is None and len(depths) != 1:
        what = "sets of several depths" if depths else "written sets alone"
        raise InputError(f"{word!r} is compared with {what}; tell the layers of its model: --layers N")
    return Compared(Found(word, "written", None, SkipSet.parse(word, n_layers or next(iter(depths)))))


def _named(word: str, outputs: Path) -> Iterator[Compared]:
    if word in skip_set_files.published():
        yield Compared(next(one for one in skip_sets.published_sets() if one.label == word))
        return
    path = Path(word).expanduser()
    if path.is_file() or _holds_a_set(path):
        yield _filed(path)
        return
    entries = [entry for entry in run_list.entries(word, outputs) if entry.state != "unreadable"]
    if not entries:
        raise InputError(
            f"no run, file of a skip set, or published set {word!r}; `selfspec runs list` shows the runs, and a set is "
            "written like 'a3,5-9 m7'"
        )
    for entry in entries:
        yield from _searched(entry) if entry.verb == "search" else _evaluated(entry)


def _holds_a_set(path: Path) -> bool:
    """Whether it is a folder with a set, such as a model's, and not a run's."""
    return path.is_dir() and (path / skip_set_files.NAME).is_file() and not (path / run_files.PROVENANCE).is_file()


def _filed(path: Path) -> Compared:
    """The set of a file: of a skip set, or of a plan."""
    file = path / skip_set_files.NAME if path.is_dir() else path
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        body = None
    facts: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    is_plan = "attn" not in facts and isinstance(facts.get("n_layers"), int) and "skip" in facts
    skip = SkipSet.parse(str(facts["skip"]), facts["n_layers"]) if is_plan else skip_set_files.load_skip_set(file)
    model = facts.get("model")
    found = Found(str(path), "file", None if model is None else str(model), skip, predicted=promised(str(file)))
    return Compared(found, draft=_plan(facts) if is_plan else None)


def _plan(body: Mapping[str, Any]) -> str:
    """What a plan's file says of its draft, but for the skip set: `linear, head 4096, int8`."""
    parts = [str(body.get("kind", "skip"))]
    parts += [f"head {body['head_size']}"] if body.get("head_size") else []
    parts += [str(body["precision"])] if body.get("precision") not in (None, "same") else []
    return ", ".join(parts)


def _searched(entry: Entry) -> Iterator[Compared]:
    found = skip_sets.searched(entry, scan.read_rows(entry).rows)
    if found is None:
        raise InputError(f"{entry.name} has scored no set yet; leave it out, or wait for its first trial")
    winner = entry.summary.get("winner") or {}
    file = entry.path / plan_files.NAME
    draft = _filed(file).draft if file.is_file() else None
    raced = {name: run_list.plain(winner.get(name)) for name in ("speedup", "low", "high")}
    yield Compared(found, draft=draft, raced=raced if winner else None)


def _evaluated(entry: Entry) -> Iterator[Compared]:
    rows = run_list.arms(entry)
    if isinstance(rows, str):
        raise InputError(f"{entry.name} cannot be compared: {rows}")
    told = promises(entry)
    for row in rows:
        skip = row.skip_set
        if row.is_baseline or skip is None:
            continue
        found = Found(
            f"{row.arm} · {row.data} · {row.run[-8:]}",
            "evaluation",
            row.model,
            skip,
            acceptance=row.acceptance,
            tokens_per_round=row.tokens_per_round,
            predicted=told[row.arm]["predicted"] if row.arm in told else None,
            measured=(row,),
        )
        yield Compared(found, draft=told[row.arm]["draft"] if row.arm in told else None)


def promises(entry: Entry) -> dict[str, dict[str, Any]]:
    """What an evaluation recorded of its arms: the `draft` of each, and the speedup `predicted` of it, or None."""
    arms, predicted = entry.facts.get("arms"), entry.summary.get("predicted") or {}
    described = arms if isinstance(arms, Mapping) else {}
    return {arm: {"draft": about.get("draft"), "predicted": predicted.get(arm)} for arm, about in described.items()}
