"""selfspec dashboard: start Streamlit on this machine, without telemetry and without questions to the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from experiments.charts import PRIMARY
from selfspec.errors import InputError

APP = Path(__file__).parents[1] / "dashboard" / "app" / "main.py"


def dashboard(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> None:
    """Run the verb: this process becomes the server, so that the end of the command ends the server."""
    outputs = Path(cfg.runs or cfg.paths.outputs)
    missing = [name for name in ("streamlit", "plotly") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"the dashboard needs {' and '.join(missing)}; install them: pip install 'selfspec[dashboard]'"
        )
    if cfg.runs and not outputs.is_dir():
        raise InputError(f"runs={cfg.runs} is no folder; name the one that holds the runs, such as outputs")
    say(f"dashboard of {outputs} on http://{cfg.address}:{cfg.port} (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execv(sys.executable, words(outputs, address=cfg.address, port=cfg.port, open_browser=cfg.open_browser))


def words(outputs: Path, *, address: str, port: int, open_browser: bool) -> list[str]:
    """The command that serves the dashboard of `outputs`; it opens a browser only if there is a screen."""
    has_screen = sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
    settings = {
        "server.address": address,
        "server.port": port,
        "server.headless": str(not (open_browser and has_screen)).lower(),
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "theme.light.primaryColor": PRIMARY,  # set for both grounds, so that the system's choice of ground holds
        "theme.dark.primaryColor": PRIMARY,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *flags, "--", str(outputs.resolve())]
