"""A saved view of a W&B project: skip sets side by side, acceptance against speedup, and the courses of searches.

Usage: python scripts/wandb_workspace.py --entity NAME [--project selfspec] [--name VIEW] [--filter EXPRESSION]

It draws what runs with `tracker=wandb` show. Saving needs a login (`wandb login`); runs are grouped by sweep, else by
name. --filter is W&B's: "Config('model.name') = 'smollm2-135m'". Needs pip install 'selfspec[wandb]'.
"""

from __future__ import annotations

import argparse

from wandb_workspaces import workspaces
from wandb_workspaces.expr import Metric, Ordering, Summary
from wandb_workspaces.reports import v2 as panels

NAME = "Skip sets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True, help="a user or team of W&B")
    parser.add_argument("--project", default="selfspec")
    parser.add_argument("--name", default=NAME, help="of the view")
    parser.add_argument("--filter", default="", help="which runs; all if empty")
    asked = parser.parse_args()
    view = workspace(asked.entity, asked.project, name=asked.name, filters=asked.filter)
    print(view.save().url)


def workspace(entity: str, project: str, *, name: str = NAME, filters: str = "") -> workspaces.Workspace:
    """The view, not yet saved; its keys are those that `experiments.tracking` shows."""
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[_sets(), _speed(), _searches()],
        runset_settings=workspaces.RunsetSettings(
            filters=filters,
            groupby=[Metric("Group")],
            order=[Ordering(Summary("draft/speedup"), ascending=False)],
            pinned_columns=["run:jobType", *(f"summary:draft/{key}" for key in ("skip", "acceptance", "speedup"))],
        ),
    )


def _sets() -> workspaces.Section:
    axes = ("draft_cost", "acceptance", "tokens_per_round", "fraction_skipped", "speedup")
    return workspaces.Section(
        name="Skip sets",
        is_open=True,
        panels=[
            panels.MediaBrowser(title="Sublayers skipped", media_keys=["skip_map"], num_columns=2),
            panels.MediaBrowser(title="Importance of each sublayer", media_keys=["importance"], num_columns=2),
            panels.ParallelCoordinatesPlot(
                title="Drafts",
                columns=[panels.ParallelCoordinatesPlotColumn(_of_draft(key), display_name=key) for key in axes],
            ),
            panels.WeavePanelSummaryTable(table_name="skip_sets"),
            panels.RunComparer(diff_only="split"),
        ],
    )


def _speed() -> workspaces.Section:
    return workspaces.Section(
        name="Acceptance against speedup",
        is_open=True,
        panels=[
            panels.ScatterPlot(
                title="Acceptance against speedup (× plain decoding)",
                x=_of_draft("acceptance"),
                y=_of_draft("speedup"),
            ),
            panels.BarPlot(title="Speedup (× plain decoding)", metrics=["draft/speedup"]),
            panels.LinePlot(
                title="Acceptance by position in the draft", x="position/number", y=["position/acceptance"]
            ),
            panels.BarPlot(title="Seconds", metrics=[f"time/{part}_s" for part in ("draft", "verify", "other")]),
            panels.WeavePanelSummaryTable(table_name="arms"),
        ],
    )


def _searches() -> workspaces.Section:
    return workspaces.Section(
        name="Searches",
        is_open=True,
        panels=[
            panels.LinePlot(title="Best so far over trials", x="trial/number", y=["trial/best"]),
            panels.LinePlot(title="Best so far over seconds", x="trial/elapsed_s", y=["trial/best"]),
            panels.LinePlot(
                title="Acceptance and cost of trials", x="trial/number", y=["trial/acceptance", "trial/draft_cost"]
            ),
            panels.MediaBrowser(title="Search", media_keys=["search", "pareto"], num_columns=2),
            panels.WeavePanelSummaryTable(table_name="trials"),
        ],
    )


def _of_draft(key: str) -> panels.SummaryMetric:
    return panels.SummaryMetric(f"draft/{key}")


if __name__ == "__main__":
    main()
