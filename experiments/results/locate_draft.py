"""Translates a user's name of a draft or predictor to one that the library knows: an id of a run becomes its folder."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.results.find_runs import list_runs
from selfspec.drafters.spec_files import find_draft
from selfspec.errors import InputError
from selfspec.skipping.plan_files import NAME as PLAN
from selfspec.skipping.skip_set_files import unknown_draft

PREDICTORS = "predictor"  # folder of the runs of selfspec train predictor=..., in the outputs


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


def locate_predictor(name: str, outputs: Path) -> str:
    """The folder of a predictor that is named by a folder, or by the id of its run, as `ID/logistic`.

    Args:
        name: the user's name of the predictor.
        outputs: folder of the runs.
    """
    here = Path(name).expanduser()
    found = [here] if os.path.exists(here) else sorted((outputs / PREDICTORS).glob(f"*/{name}"))
    return str(found[0].resolve()) if found else name  # loading it tells what is wrong with it
