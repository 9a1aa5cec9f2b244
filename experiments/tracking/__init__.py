"""Trackers, which show runs outside of their own folder. A tracker only listens: the run folder holds the results.

It must not know Hydra or models, and no result depends on it.
"""

from experiments.tracking.tracker import Chart, Loggable, NoTracker, Picture, SafeTracker, Table, Tracker
from experiments.tracking.wandb_tracker import WandbTracker

__all__ = ["Chart", "Loggable", "NoTracker", "Picture", "SafeTracker", "Table", "Tracker", "WandbTracker"]
