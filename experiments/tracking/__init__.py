"""Where runs are shown besides their own folder. A tracker only listens: the run folder is the truth."""

from experiments.tracking.tracker import Chart, Loggable, NoTracker, Picture, SafeTracker, Table, Tracker
from experiments.tracking.wandb_tracker import WandbTracker

__all__ = ["Chart", "Loggable", "NoTracker", "Picture", "SafeTracker", "Table", "Tracker", "WandbTracker"]
