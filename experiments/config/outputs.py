"""The folder of run folders, for code that does not compose a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

SETTING = "paths.outputs="


def outputs_of(words: Sequence[str]) -> Path:
    """The folder that the last `paths.outputs=FOLDER` of a command names, or else the default one."""
    named = [word.removeprefix(SETTING) for word in words if word.startswith(SETTING)]
    return Path(named[-1]).expanduser() if named else default_outputs()


def default_outputs() -> Path:
    """The default folder of run folders."""
    file = resources.files("conf").joinpath("paths/default.yaml")
    return Path(yaml.safe_load(file.read_text(encoding="utf-8"))["outputs"])
