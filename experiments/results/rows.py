"""The rows of a run folder, typed: one schema reads, checks and documents them.

A row is a plain dict. If an older version did not write a field, the schema gives it a default or omits it. Unknown
fields are kept. `scripts/run_folder_docs.py` makes `docs/run_folder.md` from this module, class docstrings included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic accepts the standard library's TypedDict from Python 3.12 on only

from selfspec.errors import InputError
from selfspec.records import run_files

_OPEN = ConfigDict(extra="allow", allow_inf_nan=False)

Number = float | None
Count = int | None


def _is(description: str, **default: Any) -> Any:
    return Field(description=description, **default)


@with_config(_OPEN)
class RowOfSchema(TypedDict):
    """Any row."""

    schema: Annotated[Literal[1], _is("version of the row; raised when a field changes its meaning")]


@with_config(_OPEN)
class Trial(RowOfSchema):
    """A trial of a search, in the order in which trials ended."""

    number: Annotated[int, _is("place in the search, from 0 on")]
    state: Annotated[
        Literal["complete", "pruned", "failed"],
        _is("`pruned`: scored on a part of the prompts, so `value` compares with no other; `failed`: no value"),
    ]
    skip: Annotated[str, _is("the skip set, written as `a3,5-9 m7`")]
    origin: Annotated[str, _is("who proposed it: `start` or `searcher`", default="searcher")]
    value: Annotated[Number, _is("of the objective, larger is better; null: failed", default=None)]
    acceptance: Annotated[Number, _is("accepted / drafted tokens; null: nothing was drafted", default=None)]
    draft_cost: Annotated[Number, _is("of a drafted token, in plain tokens; null: unknown", default=None)]
    elapsed_s: Annotated[Number, _is("seconds of search when it ended, over all sessions", default=None)]
    reason: Annotated[str | None, _is("why it failed or was pruned, or from which trial it is known", default=None)]
    attn: NotRequired[Annotated[list[int], _is("layers whose attention is skipped")]]
    mlp: NotRequired[Annotated[list[int], _is("layers whose MLP is skipped")]]
    settings: NotRequired[Annotated[dict[str, Any], _is("the other dimensions of the space, by name")]]
    n_tokens: NotRequired[Annotated[Count, _is("tokens decoded after the prefill's, pooled over prompts")]]
    n_rounds: NotRequired[Annotated[Count, _is("rounds, pooled over prompts")]]
    drafted: NotRequired[Annotated[Count, _is("drafted tokens, pooled over prompts")]]
    accepted: NotRequired[Annotated[Count, _is("accepted tokens, pooled over prompts")]]
    seconds: NotRequired[Annotated[Number, _is("spent on scoring")]]
    values: NotRequired[Annotated[list[float] | None, _is("value of each prompt, in the order of the prompts")]]
    stop: NotRequired[Annotated[dict[str, Any] | None, _is("stop rule, where the objective chose it for this trial")]]
    seed: NotRequired[Annotated[Count, _is("of the search")]]
    steps: NotRequired[Annotated[Count, _is("steps of training, of a search over trained drafts")]]
    untrained: NotRequired[Annotated[float | None, _is("value before training, of a draft that drafts untrained")]]
    conditional: NotRequired[
        Annotated[list[float] | None, _is("by depth: accepted on held-out texts if those before were")]
    ]
    draft_length: NotRequired[Annotated[Count, _is("tokens of a draft that promise the value")]]


@with_config(_OPEN)
class Raced(RowOfSchema):
    """A finalist of a search: scored on fresh prompts, then raced against plain decoding; the winner first."""

    skip: Annotated[str, _is("the skip set")]
    settings: NotRequired[Annotated[dict[str, Any], _is("the other dimensions of the space, by name")]]
    head: Annotated[Count, _is("tokens of a trimmed head; null: the whole head", default=None)]
    stop: NotRequired[Annotated[dict[str, Any], _is("stop rule: its name and settings")]]
    trial_value: Annotated[Number, _is("value of its trial", default=None)]
    fresh_value: Annotated[Number, _is("value on prompts that the search did not see", default=None)]
    predicted: Annotated[Number, _is("predicted speedup on those prompts; null: none is predicted", default=None)]
    expected: Annotated[Number, _is("value expected on prompts that nobody has seen; null: unknown", default=None)]
    speedup: Annotated[Number, _is("plain seconds over its seconds, by the clock", default=None)]
    low: Annotated[Number, _is("lower end of the 95 % interval of `speedup`; null: one prompt", default=None)]
    high: Annotated[Number, _is("upper end of it", default=None)]
    acceptance: Annotated[Number, _is("accepted / drafted tokens of the race", default=None)]
    tokens_per_round: Annotated[Number, _is("tokens a round of the race", default=None)]
    n_prompts: Annotated[Count, _is("prompts it raced on", default=None)]
    out_after: Annotated[Count, _is("prompts after which it was dropped; null: it was not", default=None)]
    in_doubt: Annotated[list[str], _is("why the speedup may be wrong; empty: nothing speaks against it", default=[])]
    n_races: Annotated[int, _is("races that were run; 2: a result of the first was in doubt", default=1)]


@with_config(_OPEN)
class Record(RowOfSchema):
    """An answer of an arm of an evaluation: one prompt, sample and turn. A failed one has no field after `error`."""

    prompt_id: Annotated[str, _is("id of the prompt in its data set")]
    arm: Annotated[str, _is("`plain`: the baseline")]
    category: Annotated[str | None, _is("of the prompt, where its data set has categories", default="")]
    sample: Annotated[int, _is("index of this sample of the prompt", default=0)]
    turn: Annotated[int, _is("index of the question in its conversation", default=0)]
    error: Annotated[str | None, _is("why the prompt could not be decoded", default=None)]
    skip: NotRequired[Annotated[str | None, _is("skip set of the draft; null: no draft of this model")]]
    stop: NotRequired[Annotated[str | None, _is("name of the stop rule")]]
    n_layers: NotRequired[Annotated[Count, _is("layers of the model")]]
    n_prompt_tokens: NotRequired[Annotated[int, _is("tokens of the prompt, earlier turns included")]]
    n_tokens: NotRequired[Annotated[int, _is("new tokens, the first included, which the prefill gives")]]
    finish: NotRequired[Annotated[str, _is("why it ended: `eos`, `stop` or `length`")]]
    n_rounds: NotRequired[Annotated[int, _is("rounds; of plain decoding one a token")]]
    drafted: NotRequired[Annotated[int, _is("drafted tokens")]]
    accepted: NotRequired[Annotated[int, _is("accepted tokens")]]
    committed: NotRequired[Annotated[int, _is("tokens that rounds gave: accepted ones, corrections and bonuses")]]
    prefill_s: NotRequired[Annotated[Number, _is("seconds of the prefill; null: the arm cannot tell")]]
    draft_s: NotRequired[Annotated[float, _is("seconds of drafting")]]
    verify_s: NotRequired[Annotated[float, _is("seconds of verifying; of plain decoding, of its forwards")]]
    other_s: NotRequired[Annotated[Number, _is("all other seconds")]]
    total_s: NotRequired[Annotated[float, _is("all seconds, the prefill included; of a batch, this row's share")]]
    verdict: NotRequired[
        Annotated[
            str | None, _is("against plain decoding: `baseline`, `identical`, `near_tie`, `mismatch` or `not compared`")
        ]
    ]
    first_divergence: NotRequired[Annotated[Count, _is("first token that differs from plain decoding")]]
    top2_gap: NotRequired[Annotated[Number, _is("gap of the two best logits there")]]
    tolerance: NotRequired[Annotated[Number, _is("gap up to which that is a near tie")]]
    round_drafted: NotRequired[Annotated[list[int], _is("drafted tokens of each round; empty if nothing was drafted")]]
    round_accepted: NotRequired[Annotated[list[int], _is("accepted tokens of each round")]]
    round_threshold: NotRequired[Annotated[list[Number], _is("confidence threshold of each round; null: none")]]
    round_version: NotRequired[
        Annotated[list[list[str | int]], _is("of a draft that changes: each version and its consecutive rounds")]
    ]
    tokens: NotRequired[Annotated[list[int], _is("new token ids")]]
    text: NotRequired[Annotated[str, _is("the answer")]]
    begins_in_thought: NotRequired[Annotated[bool, _is("the chat template opened a thought that the answer ends")]]
    order: NotRequired[Annotated[int, _is("place of the arm among the arms of this prompt: they take turns")]]
    batch: NotRequired[Annotated[int, _is("prompts decoded together")]]


@with_config(_OPEN)
class CurveStep(RowOfSchema):
    """A step of a training; those after which it looked at held-out texts have what it saw."""

    step: Annotated[int, _is("its number, from 1 on")]
    seconds: Annotated[Number, _is("seconds of training so far", default=None)]
    loss: Annotated[Number, _is("weighted sum of the losses", default=None)]
    conditional: NotRequired[Annotated[list[float], _is("by depth, accepted / drafted if all before were accepted")]]
    expected_speedup: NotRequired[Annotated[Number, _is("over plain decoding, at the measured costs")]]
    draft_length: NotRequired[Annotated[Count, _is("tokens of the drafts that give it")]]


@with_config(_OPEN)
class PromptRow(RowOfSchema):
    """What a chat template made of a conversation, which is kept so that a resumed run asks the same."""

    conversation: Annotated[str, _is("digest of the conversation")]
    prompt_id: Annotated[str, _is("id of the prompt")]
    turn: Annotated[int, _is("index of the question")]
    ids: Annotated[list[int], _is("token ids")]


@with_config(_OPEN)
class QualityRow(RowOfSchema):
    """A judged answer."""

    arm: Annotated[str, _is("whose answer")]
    metric: Annotated[str, _is("by which measure")]
    prompt_id: Annotated[str, _is("id of the prompt")]
    sample: Annotated[int, _is("index of this sample of the prompt", default=0)]
    value: Annotated[float, _is("of the measure, in [0, 1]")]
    reason: NotRequired[Annotated[str, _is("why code failed its tests")]]


AnyTrial = TypeVar("AnyTrial", bound=Mapping[str, Any])


def scored(trials: Iterable[AnyTrial]) -> list[AnyTrial]:
    """The trials with a comparable value, in order."""
    return [trial for trial in trials if trial["state"] == "complete" and trial.get("value") is not None]


def trial_value(trial: Trial) -> float:
    """The value of a trial of `scored`."""
    assert trial["value"] is not None, f"trial {trial['number']} has no value"
    return trial["value"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """The readable rows, and one line about each unreadable row: its file, line and field."""

    file: Path
    rows: list[T]
    problems: list[str]

    def whole(self) -> list[T]:
        """The rows.

        Raises:
            InputError: if a row is unreadable; the message names the first one.
        """
        if self.problems:
            raise InputError(f"{self.file.parent}/{self.problems[0]}; remove or mend that line")
        return self.rows


def read_rows(file: Path, kind: type[T], *, holding: str = "") -> Rows[T]:
    """The rows of a JSON-lines file; none if there is no file.

    A last line without a newline is no row yet: the run still writes it, or was killed while it wrote it.

    Args:
        file: file of a run folder.
        kind: `Trial`, `Record`, ...
        holding: text of the lines to read; other lines are skipped, which finds one trial of many sooner.
    """
    found: list[T] = []
    problems: list[str] = []
    for number, line in run_files.read_lines(file):
        if holding.encode() in line:
            try:
                found.append(parse_row(line, kind))
            except ValueError as error:
                problems.append(f"{file.name}, line {number}: {error}")
    return Rows(file, found, problems)


def parse_row(line: object, kind: type[T]) -> T:
    """The row of one JSON line, or another object of a type.

    Args:
        line: JSON text as bytes, or a value.
        kind: type of the row.

    Raises:
        ValueError: if it is no such row or object; the message names the field.
    """
    try:
        return _adapter(kind).validate_json(line) if isinstance(line, bytes) else _adapter(kind).validate_python(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        raise ValueError("not JSON")
    if first["type"] == "dict_type" and not field and "schema" not in kind.__annotations__:
        raise ValueError("holds no object")
    if (first["type"] == "dict_type" and not field) or field == "schema":
        raise ValueError(f"not a row of schema {run_files.SCHEMA}")
    if first["type"] == "missing":
        raise ValueError(f"no field {field}")
    raise ValueError(f"field {field}: {first['msg'][0].lower()}{first['msg'][1:]}, not {str(first['input'])[:40]!r}")


@cache
def _cached(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    found: TypeAdapter[T] = _cached(cast(Any, kind))
    return found


FILES: dict[str, type[Any]] = {
    run_files.TRIALS: Trial,
    run_files.FINALS: Raced,
    run_files.RECORDS: Record,
    run_files.CURVE: CurveStep,
    run_files.PROMPTS: PromptRow,
    "quality.jsonl": QualityRow,
}
"""The row files of a run folder, each with the type of its rows."""


def documentation() -> str:
    """The schema of the rows as Markdown: one table for each file, one line for each field."""
    return "\n\n".join(f"## `{name}`\n\n{_table(kind)}" for name, kind in FILES.items())


def _table(kind: type[Any]) -> str:
    schema = _adapter(kind).json_schema()
    lines = [
        f"| `{name}` | {_type(of)} | {_if_missing(name, of, schema)} | {of['description']} |"
        for name, of in schema["properties"].items()
    ]
    head = "| field | type | if it is missing | meaning |\n| --- | --- | --- | --- |"
    return "\n".join([str(kind.__doc__), "", head, *lines])


def _type(of: dict[str, Any]) -> str:
    if "anyOf" in of:
        return " or ".join(map(_type, of["anyOf"]))
    if "const" in of:
        return f"`{of['const']}`"
    if "enum" in of:
        return ", ".join(f"`{value}`" for value in of["enum"])
    return f"list of {_type(of['items'])}" if of.get("type") == "array" else str(of.get("type", "any"))


def _if_missing(name: str, of: dict[str, Any], schema: dict[str, Any]) -> str:
    if name in schema.get("required", ()):
        return "not a row"
    return f"`{'null' if of['default'] is None else repr(of['default'])}`" if "default" in of else "stays missing"
