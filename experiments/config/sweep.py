"""The jobs of a sweep: a failed job leaves its reason, the other jobs go on, and the end of the sweep lists failures.

A job may run in another process or on another machine (Hydra's launchers: basic, joblib, submitit, ray). Each job
therefore writes its own state into the folder of the sweep, and the list is read from there, not from memory.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.config.composing import configuration, make_importable
from experiments.config.sweep_words import as_typed
from experiments.results.run_writer import new_folder
from selfspec.errors import InputError
from selfspec.records import run_files

log = logging.getLogger(__name__)

WHOLE, FAILED, RUNNING, INTERRUPTED = "whole", "failed", "running", "interrupted"  # states of a job


def is_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def run_job(
    verb: str, composed: DictConfig, run: Callable[[DictConfig, list[str]], object], *, folder: Path | None
) -> None:
    """Run a job of Hydra's; if a job of a sweep fails, the other jobs go on.

    Args:
        verb: verb of the job.
        composed: configuration that Hydra composed, in which values are in quotes.
        run: runs the verb, given configuration and words.
        folder: the user's folder of options.
    """
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # paths mean what they mean where they were typed, also with hydra.job.chdir=true
    make_importable(folder)  # a launcher may run a job in another process
    words = as_typed(hydra.overrides.task)
    if not is_sweep():
        run(configuration(verb, words, folder=folder), words)
        return
    keep_state(words, RUNNING)
    try:
        run(configuration(verb, words, folder=folder), words)
    except Exception as error:
        left = leave_failure(verb, composed, words, error)
        keep_state(words, FAILED, error=one_line(error), folder=str(left))
    except BaseException:  # Ctrl-C, which ends the sweep
        keep_state(words, INTERRUPTED)
        raise
    else:
        keep_state(words, WHOLE)


def keep_state(words: list[str], state: str, **more: Any) -> None:
    """Write the state of the running job into the folder of the sweep."""
    hydra = HydraConfig.get()
    jobs = _jobs(hydra.sweep.dir)
    jobs.mkdir(parents=True, exist_ok=True)
    run_files.write_json(jobs / f"{hydra.job.num}.json", {"state": state, "overrides": words, **more})


def _jobs(sweep: str) -> Path:
    return Path(sweep) / "jobs"


def _state_of(file: Path) -> dict[str, Any]:
    """What `keep_state` wrote; a damaged file is told as a job that failed."""
    try:
        body = json.loads(file.read_text("utf-8"))
        return {**body, "state": str(body["state"]), "overrides": list(map(str, body["overrides"]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"state": FAILED, "overrides": [f"job {file.stem}"], "error": f"{file} cannot be read ({error})"}


def leave_failure(verb: str, cfg: DictConfig, overrides: list[str], error: Exception) -> Path:
    """Write the reason of a failed job of a sweep into a folder in the place of its run.

    Args:
        verb: verb of the job.
        cfg: configuration of the job.
        overrides: settings in which the jobs of the sweep differ.
        error: the error that ended the job; unless it is an InputError, its traceback goes to the log.
    """
    config = OmegaConf.to_yaml(cfg)
    path = new_folder(Path(cfg.paths.outputs), verb, str(cfg.name), config=config, overrides=overrides)
    sweep = str(Path(HydraConfig.get().sweep.dir).absolute())
    run_files.write_json(path / run_files.FAILURE, {"error": one_line(error), "overrides": overrides, "sweep": sweep})
    log.error("selfspec: %s", one_line(error), exc_info=None if isinstance(error, InputError) else error)
    return path


def one_line(error: Exception) -> str:
    """An error in one line, with its class unless it is the user's."""
    return " ".join((str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}").split())


class ListFailures(Callback):
    """Ends a sweep with one line of success, or with one line for each job that is not whole and exit status 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this after the last job, in the process that started the sweep."""
        files = sorted(_jobs(config.hydra.sweep.dir).glob("*.json"), key=lambda file: int(file.stem))
        jobs = [_state_of(file) for file in files]
        failed = [job for job in jobs if job["state"] != WHOLE]
        if jobs and not failed:  # a warning, since no log level is set here if a launcher ran the jobs elsewhere
            log.warning(
                "the sweep is over, all its jobs are whole; `selfspec report runs='%s/**'` tells of them",
                config.paths.outputs,
            )
            return
        log.error("selfspec: %d of the sweep's jobs failed; the others are whole:", len(failed) if jobs else 1)
        for job in failed:
            ended = job.get("error", "it ended without a word")
            log.error("  %s: %s (%s)", " ".join(job["overrides"]), ended, job.get("folder", "no folder"))
        sys.exit(1)
