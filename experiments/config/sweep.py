"""The jobs of a sweep: a failed job leaves its reason, the other jobs go on, and the end of the sweep lists failures.

A job may run in another process or on another machine (Hydra's launchers: basic, joblib, submitit, ray). The list is
therefore read from the folders that jobs leave in the outputs folder, not from memory.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.results.run_writer import new_folder
from selfspec.errors import InputError
from selfspec.records import run_files

log = logging.getLogger(__name__)


def is_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


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
    told = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    line = " ".join(told.split())
    sweep = str(Path(HydraConfig.get().sweep.dir).absolute())
    run_files.write_json(path / run_files.FAILURE, {"error": line, "overrides": overrides, "sweep": sweep})
    log.error("selfspec: %s", line, exc_info=None if isinstance(error, InputError) else error)
    return path


class ListFailures(Callback):
    """Ends a sweep with one line of success, or with one line for each failed job and exit status 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this after the last job, in the process that started the sweep."""
        outputs = Path(config.paths.outputs)
        sweep = str(Path(config.hydra.sweep.dir).absolute())
        found = [(file.parent, json.loads(file.read_text("utf-8"))) for file in outputs.rglob(run_files.FAILURE)]
        failed = sorted((path, failure) for path, failure in found if failure.get("sweep") == sweep)
        if not failed:  # a warning, since no log level is set here if a launcher ran the jobs elsewhere
            log.warning(
                "the sweep is over, all its jobs are whole; `selfspec report runs='%s/**'` tells of them", outputs
            )
            return
        log.error("selfspec: %d of the sweep's jobs failed; the others are whole:", len(failed))
        for path, failure in failed:
            log.error("  %s: %s (%s)", " ".join(failure["overrides"]), failure["error"], path)
        sys.exit(1)
