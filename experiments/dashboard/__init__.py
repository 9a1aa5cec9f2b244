"""The local dashboard: run folders in the browser. It reads them, and writes nothing."""

from experiments.dashboard.serve import dashboard

__all__ = ["dashboard"]
