"""The jobs of a sweep: one that fails leaves the reason behind, the others go on, and the end lists what failed.

A job may run in another process or on another machine (Hydra's launchers: basic, joblib, submitit, ray), so what failed
is read from the folders that the jobs leave in the outputs folder, and from nothing in memory.
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
    """Write why a job of a sweep came to nothing, into a folder where its run would have been.

    Args:
        verb: of the job.
        cfg: its configuration.
        overrides: what made it differ.
        error: what ended it; a traceback goes to the log if it is no mistake in what was asked.
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
    """Ends a sweep with a line that all is well, or with exit status 1 and one line for each job that failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra once all jobs are over, where the sweep was started."""
        outputs = Path(config.paths.outputs)
        sweep = str(Path(config.hydra.sweep.dir).absolute())
        found = [(file.parent, json.loads(file.read_text("utf-8"))) for file in outputs.rglob(run_files.FAILURE)]
        failed = sorted((path, failure) for path, failure in found if failure.get("sweep") == sweep)
        if not failed:  # said as a warning, since a launcher may have kept what its jobs print, and set no level here
            log.warning(
                "the sweep is over, all its jobs are whole; `selfspec report runs='%s/**'` tells of them", outputs
            )
            return
        log.error("selfspec: %d of the sweep's jobs failed; the others are whole:", len(failed))
        for path, failure in failed:
            log.error("  %s: %s (%s)", " ".join(failure["overrides"]), failure["error"], path)
        sys.exit(1)
