"""The kind of value of every setting of a verb: Hydra refuses other kinds. Defaults and comments stand in YAML files.

Some groups build a class that may be the user's own (`data`, `drafter`, `stop`, `tree`, ...). They have no schema here:
the signature of the class says which settings it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

LEAST = "least"  # key in the metadata of a field: its least allowed number


def number(least: float) -> Any:
    """A field for numbers from `least` on."""
    return field(default=MISSING, metadata={LEAST: least})


class Precision(StrEnum):
    """Precision of the weights of a draft."""

    same = "same"
    int8 = "int8"
    int4 = "int4"


class SearchLookup(StrEnum):
    """Place of prompt lookup in a search: before the draft, or as a branch of it."""

    front = "front"
    beside = "beside"


class Lookup(StrEnum):
    """Place of prompt lookup; `only`: instead of the draft; `searched`: as in the search that saved the draft."""

    front = "front"
    beside = "beside"
    only = "only"
    searched = "searched"


class Kind(StrEnum):
    """Kind of sublayers."""

    attention = "attention"
    mlp = "mlp"


class Encoding(StrEnum):
    """Form in which a sampler sees skip sets."""

    bits = "bits"
    floats = "floats"


class Preset(StrEnum):
    """Contents of a report."""

    default = "default"
    paper = "paper"


class Format(StrEnum):
    """Format of a report's tables."""

    md = "md"
    csv = "csv"
    latex = "latex"
    html = "html"


@dataclass
class Model:
    """The group `model`."""

    name: str = MISSING
    hub_id: str | None = MISSING
    revision: str | None = MISSING
    path: str | None = MISSING
    registry: Any = MISSING
    dtype: str = MISSING
    attention: str = MISSING
    device: str = MISSING
    device_map: Any = MISSING
    pack: bool | None = MISSING
    trust_remote_code: bool = MISSING
    size: Any = MISSING


@dataclass
class Searcher:
    """The group `searcher`."""

    n_trials: int = MISSING
    max_s: float | None = MISSING
    patience: int | None = MISSING
    seed: int = MISSING
    encoding: Encoding = MISSING
    name: str = MISSING
    sampler: Any = MISSING
    computed: Any = None


@dataclass
class Paths:
    """The group `paths`."""

    outputs: str = MISSING


@dataclass
class Calibration:
    """The group `calibration`."""

    n_tokens: int = number(1)
    max_new_tokens: int = number(1)


@dataclass
class Sampling:
    """The group `sampling`."""

    do_sample: bool = MISSING
    temperature: float = MISSING
    top_k: int = MISSING
    top_p: float = MISSING
    min_p: float = MISSING
    repetition_penalty: float = MISSING
    seed: int = MISSING
    by_block: bool = MISSING
    sample_draft: bool = MISSING


@dataclass
class Draft:
    """The group `draft`."""

    kind: str = MISSING
    merge: bool = MISSING
    rank: int | None = MISSING


@dataclass
class Head:
    """The group `head`."""

    n: int | None = number(1)
    others: list[int] = MISSING


@dataclass
class Constraints:
    """The settings `constraints` of a search."""

    n_skipped: int | None = MISSING
    min_skipped: Any = MISSING  # a whole number, or a fraction
    max_skipped: Any = MISSING
    keep_first: int = MISSING
    keep_last: int = MISSING
    only: Kind | None = MISSING
    whole_layers: bool = MISSING
    max_cost: float | None = MISSING
    max_memory: float | None = MISSING


@dataclass
class Prune:
    """The settings `prune` of a search."""

    p: float = MISSING
    min_prompts: int = MISSING


@dataclass
class Finals:
    """The settings `finals` of a search."""

    top: int = number(0)
    race: int = number(1)
    n_prompts: int = number(1)


@dataclass
class Run:
    """The settings that all verbs with a model share."""

    model: Model = MISSING
    data: Any = MISSING
    stop: Any = MISSING
    tracker: Any = MISSING
    paths: Paths = MISSING
    name: str = MISSING
    threads: int | None = number(1)


@dataclass
class Decode(Run):
    """`selfspec decode`."""

    sampling: Sampling = MISSING
    drafter: Any = MISSING
    tree: Any = MISSING
    prompt: str | None = MISSING
    skip: str = MISSING
    lookup: Lookup | None = MISSING
    max_new_tokens: int = MISSING
    stop_strings: list[str] | None = MISSING
    compare: bool = MISSING


@dataclass
class Evaluate(Run):
    """`selfspec evaluate`."""

    sampling: Sampling = MISSING
    drafter: Any = MISSING
    tree: Any = MISSING
    calibration: Calibration = MISSING
    costs: Any = MISSING
    skip: str = MISSING
    lookup: Lookup | None = MISSING
    arm: str | None = MISSING
    arms: Any = MISSING
    controls: bool = MISSING
    ablation: str | None = MISSING
    generate: bool = MISSING
    n: int | None = number(1)
    samples: int = number(1)
    seed: int = MISSING
    max_new_tokens: int = MISSING
    stop_strings: list[str] | None = MISSING
    batch: int = number(1)
    quality: bool = MISSING
    allow_code_execution: bool = MISSING
    resume: str | None = MISSING


@dataclass
class Profile(Run):
    """`selfspec profile`."""

    costs: Any = MISSING
    check: int = number(0)
    seed: int = MISSING


@dataclass
class Search(Run):
    """`selfspec search`."""

    searcher: Searcher = MISSING
    objective: Any = MISSING
    recipe: Any = None  # only sets values of other groups
    draft: Draft = MISSING
    drafter: Any = MISSING
    tree: Any = MISSING
    head: Head = MISSING
    calibration: Calibration = MISSING
    costs: Any = MISSING
    resume: str | None = MISSING
    force: bool = MISSING
    precision: Precision = MISSING
    lookup: SearchLookup | None = MISSING
    memory: int | None = number(1)
    space: Any = MISSING
    ladder: Any = MISSING
    starts: list[str] = MISSING
    start: Any = MISSING
    constraints: Constraints = MISSING
    prune: Prune | None = MISSING
    finals: Finals = MISSING
    pause: bool = MISSING
    storage: str | None = MISSING
    worker: int = number(0)


@dataclass
class Report:
    """`selfspec report`."""

    paths: Paths = MISSING
    name: str = MISSING
    runs: str | None = MISSING
    preset: Preset = MISSING
    format: Format = MISSING
    sets: list[str] = MISSING
    published: str | None = MISSING


@dataclass
class Reproduce:
    """`selfspec reproduce`."""

    paths: Paths = MISSING
    experiment: Any = MISSING
    dry_run: bool = MISSING
    resume: str | None = MISSING
    data_folder: str | None = MISSING


@dataclass
class Dashboard:
    """`selfspec dashboard`."""

    paths: Paths = MISSING
    runs: str | None = MISSING
    address: str = MISSING
    port: int = number(1)
    open_browser: bool = MISSING


VERBS: dict[str, type] = {
    "decode": Decode,
    "evaluate": Evaluate,
    "profile": Profile,
    "search": Search,
    "report": Report,
    "reproduce": Reproduce,
    "dashboard": Dashboard,
}

# Hydra finds a schema by its name in every process that composes, so the import of this module registers it.
for _verb, _schema in VERBS.items():
    ConfigStore.instance().store(name=f"{_verb}_schema", node=_schema, provider="selfspec")
