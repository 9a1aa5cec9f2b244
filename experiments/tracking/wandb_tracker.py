"""Weights & Biases as a tracker: online for users who are logged in, or else in files that `wandb sync` uploads.

The module gets values and files; it must not know skip sets. wandb's own recording of the process is switched off:
configuration and provenance describe the run, command lines and host names are private, and sampling the machine would
disturb the measurement.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from experiments.tracking.tracker import Chart, Loggable, Picture, Table
from selfspec.errors import InputError

log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]
# prefixes of values such as `trial/value`, whose x axis is `trial/number`
AXES = ("trial", "position", "train", "collect")
CONNECT_S, UPLOAD_S = 20.0, 60.0  # seconds to wait at start and end; then only files are written; chosen, not tuned


class WandbTracker:
    """One run of W&B, in the run folder.

    The default mode is that of the environment (WANDB_MODE), or else online if this machine is logged in, or else
    offline. An online run becomes an offline run if the server does not answer. A resumed run is shown again as a whole
    under its old id.

    Args:
        project, name, group, job_type, tags: W&B's settings with these names.
        run_id: id that all sessions of a run share.
        folder: folder of the run; wandb writes into its folder `wandb/`.
        config: configuration for W&B; it must hold no secret (`experiments.tracking.public`).
        mode: online, offline or disabled; None for the default mode.

    Raises:
        InputError: if wandb is not installed, or for an unknown mode.
    """

    def __init__(
        self,
        *,
        project: str,
        name: str,
        group: str,
        job_type: str,
        run_id: str,
        folder: Path,
        config: Mapping[str, Any],
        tags: Sequence[str] = (),
        mode: Mode | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise InputError("tracker=wandb needs the wandb package; pip install 'selfspec[wandb]'") from None
        if mode not in (None, *get_args(Mode)):
            raise InputError(f"tracker.mode={mode}; it is {', '.join(get_args(Mode))} or null")
        self._wandb = wandb
        _set_aside(folder / "wandb", run_id)
        os.environ.setdefault("WANDB_SILENT", "true")
        settings = wandb.Settings(
            console="off",  # a progress bar needs the terminal, and the run folder holds the log lines
            disable_git=True,
            host="-",
            init_timeout=CONNECT_S,
            finish_timeout=UPLOAD_S,
            finish_timeout_raises=True,
            reinit="finish_previous",  # ends the run of an earlier failed job of a sweep
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        start: dict[str, Any] = {
            "project": project,
            "name": name,
            "group": group,
            "job_type": job_type,
            "id": run_id,
            "dir": str(folder),
            "config": dict(config),
            "tags": list(tags),
            "settings": settings,
        }
        asked: Any = mode or os.environ.get("WANDB_MODE")
        try:
            asked = asked or ("online" if wandb.login(prompt=False, verify=False) else "offline")
            self._run: Any = wandb.init(mode=asked, **start)
        except wandb.errors.Error as error:
            if asked in ("offline", "disabled"):
                raise
            log.warning("W&B does not answer, so this run is offline (%s)", str(error).splitlines()[0])
            wandb.teardown()  # wandb's process holds the id of the run that could not start
            self._run = wandb.init(mode="offline", **start)
        for axis in AXES:
            self._run.define_metric(f"{axis}/*", step_metric=f"{axis}/number")

    def show(self, values: Mapping[str, Loggable]) -> None:
        """Log the values as one step; W&B has no missing values, so those are left out."""
        shown = {name: self._as_wandb(value) for name, value in values.items() if not _is_nothing(value)}
        if shown:
            self._run.log(shown)

    def keep(self, name: str, files: Sequence[Path], *, kind: str, is_best: bool) -> None:
        """Log the files as a version of an artifact; characters that W&B refuses in its name become hyphens."""
        artifact = self._wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind)
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact, aliases=["latest", *(["best"] if is_best else [])])

    def finish(self, *, failed: bool = False) -> str | None:
        """End the run; returns the command that uploads it if it is offline or the upload takes too long."""
        if self._run is None:
            return None
        run, self._run = self._run, None
        folder = Path(run.dir).parent
        try:
            run.finish(exit_code=int(failed))
        except TimeoutError:
            return f"wandb sync {folder}"
        return f"wandb sync {folder}" if run.offline and not run.disabled else None

    def _as_wandb(self, value: Loggable) -> Any:
        if isinstance(value, Picture):
            return self._wandb.Image(str(value.path))
        if isinstance(value, Chart):
            return self._wandb.Plotly(value.draw())
        if isinstance(value, Table):
            columns = list(value.rows[0]) if value.rows else []
            cells = [[None if _is_nothing(row[c]) else row[c] for c in columns] for row in value.rows]
            return self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        return value


def _set_aside(folder: Path, run_id: str) -> None:
    """Move the files of earlier sessions of a run, which is shown again as a whole, to where `wandb sync` finds none.

    Otherwise `wandb sync --sync-all` would send the parts of the run and the whole run under one id.
    """
    for part in sorted(folder.glob(f"offline-run-*-{run_id}")):
        aside = folder / "earlier"
        aside.mkdir(exist_ok=True)
        part.rename(aside / part.name)
        log.info("W&B: this run is shown again as a whole; its earlier part is moved to %s", aside / part.name)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
