"""What a run recorded of itself, typed: `config.yaml` and `provenance.json` at its begin, `summary.json` at its end.

A failed job of a sweep leaves `failure.json` in place of both.

The types are those that readers of runs rely on. Older runs lack some fields; unknown fields are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

import yaml
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic accepts the standard library's TypedDict from Python 3.12 on only

from experiments.results.rows import Number, T, parse_row
from selfspec.records import run_files

OWN_LOAD = 0.5  # load of an idle machine, from its services; chosen, not tuned

# a name that looks like a number was once recorded as a number
_OPEN = ConfigDict(extra="allow", allow_inf_nan=False, coerce_numbers_to_str=True)

Fact = str | dict[str, Any] | None  # an object tells why the fact could not be read


@with_config(_OPEN)
class Session(TypedDict):
    """The machine when a session of the run began."""

    threads: NotRequired[float]
    load_before: NotRequired[Number]
    process: NotRequired[str]


@with_config(_OPEN)
class Facts(TypedDict):
    """What ran."""

    model: NotRequired[Fact]
    data: NotRequired[Fact]
    searcher: NotRequired[Fact]
    objective: NotRequired[Fact]
    n_layers: NotRequired[Annotated[int, Field(ge=1)] | None]
    arms: NotRequired[dict[str, Any] | None]
    seen: NotRequired[list[str] | None]


class Provenance(Session):
    """The first session, those that resumed it, and what ran."""

    run: Facts
    resumed: NotRequired[list[Session]]


@with_config(_OPEN)
class Best(TypedDict):
    """The best trial of a search, or the winner of its finals."""

    skip: NotRequired[str | None]
    value: NotRequired[Number]
    fresh_value: NotRequired[Number]
    speedup: NotRequired[Number]
    low: NotRequired[Number]
    high: NotRequired[Number]
    n_prompts: NotRequired[int | None]
    in_doubt: NotRequired[list[str] | None]


@with_config(_OPEN)
class Verdict(TypedDict):
    """What the importance map of a search promises."""

    text: NotRequired[str | None]


@with_config(_OPEN)
class Summary(TypedDict):
    """The end of a run."""

    best: NotRequired[Best | None]
    winner: NotRequired[Best | None]
    verdict: NotRequired[Verdict | None]
    verdicts: NotRequired[dict[str, int]]
    predicted: NotRequired[dict[str, float] | None]
    unit: NotRequired[str | None]
    steps: NotRequired[int | None]
    best_step: NotRequired[int | None]
    seconds: NotRequired[Number]
    conditional: NotRequired[list[float] | None]
    expected_speedup: NotRequired[Number]
    draft_length: NotRequired[int | None]


class FailedJob(TypedDict):
    """Why a job of a sweep failed, and its settings."""

    error: str
    overrides: list[str]


@with_config(_OPEN)
class SearcherSettings(TypedDict):
    """Settings of the searcher."""

    n_trials: NotRequired[int | None]


@with_config(_OPEN)
class RegistrySettings(TypedDict):
    """Where a registry has the model."""

    sha256: NotRequired[str | None]


@with_config(_OPEN)
class ModelSettings(TypedDict):
    """Where the model is."""

    hub_id: NotRequired[str | None]
    path: NotRequired[str | None]
    registry: NotRequired[RegistrySettings | None]


@with_config(_OPEN)
class SamplingSettings(TypedDict):
    """How tokens are chosen."""

    do_sample: NotRequired[bool | None]
    temperature: NotRequired[Number]


@with_config(_OPEN)
class Settings(TypedDict):
    """The resolved configuration, `config.yaml`."""

    searcher: NotRequired[SearcherSettings | None]
    model: NotRequired[ModelSettings | None]
    sampling: NotRequired[SamplingSettings | None]


def read_provenance(folder: Path) -> Provenance:
    """The provenance of a run.

    Raises:
        ValueError: if it is missing or damaged; the message names the file and the field.
    """
    return _read(folder / run_files.PROVENANCE, Provenance)


def read_summary(folder: Path) -> Summary:
    """The summary of a finished run.

    Raises:
        ValueError: as `read_provenance`.
    """
    return _read(folder / run_files.SUMMARY, Summary)


def read_failure(folder: Path) -> FailedJob:
    """The reason of a failed job.

    Raises:
        ValueError: as `read_provenance`.
    """
    return _read(folder / run_files.FAILURE, FailedJob)


def read_settings(folder: Path) -> Settings:
    """The resolved configuration; empty if the run did not record it.

    Raises:
        ValueError: as `read_provenance`.
    """
    file = folder / run_files.CONFIG
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        raise ValueError(f"{file.name} is not YAML") from None
    try:
        return parse_row(body, Settings)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from None


def is_busy(session: Mapping[str, Any]) -> bool:
    """Whether the load before a session is above the load of a run with its number of threads.

    Another run may just have ended before it, so a load of this number of threads does not count as busy. False if load
    or threads are unknown.
    """
    load, threads = session.get("load_before"), session.get("threads")
    return load is not None and threads is not None and bool(load > threads + OWN_LOAD)


def _read(file: Path, kind: type[T]) -> T:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"no {file.name}: not a run, or one that was killed while it started") from None
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read ({error.strerror})") from None
    try:
        return parse_row(data, kind)
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{file.name} is {text}" if text == "not JSON" else f"{file.name}: {text}") from None
