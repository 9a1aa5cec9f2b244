"""Where runs are shown besides their own folder. A tracker only listens: the run folder is the truth."""

from experiments.tracking.tracker import Chart, NoTracker, Picture, SafeTracker, Shown, Table, Tracker
from experiments.tracking.wandb_tracker import WandbTracker

__all__ = ["Chart", "NoTracker", "Picture", "SafeTracker", "Shown", "Table", "Tracker", "WandbTracker"]
