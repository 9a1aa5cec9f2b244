"""The groups of settings, and the kind of each setting. Defaults and comments stand in the YAML files.

A field without a default is in every configuration; a field with a default is in those of some options or versions
alone. An option that builds a class has no schema here: the annotations of the class are its schema, also if the class
is the user's own (`experiments.config.kinds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from experiments.config.registry_source import RegistrySource


@dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers that a setting accepts, as a part of its annotation."""

    least: float
    most: float | None = None


class Open:
    """Base of settings to which an option may add its own."""


class Built:
    """The settings of the class that `_target_` names, or of an option that builds nothing."""


Count = Annotated[int, Bounds(1)]
Natural = Annotated[int, Bounds(0)]
Precision = Literal["same", "int8", "int4"]
Lookup = Literal["front", "beside", "only", "searched"]
SearchLookup = Literal["front", "beside"]


@dataclass
class Size:
    """Numbers that `reproduce dry_run=true` estimates with."""

    parameters: Count
    n_layers: Count
    kv_width: Count
    context: Count


@dataclass
class Model:
    """The group `model`."""

    name: str
    hub_id: str | None
    revision: str | None
    path: str | None
    registry: RegistrySource | None
    dtype: str
    attention: str
    device: str
    device_map: str | dict[str, Any] | None
    pack: bool | None
    trust_remote_code: bool
    size: Size | None
    draft_path: str | None = None


@dataclass
class Data(Open):
    """The group `data`; the other settings of an option go to the class of its `task`."""

    name: str
    chat: bool
    metric: str | None
    task: Built
    template: dict[str, Any] | None = None


@dataclass
class Objective:
    """The group `objective`."""

    name: str
    n_prompts: Count
    max_new_tokens: int
    data: list[str] | None
    combine: Literal["mean", "worst"]
    tune_stop: bool = False
    batch_starts: Count = 256


@dataclass
class Searcher:
    """The group `searcher`."""

    n_trials: int
    max_s: float | None
    patience: int | None
    seed: int
    encoding: Literal["bits", "floats"]
    name: str
    sampler: Built
    computed: Built | None = None


@dataclass
class Costs:
    """The group `costs`."""

    path: str | None
    refresh: bool
    contexts: list[Count]
    max_tokens: Count
    repeats: Count
    max_s: Annotated[float, Bounds(0)] | None = None
    rows: list[Count] | None = None
    name: str = "default"
    device: str | None = None
    table: dict[str, Any] | None = None


@dataclass
class Tracker:
    """The group `tracker`."""

    name: Literal["none", "wandb"]
    project: str = "selfspec"
    group: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    tags: list[str] | None = None


@dataclass
class Paths:
    """The group `paths`."""

    outputs: str
    cache: str | None = None


@dataclass
class Calibration:
    """The group `calibration`."""

    n_tokens: Count
    max_new_tokens: Count


@dataclass
class Sampling:
    """The group `sampling`."""

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    by_block: bool
    sample_draft: bool


@dataclass
class Schedule:
    """The group `schedule`; `sequential` has a name alone."""

    name: Literal["sequential", "pearl"]
    gamma: Count | Literal["auto", "adaptive"] = "auto"
    draft_threads: Count = 1
    pin: bool = True
    timeout_s: Annotated[float, Bounds(0)] = 10.0
    measure_s: Annotated[float, Bounds(0)] = 1.0


@dataclass
class Draft:
    """The group `draft`."""

    kind: Literal["skip", "mean", "linear", "lowrank"]
    merge: bool
    rank: Count | None


@dataclass
class Head:
    """The group `head`."""

    n: Count | None
    others: list[Count]


@dataclass
class Online:
    """The group `online`."""

    name: str
    start: str | None
    searcher: Built | None


@dataclass
class Experiment(Open):
    """The group `experiment`; an option may add texts that its steps refer to."""

    name: str | None
    settings: str
    steps: dict[str, str | None]
    tokens_per_s: float | None
    rate_source: str | None


@dataclass
class Constraints:
    """The settings `constraints` of a search; a limit is a whole number, or a fraction with a point."""

    n_skipped: int | None
    min_skipped: int | float
    max_skipped: int | float
    keep_first: int
    keep_last: int
    only: Literal["attention", "mlp"] | None
    whole_layers: bool
    max_cost: float | None
    max_memory: float | None


@dataclass
class Prune:
    """The settings `prune` of a search."""

    p: float
    min_prompts: int


@dataclass
class Finals:
    """The settings `finals` of a search."""

    top: Natural
    race: Count
    n_prompts: Count
    n_scored: Count


@dataclass
class Arm:
    """The settings of an arm of an evaluation; what it does not name is the run's."""

    skip: str | None = None
    stop: str | dict[str, dict[str, Any]] | None = None
    lookup: Lookup | None = None
    drafter: str | None = None
    tree: str | None = None
    controller: str | dict[str, dict[str, Any]] | None = None
    online: str | dict[str, dict[str, Any]] | None = None
    draft: str | None = None
    head: Count | Literal["full"] | None = None
    precision: Precision | None = None
    memory: Count | None = None
    unskipped: bool | None = None
    tune_stop: bool | None = None
    draft_only: bool | None = None
    accept_top: Count | None = None
    accept_distance: float | None = None
    generate: dict[str, Any] | None = None


@dataclass
class MemoryBound:
    """The settings `memory` of a simulation of requests."""

    max_rows: Count
    max_tokens: Count
    margin: Count


@dataclass
class TrainSettings:
    """The group `train`."""

    losses: dict[str, float] | None
    depths: Count
    decay: float
    lr: float
    warmup: float
    weight_decay: float
    clip: float
    epochs: Count
    max_s: float | None
    slots: Count
    max_slots: Count
    noise: float
    check_every: Count
    n_checked: Count
    patience: Count | None
    bf16: bool
    seed: int


@dataclass
class TrainedSearch:
    """The settings `trained` of a search over trained drafts."""

    store: str | list[str] | None
    steps: Count
    check_every: Count
    reduction: Count
    pruner: Literal["halving", "hyperband", "none"]
    train: dict[str, Any]
    full: dict[str, Any]
    max_new_tokens: Count
    trees: list[str]
    stops: list[str] | None


@dataclass
class PredictorSettings:
    """The group `predictor`."""

    kinds: list[str]
    max_draft: Count
    n_texts: Count | None
    n_compared: Count
    rejection_weight: float
    epochs: Count
    lr: float
    batch: Count
    share: Annotated[float, Bounds(0, 1)]
