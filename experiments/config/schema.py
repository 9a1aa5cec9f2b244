"""The settings of every verb, and the kind of each. Defaults and comments stand in the YAML files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from experiments.config.schema_groups import (
    Arm,
    Bounds,
    Built,
    Calibration,
    Constraints,
    Costs,
    Count,
    Data,
    Draft,
    Experiment,
    Finals,
    Head,
    Lookup,
    MemoryBound,
    Model,
    Natural,
    Objective,
    Online,
    Paths,
    Precision,
    PredictorSettings,
    Prune,
    Sampling,
    Schedule,
    Searcher,
    SearchLookup,
    Tracker,
    TrainedSearch,
    TrainSettings,
)


@dataclass
class Run:
    """The settings that all verbs with a model share."""

    model: Model
    data: Data
    stop: Built
    tracker: Tracker
    paths: Paths
    name: str
    threads: Annotated[int, Bounds(1, 1024)] | None


@dataclass
class Decode(Run):
    """`selfspec decode`."""

    sampling: Sampling
    drafter: Built
    tree: Built
    controller: Built
    costs: Costs
    online: Online
    prompt: str | None
    skip: str
    lookup: Lookup | None
    max_new_tokens: int
    stop_strings: list[str] | None
    compare: bool


@dataclass
class Evaluate(Run):
    """`selfspec evaluate`."""

    sampling: Sampling
    drafter: Built
    tree: Built
    online: Online
    controller: Built
    calibration: Calibration
    costs: Costs
    skip: str
    lookup: Lookup | None
    arm: str | None
    arms: dict[str, Arm] | None
    controls: bool
    ablation: str | None
    generate: bool
    n: Count | None
    samples: Count
    seed: int
    max_new_tokens: int
    stop_strings: list[str] | None
    batch: Count
    quality: bool
    allow_code_execution: bool
    resume: str | None
    trained: str | None = None
    schedule: Schedule | None = None


@dataclass
class ServeSim(Run):
    """`selfspec serve-sim`."""

    sampling: Sampling
    drafter: Built
    tree: Built
    costs: Costs
    skip: str
    lookup: Lookup | None
    arms: dict[str, str | dict[str, dict[str, Any]]] | None
    engine: Literal["model", "replay", "both"]
    clock: Literal["virtual", "real"]
    records: str | None
    trace: str | None
    rates: list[Annotated[float, Bounds(0)] | None] | None
    loads: list[Annotated[float, Bounds(0)]]
    n: Count
    n_prompts: Count
    memory: MemoryBound
    chunk: Count
    batch: Count
    max_new_tokens: Count
    overhead_s: Annotated[float, Bounds(0)] | None
    seed: int
    resume: str | None


@dataclass
class Profile(Run):
    """`selfspec profile`."""

    costs: Costs
    check: Natural
    seed: int


@dataclass
class Collect(Run):
    """`selfspec collect`."""

    n: Count | None
    seed: int
    samples: Count
    temperatures: list[float]
    max_new_tokens: Count
    batch: Count
    layers: list[int] | None
    top_k: Count


@dataclass
class Train(Run):
    """`selfspec train`."""

    drafter: Built
    train: TrainSettings
    predictor: PredictorSettings
    tree: Built
    sampling: Sampling
    costs: Costs
    store: str | list[str] | None
    skip: str | None
    adapter: str | None
    width: Count | None
    vocabulary: Count | None
    precision: Precision
    lookup: SearchLookup | None
    memory: Count | None
    check_overfit: bool
    resume: str | None


@dataclass
class Search(Run):
    """`selfspec search`."""

    searcher: Searcher
    objective: Objective
    draft: Draft
    drafter: Built
    tree: Built
    head: Head
    calibration: Calibration
    costs: Costs
    resume: str | None
    force: bool
    precision: Precision
    lookup: SearchLookup | None
    memory: Count | None
    space: dict[str, Any] | None
    ladder: list[dict[str, Any]] | None
    starts: list[str]
    start: str | list[str] | None
    constraints: Constraints
    prune: Prune | None
    finals: Finals
    pause: bool
    storage: str | None
    worker: Natural
    trained: str | None = None
    training: TrainedSearch | None = None
    recipe: dict[str, Any] | None = None  # only sets values of other groups


@dataclass
class Report:
    """`selfspec report`."""

    paths: Paths
    name: str
    runs: str | None
    preset: Literal["default", "paper", "systems"]
    format: Literal["md", "csv", "latex", "html"]
    sets: list[str]
    published: str | None


@dataclass
class Reproduce:
    """`selfspec reproduce`."""

    paths: Paths
    experiment: Experiment
    dry_run: bool
    resume: str | None
    data_folder: str | None


@dataclass
class Dashboard:
    """`selfspec dashboard`."""

    paths: Paths
    runs: str | None
    address: str
    port: Annotated[int, Bounds(1, 65535)]
    open_browser: bool


VERBS: dict[str, type] = {
    "decode": Decode,
    "evaluate": Evaluate,
    "profile": Profile,
    "serve-sim": ServeSim,
    "search": Search,
    "collect": Collect,
    "train": Train,
    "report": Report,
    "reproduce": Reproduce,
    "dashboard": Dashboard,
}
