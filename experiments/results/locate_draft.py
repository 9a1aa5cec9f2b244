"""Translates a user's name of a draft to one that the library knows: the id of a run becomes its folder."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.results.find_runs import list_runs
from selfspec.drafters.spec_files import find_draft
from selfspec.errors import InputError
from selfspec.skipping.plan_files import NAME as PLAN
from selfspec.skipping.skip_set_files import unknown_draft


def locate_draft(name: str, outputs: Path) -> str:
    """A name that `find_draft` knows: `name` itself, or the folder of the search or training with that id.

    Args:
        name: the user's name of the draft.
        outputs: folder of the runs.

    Raises:
        InputError: if the name is neither, or the file of the draft is unreadable.
    """
    try:
        find_draft(name)
    except InputError:
        if os.path.exists(Path(name).expanduser()):
            raise
        runs = (run for run in list_runs(None, outputs) if run.is_readable and run.verb != "evaluate")
        found = {run.id: run.path for run in runs if run.verb == "search" or (run.path / PLAN).is_file()}
        if name not in found:
            raise unknown_draft(name, runs=sorted(found)) from None
        return str(found[name])
    return name
