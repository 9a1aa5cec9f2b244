"""Stores of `selfspec collect` in a list of runs: whose text they hold, and how much of it.

Of a shard only the header is read, which is JSON, so that a list needs neither torch nor the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from experiments.results.run_folder import name_of

FOLDER, FILE = "store", "store.json"
DEPTHS = ("", "*/", f"{FOLDER}/*/")  # a store, a folder of stores, or outputs
LARGEST_HEADER = 1 << 20  # bytes; a header of more is damage


def list_stores(word: str | None, outputs: Path) -> list[dict[str, Any]]:
    """The facts of the stores that a word names, the newest first; None for unknown facts.

    Args:
        word: a folder, or a part of a store's name, model or data, with the wildcards `*` and `?`; None: all stores.
        outputs: folder of the runs.
    """
    folders = [path for path in ((Path(word).expanduser(), outputs / word) if word else ()) if path.is_dir()]
    below = {file.parent.resolve() for folder in folders for depth in DEPTHS for file in folder.glob(depth + FILE)}
    every = {file.parent.resolve() for file in outputs.glob(f"{FOLDER}/*/{FILE}")}
    found = [_facts(path, outputs) for path in below or every]
    if word and not below:
        found = [facts for facts in found if fnmatchcase(_known(facts), f"*{word}*")]
    return sorted(found, key=lambda facts: (str(facts["started"]), str(facts["name"])), reverse=True)


def in_brief(facts: Mapping[str, Any]) -> str:
    """A store in one line."""
    if facts["problem"]:
        return str(facts["problem"])
    layers = ", ".join(map(str, facts["layers"]))
    return f"{facts['n_tokens']} answer tokens of {facts['n_texts']} texts, hidden states of layers {layers}"


def _known(facts: Mapping[str, Any]) -> str:
    return " ".join(str(facts[name]) for name in ("name", "model", "data") if facts[name])


def _facts(path: Path, outputs: Path) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(("model", "data", "problem", "n_tokens", "n_texts"))
    changed = datetime.fromtimestamp((path / FILE).stat().st_mtime, UTC)
    facts |= {"name": name_of(path, outputs), "path": str(path), "verb": FOLDER, "state": "stopped", "layers": []}
    facts["started"] = f"{changed:%Y-%m-%dT%H:%M:%SZ}"
    try:
        about = json.loads((path / FILE).read_text(encoding="utf-8"))
        content, told = about["content"], about.get("facts") or {}
        shards = sorted(path.glob("[0-9]*.safetensors"))
        counts = [_counts(shard) for shard in shards]
        facts |= {"model": told.get("model"), "data": told.get("data"), "layers": list(content["layers"])}
        facts |= {"n_tokens": sum(n for n, _ in counts), "n_texts": sum(n for _, n in counts)}
        wanted = content.get("samples", 1) * -(-told.get("n_prompts", 0) // content.get("batch", 1))
        facts["state"] = "finished" if shards and len(shards) >= wanted else "stopped"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        facts |= {"state": "unreadable", "problem": f"cannot be read ({type(error).__name__}: {error})"}
    return facts


def _counts(shard: Path) -> tuple[int, int]:
    """Numbers of answer tokens and of texts; each answer has one row of likeliest tokens more than tokens."""
    with shard.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"{shard.name} is no shard")
        header = json.loads(file.read(size))
    n_texts = header["n_ids"]["shape"][0]
    return header["top_ids"]["shape"][0] - n_texts, n_texts
