"""A user's own folder, as the documentation shows it: stop rule, searchers, data set, drafter, controller."""

from __future__ import annotations

import shutil
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
FILES = {
    file.relative_to(EXAMPLES / "mine").as_posix(): file.read_text(encoding="utf-8")
    for file in sorted((EXAMPLES / "mine").rglob("*"))
    if file.suffix in (".py", ".yaml")
}


def write_plugins(folder: Path) -> Path:
    """A copy of the folder, with all of `FILES`."""
    shutil.copytree(EXAMPLES / "mine", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
