"""What a search predicted of the drafts that an evaluation measures, to be read beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig

from experiments.arms import GENERATE, PLAIN, Arm
from selfspec.skipfile import NAME

UNIT = "x plain decoding"


def predicted(cfg: DictConfig, arms: Sequence[Arm]) -> dict[str, float]:
    """The speedup predicted of each arm whose draft comes from a search that predicted speedups.

    The prediction holds for the machine, the data and the stop rule of that search.
    """
    own = cfg.arms or {}
    found = {}
    for arm in arms:
        if arm.name in (PLAIN, GENERATE):
            continue
        value = promised(str(own[arm.name].get("skip", "none") if arm.name in own else cfg.skip))
        if value is not None:
            found[arm.name] = value
    return found


def promised(draft: str) -> float | None:
    """The predicted speedup that the file of a draft holds; None if it is no file, or holds none.

    Args:
        draft: a skip set, a file of one or of a plan, or the folder of a search.
    """
    path = Path(draft).expanduser()
    for file in (path, path / NAME, path.with_name(NAME)) if "/" in draft or path.suffix else ():
        if file.is_file():
            body = yaml.safe_load(file.read_text(encoding="utf-8"))
            value = body.get("fresh_value", body.get("value"))  # the search's own prompts flatter
            if body.get("unit") == UNIT and value is not None:
                return float(value)
    return None
