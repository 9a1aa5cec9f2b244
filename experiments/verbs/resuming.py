"""The configuration of a run that goes on, read from its folder, which may be damaged or of another verb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.config.composing import read_config
from experiments.results.run_writer import provenance_of
from selfspec.errors import InputError
from selfspec.records import run_files

RESUME = "resume"
# a setting that no other verb has
SETTING_OF: Mapping[str, str] = {
    "evaluate": "samples",
    "search": "searcher",
    "train": "vocabulary",
    "serve-sim": "loads",
}


def make_ready(resumed: Path | None, cfg: DictConfig) -> None:
    """Check that a run can write: to the folder of the run that goes on, or else to the outputs.

    Raises:
        InputError: if it cannot.
    """
    if resumed:
        run_files.make_writable(resumed, hint="give the right to write there, or make room")
    else:
        run_files.make_writable(Path(cfg.paths.outputs))


def config_to_resume(
    path: Path,
    verb: str,
    overrides: Sequence[str],
    *,
    may_change: Sequence[str] = (RESUME,),
    hint: str = ": leave it out",
) -> DictConfig:
    """The configuration of the run of `verb` in a folder.

    Args:
        path: the folder.
        verb: verb of the run.
        overrides: settings from the command line.
        may_change: settings that these may name.
        hint: end of the line that refuses another setting.

    Raises:
        InputError: if a setting cannot change, the folder holds no such run, or its files are damaged.
    """
    fixed = [o for o in overrides if o.partition("=")[0].lstrip("+") not in may_change]
    if fixed:
        raise InputError(f"resume goes on with the settings of {path}; {fixed[0]} cannot change{hint}")
    for file in (run_files.CONFIG, run_files.PROVENANCE):
        if not (path / file).is_file():
            raise InputError(f"resume={path}: no run of {verb} there (no {file}); give the folder of one")
    provenance_of(path)
    try:
        cfg = read_config(path / run_files.CONFIG)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise _damaged(path, error) from None
    if SETTING_OF[verb] not in cfg:
        raise InputError(
            f"resume={path}: no run of {verb} there, but one of another verb or version, or its {run_files.CONFIG} is "
            "cut off; give the folder of one"
        )
    return cfg


@contextmanager
def resuming(path: Path | None) -> Iterator[None]:
    """A context for the use of settings; if a run of `path` goes on there, a missing setting is an InputError."""
    try:
        yield
    except OmegaConfBaseException as error:
        if path is None:
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"resume={path}: its {run_files.CONFIG} is damaged ({reason}); restore it, or start another run")
