"""Where runs are shown besides their own folder. A tracker only listens: the run folder is the truth.

A tracker that fails loses no result: the first failure is logged once, and the run goes on without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from selfspec.errors import InputError

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Listens to one run."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers of one trial or prompt."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A finished table."""
        ...

    def image(self, name: str, path: Path) -> None:
        """A picture."""
        ...

    def finish(self) -> str | None:
        """The last call; may come twice. Returns a line for the user, if there is something to do."""
        ...


class NoTracker:
    """Listens to nothing, so that no caller asks whether there is a tracker."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """See `Tracker`."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""

    def image(self, name: str, path: Path) -> None:
        """See `Tracker`."""

    def finish(self) -> str | None:
        """See `Tracker`."""
        return None


class WandbTracker:
    """Weights & Biases; offline unless this machine is logged in or `mode` says otherwise.

    Raises:
        InputError: if wandb is not installed.
    """

    def __init__(
        self,
        *,
        project: str,
        name: str,
        group: str,
        job_type: str,
        folder: Path,
        config: Mapping[str, Any],
        tags: Sequence[str] = (),
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise InputError("tracker=wandb needs the wandb package; pip install 'selfspec[wandb]'") from None
        self._wandb = wandb
        os.environ.setdefault("WANDB_SILENT", "true")
        self._run: Any = wandb.init(
            project=project,
            name=name,
            group=group,
            job_type=job_type,
            dir=str(folder),
            config=dict(config),
            tags=list(tags),
            mode=mode or ("online" if _is_logged_in() else "offline"),
        )

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """See `Tracker`."""
        self._run.log({key: value for key, value in values.items() if value is not None}, step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""
        columns = list(rows[0]) if rows else []
        self._run.log({name: self._wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in rows])})

    def image(self, name: str, path: Path) -> None:
        """See `Tracker`."""
        self._run.log({name: self._wandb.Image(str(path))})

    def finish(self) -> str | None:
        """See `Tracker`."""
        if self._run is None:
            return None
        run, self._run = self._run, None
        folder, is_offline = Path(run.dir).parent, bool(run.settings._offline)
        run.finish()
        return f"wandb sync {folder}" if is_offline else None


def _is_logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return "api.wandb.ai" in (Path.home() / ".netrc").read_text()
    except OSError:
        return False


class SafeTracker:
    """Hands everything on to `make()`'s tracker until that fails, which is said once."""

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self._tracker: Tracker = NoTracker()
        try:
            self._tracker = make()
        except InputError:
            raise
        except Exception as error:  # whatever a tracker does, the run goes on
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("the tracker failed and is left out from here on; the run folder is complete (%s)", error)
        self._tracker = NoTracker()

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """See `Tracker`."""
        self._try(lambda: self._tracker.log(step, values))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""
        self._try(lambda: self._tracker.table(name, rows))

    def image(self, name: str, path: Path) -> None:
        """See `Tracker`."""
        self._try(lambda: self._tracker.image(name, path))

    def finish(self) -> str | None:
        """See `Tracker`."""
        line: list[str | None] = [None]

        def finish() -> None:
            line[0] = self._tracker.finish()

        self._try(finish)
        return line[0]

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a tracker does, the run goes on
            self._give_up(error)
