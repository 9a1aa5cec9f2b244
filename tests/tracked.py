"""What a run of W&B holds, read back from its files by wandb's own reader; a home without its user's login."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

OF_THE_USER = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC")
FOLDERS = ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")


@dataclass(frozen=True, slots=True)
class Tracked:
    """One run.

    Attributes:
        folder: `wandb sync` takes it.
        about: project, group, job type, tags, name.
        config: nested.
        history: what was shown, call by call.
        artifacts: by name, without those that tables make: kind, aliases and the names of the files.
    """

    folder: Path
    about: dict[str, Any]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    artifacts: dict[str, dict[str, Any]]
    exit_code: int

    def series(self, name: str) -> list[Any]:
        """All values of one name, in order."""
        return [item[name] for item in self.history if name in item]

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        (path,) = self.series(f"{name}.path")
        body = json.loads((self.folder / "files" / path).read_text())
        return [dict(zip(body["columns"], cells, strict=True)) for cells in body["data"]]


def tracked(run: Path) -> Tracked:
    """The only run of W&B in a run folder."""
    (folder,) = (run / "wandb").glob("offline-run-*")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    read = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    records = [json.loads(line) for line in read.stdout.splitlines()]

    def of(kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in records if record["type"] == kind]

    (about,), (end,) = of("run"), of("exit")
    config = {name: value for name, value in about.pop("config")["update"].items() if name != "_wandb"}
    artifacts = {
        a["name"]: {
            "kind": a["type"],
            "aliases": set(a["aliases"]),
            "files": [c["path"] for c in a["manifest"]["contents"]],
        }
        for a in of("artifact")
        if a["type"] != "run_table"
    }
    items = [item["item"] for item in of("history")]
    return Tracked(folder, about, config, items, artifacts, end.get("exit_code", 0))


@contextmanager
def own_home(home: Path) -> Iterator[pytest.MonkeyPatch]:
    """No login of this machine, and no settings of it, while it lasts."""
    pytest.importorskip("wandb", reason="the wandb package is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(home))
        for name in OF_THE_USER:
            patch.delenv(name, raising=False)
        yield patch


def files_holding(folder: Path, words: str) -> list[Path]:
    """The files below a folder in which the words stand; of a process that ended, all that it wrote."""
    return [p for p in folder.rglob("*") if p.is_file() and words.encode() in p.read_bytes()]
