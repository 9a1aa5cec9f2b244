"""Runs without rows of their own: profiles, reports, reproduced experiments and simulated serving; what each came to.

`runs show` takes them as it takes searches, evaluations, trainings and stores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from experiments.results.run_folder import name_of
from experiments.results.tables import number
from selfspec.records import run_files

FOLDERS = ("profile", "report", "reproduce", "serve-sim")
STEPS = "steps.jsonl"


def list_others(word: str, outputs: Path) -> list[dict[str, Any]]:
    """The facts of the profiles, reports and experiments that a word names: a folder, an id, or a part of an id."""
    folders = [path for path in (Path(word).expanduser(), outputs / word) if (path / run_files.PROVENANCE).is_file()]
    every = [file.parent for verb in FOLDERS for file in outputs.glob(f"{verb}/*/*/{run_files.PROVENANCE}")]
    found = folders[:1] or [path for path in every if path.name == word] or [p for p in every if word in p.name]
    return [facts for facts in (_facts(path.resolve(), outputs) for path in found) if facts["verb"] in FOLDERS]


def _facts(path: Path, outputs: Path) -> dict[str, Any]:
    summary, provenance = _read(path / run_files.SUMMARY), _read(path / run_files.PROVENANCE)
    typed = path / run_files.OVERRIDES
    verb, ran = path.parent.parent.name, provenance.get("run") or {}
    words = typed.read_text(encoding="utf-8").split("\n") if typed.is_file() else []
    steps = {}
    if (path / STEPS).is_file():
        rows = map(_parsed, (path / STEPS).read_text(encoding="utf-8").splitlines())
        steps = {str(row["step"]): str(row["run"]) for row in rows if {"step", "run"} <= row.keys()}
    return {
        **{"name": name_of(path, outputs), "path": str(path), "verb": verb},
        "command": " ".join([verb, *filter(None, words)]),
        "state": "finished" if run_files.is_finished(path) else "stopped",
        "summary": summary,
        "steps": steps,
        "conditions": {name: value for name, value in ran.items() if isinstance(value, bool | int | float | str)},
    }


def _read(file: Path) -> dict[str, Any]:
    return _parsed(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object; empty for anything else, since a run may have been killed while it wrote."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def shown(facts: Mapping[str, Any], styles: Mapping[str, str]) -> Iterator[RenderableType]:
    """The parts to print."""
    state = Text(facts["state"], style=styles[facts["state"]])
    yield Text.assemble(Text(facts["name"], style="bold"), f"  {facts['verb']}, ", state)
    yield Text(f"selfspec {facts['command']}")
    yield from (Text(f"{name}: {value}") for name, value in facts["conditions"].items())
    check = facts["summary"].get("check")
    if isinstance(check, Mapping):
        worst, median = (number(float(check[name]), 3) for name in ("worst", "median"))
        yield Text(f"predicted against measured cost of {check['n']} skip sets: median {median}, worst {worst}")
    yield from (Text(f"step {name}: {run}") for name, run in facts["steps"].items())
