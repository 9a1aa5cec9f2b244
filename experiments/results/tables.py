"""One row for each arm of an evaluate run: pooled numbers, paired with plain decoding, and the verdict on its outputs.

This module knows arms and prompts. It reads one run and must not know other files or models. `metrics` does all
divisions.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from experiments.results.run_folder import Run, flagged
from selfspec.errors import InputError
from selfspec.measure import metrics
from selfspec.measure.metrics import Timed
from selfspec.records.names import one_line
from selfspec.skipping.skip_set import SkipSet

BASELINE = "plain"
CONDITIONS = ("dtype", "device", "threads", "attention", "torch", "transformers", "selfspec", "machine")
PACE = 1.05  # ratio of plain decoding's speeds in two runs that means another state of the machine; chosen, not tuned

Key = tuple[str, int, int]  # prompt, sample, turn
Pair = tuple[Mapping[str, Any], Mapping[str, Any]]

SPEEDUP = (
    "Speedup: the arm's tokens per second over plain decoding's, pooled over the prompts both decoded, without the "
    "prefill and the token it gives; in brackets the 95 % interval over prompts."
)


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm of one run, over the prompts that both it and plain decoding decoded without an error.

    Attributes:
        skip: text that `SkipSet.parse` reads; None without a draft.
        n: number of paired answers, one for each prompt, sample and turn; n_failed: answers left out because one of the
            two arms failed.
        n_tokens: new tokens over the pairs, including the prefill's.
        tokens_per_s, speedup, low, high: speed of decoding without prefill; answers of one token have no such time.
        end_to_end_speedup, end_to_end_low, end_to_end_high: speedup with the prefill.
        n_identical: outputs equal to plain decoding's; plain decoding counts as identical to itself.
        n_not_compared: sampled outputs, which equal plain decoding's in distribution only.
        draft_cost: seconds of a drafted token over those of a plain one; nan where nothing was drafted.
        is_approximate: whether tokens stood that the model does not choose; such an arm supports no claim.
        is_lossy: whether the arm is an unverified draft; its text differs, so its speed is not comparable.
        kind: who drafts: the model's own layers, a trained head, or prompt lookup alone.
    """

    model: str
    data: str
    arm: str
    skip: str | None
    stop: str | None
    n_layers: int | None
    n: int
    n_failed: int
    n_tokens: int
    drafted: int
    accepted: int
    n_rounds: int
    acceptance: float
    tokens_per_round: float
    tokens_per_s: float
    speedup: float
    low: float
    high: float
    end_to_end_speedup: float
    end_to_end_low: float
    end_to_end_high: float
    n_identical: int
    n_near_ties: int
    n_mismatches: int
    n_not_compared: int
    dtype: str
    device: str
    threads: str
    run: str
    is_finished: bool
    attention: str = "–"
    torch: str = "–"
    transformers: str = "–"
    selfspec: str = "–"
    machine: str = "–"
    is_busy: bool = False
    is_lossy: bool = False
    is_approximate: bool = False
    draft_cost: float = math.nan
    kind: Literal["layers", "trained", "lookup"] = "layers"

    @property
    def is_baseline(self) -> bool:
        """Whether this is plain decoding itself."""
        return self.arm == BASELINE

    @property
    def skips(self) -> bool:
        """Whether its draft is the model without some layers."""
        return self.skip not in (None, "none") and self.kind == "layers"

    @property
    def is_trained(self) -> bool:
        """Whether a trained head drafts."""
        return self.kind == "trained"

    @property
    def skip_set(self) -> SkipSet | None:
        """The skip set of the arm; None if it has no draft or skips nothing."""
        if self.skip is None or self.n_layers is None or not self.skips:
            return None
        return SkipSet.parse(self.skip, self.n_layers)

    @property
    def is_judged(self) -> bool:
        """Whether every output has a verdict, where "not compared" counts as one; otherwise no speed is printed.

        The verdict of an unverified draft does not count, because its speed belongs to another text.
        """
        if self.is_lossy:
            return False
        return self.n_identical + self.n_near_ties + self.n_mismatches + self.n_not_compared == self.n

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that two comparable speeds share, in the order of `CONDITIONS`."""
        return tuple(getattr(self, name) for name in CONDITIONS)


def arm_rows(run: Run) -> list[ArmRow]:
    """One row per arm of an evaluate run, plain decoding first.

    Raises:
        InputError: if a row lacks a field, such as a row of another verb.
    """
    return [row for row, _ in paired_arms(run)]


def arms_or_problem(run: Run) -> list[ArmRow] | str:
    """The rows of `arm_rows`, or the reason why there are none, for lists that show every run."""
    try:
        return arm_rows(run)
    except (InputError, TypeError, ValueError) as error:
        return str(error)


def paired_arms(run: Run) -> list[tuple[ArmRow, list[Pair]]]:
    """Each row of `arm_rows` with the pairs that it pools: plain decoding's row and the arm's row of each answer.

    Raises:
        InputError: see `arm_rows`.
    """
    arms: dict[str, dict[Key, Mapping[str, Any]]] = {BASELINE: {}}
    try:
        for row in run.records().whole():
            key = row["prompt_id"], row.get("sample", 0), row.get("turn", 0)
            arms.setdefault(row["arm"], {})[key] = row  # the later row counts if a resumed run wrote a row twice
        return [_paired(run, arm, arms[BASELINE], rows) for arm, rows in arms.items() if rows]
    except KeyError as missing:
        raise InputError(f"run {run.name}: a row has no field {missing}; is it an evaluate run?") from None


def _paired(
    run: Run, arm: str, baseline: Mapping[Key, Mapping[str, Any]], rows: Mapping[Key, Mapping[str, Any]]
) -> tuple[ArmRow, list[Pair]]:
    failed = {prompt for side in (baseline, rows) for prompt, row in side.items() if row.get("error") is not None}
    pairs = [(baseline[p], row) for p, row in rows.items() if p in baseline and p not in failed]
    drafted, accepted, n_rounds, n_tokens = (
        sum(m[field] for _, m in pairs) for field in ("drafted", "accepted", "n_rounds", "n_tokens")
    )
    verdicts = Counter(m["verdict"] for _, m in pairs)
    whole = next((row for row in rows.values() if row.get("error") is None), {})
    is_baseline = arm == BASELINE
    decode_b, decode_m = times([(b, m) for b, m in pairs if b["n_tokens"] > 1 and m["n_tokens"] > 1], decoding)
    whole_b, whole_m = times(pairs, end_to_end)
    low, high = metrics.speedup_interval(decode_b, decode_m)
    end_to_end_low, end_to_end_high = metrics.speedup_interval(whole_b, whole_m)
    row = ArmRow(
        model=text(run.facts.get("model")),
        data=text(run.facts.get("data")),
        arm=arm,
        skip=whole.get("skip"),
        stop=whole.get("stop"),
        n_layers=whole.get("n_layers", run.facts.get("n_layers")),
        n=len(pairs),
        n_failed=len(failed),
        n_tokens=n_tokens,
        drafted=drafted,
        accepted=accepted,
        n_rounds=n_rounds,
        acceptance=metrics.acceptance(accepted, drafted),
        tokens_per_round=metrics.tokens_per_round(accepted, n_rounds) if drafted else math.nan,
        tokens_per_s=metrics.tokens_per_s(decode_m),
        draft_cost=metrics.ratio(sum(m.get("draft_s") or math.nan for _, m in pairs), drafted)
        * metrics.tokens_per_s(decode_b),
        speedup=metrics.speedup(decode_b, decode_m),
        low=low,
        high=high,
        end_to_end_speedup=metrics.speedup(whole_b, whole_m),
        end_to_end_low=end_to_end_low,
        end_to_end_high=end_to_end_high,
        n_identical=len(pairs) if is_baseline else verdicts["identical"],
        n_near_ties=verdicts["near_tie"],
        n_mismatches=verdicts["mismatch"],
        n_not_compared=verdicts["not compared"],
        dtype=text(run.facts.get("dtype")),
        device=text(run.facts.get("device")),
        threads=text(run.facts.get("threads")),
        run=run.id,
        is_finished=run.is_finished,
        attention=text(run.facts.get("attention")),
        torch=package(run, "torch"),
        transformers=package(run, "transformers"),
        selfspec=_code(run),
        machine=text(run.provenance.get("cuda") or run.provenance.get("cpu")),
        is_busy=run.is_busy,
        is_lossy=bool(run.about(arm).get("draft_only")),
        kind=_kind(run.about(arm)),
        is_approximate=bool(run.about(arm).get("approximate")),
    )
    return row, pairs


def _kind(about: Mapping[str, Any]) -> Literal["layers", "trained", "lookup"]:
    """Who drafts, by the recorded settings of an arm; earlier runs recorded a trained head in the text of its plan."""
    if about.get("lookup") == "only":
        return "lookup"
    return "trained" if str(about.get("draft")).startswith("head ") else "layers"


def package(run: Run, name: str) -> str:
    """The version of a package that the run used."""
    versions = run.provenance.get("packages")
    return text(versions.get(name) if isinstance(versions, dict) else None)


def _code(run: Run) -> str:
    """The selfspec of the run: the commit of a checkout, or else the version."""
    code = run.provenance.get("code")
    if not isinstance(code, dict) or "commit" not in code:
        return package(run, "selfspec")
    return text(code["commit"])[:8] + "-changed" * bool(code.get("is_dirty"))


def times(pairs: Sequence[Pair], clock: Callable[[Mapping[str, Any]], Timed]) -> tuple[list[Timed], list[Timed]]:
    """Times of each prompt for plain decoding and for the arm; the times of its samples and turns are added up."""
    both: dict[str, list[tuple[Timed, Timed]]] = {}
    for plain, row in pairs:
        both.setdefault(row["prompt_id"], []).append((clock(plain), clock(row)))
    sums = [
        [Timed(sum(t.seconds for t in s), sum(t.tokens for t in s)) for s in zip(*p, strict=True)]
        for p in both.values()
    ]
    return [plain for plain, _ in sums], [row for _, row in sums]


def decoding(row: Mapping[str, Any]) -> Timed:
    """The time of decoding a row, without the prefill and its token."""
    # an arm with an unknown prefill time (null) has an end-to-end speed but no decoding speed
    prefill_s = math.nan if row["prefill_s"] is None else row["prefill_s"]
    return Timed(seconds=row["total_s"] - prefill_s, tokens=row["n_tokens"] - 1)


def end_to_end(row: Mapping[str, Any]) -> Timed:
    """The time of a row with its prefill."""
    return Timed(seconds=row["total_s"], tokens=row["n_tokens"])


def text(value: object) -> str:
    """A fact as a cell: `–` if it was not recorded, `unknown` if it could not be read."""
    return "–" if value is None else "unknown" if isinstance(value, dict) else str(value)


def number(value: float, digits: int) -> str:
    """A number as a cell; `–` for nan."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def speedup_text(row: ArmRow) -> str:
    """The speedup with its interval: `0.87 [0.84, 0.90]`."""
    if row.is_baseline or math.isnan(row.speedup):
        return number(row.speedup, 2)
    return f"{row.speedup:.2f} [{number(row.low, 2)}, {number(row.high, 2)}]"


def same_text(row: ArmRow) -> str:
    """How many outputs are plain decoding's: `7/8`, or why that is not said."""
    if row.is_baseline:
        return "baseline"
    if row.is_approximate:
        return "approximate"
    return "not compared" if row.n_not_compared else f"{row.n_identical}/{row.n}"


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped, and so is what would break a line."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(one_line(c).replace("|", "\\|") for c in cells) + " |" for cells in lines)


def arm_table(rows: Sequence[ArmRow]) -> str:
    """The rows as a Markdown table with rounded numbers; an arm has speeds only if every output has a verdict."""
    return markdown_table(*arm_cells(rows))


def arm_cells(rows: Sequence[ArmRow]) -> tuple[list[str], list[list[str]]]:
    """The column names and the cells of `arm_table`."""
    header = "model,data,arm,n,failed,tokens,acceptance,tokens/round,tokens/s,speedup [95 %],identical,near ties,"
    return (header + "mismatches,dtype,device,threads,run").split(","), [_cells(row) for row in rows]


def _cells(row: ArmRow) -> list[str]:
    speeds = [number(row.tokens_per_s, 1), speedup_text(row)] if row.is_judged else ["–", "–"]
    is_compared = not (row.is_baseline or row.is_approximate or row.n_not_compared)
    verdict = [same_text(row), *([str(row.n_near_ties), str(row.n_mismatches)] if is_compared else ["–", "–"])]
    return [
        *(row.model, row.data, row.arm, str(row.n), str(row.n_failed), str(row.n_tokens)),
        *(number(row.acceptance, 3), number(row.tokens_per_round, 2), *speeds, *verdict),
        *(row.dtype, row.device, row.threads, flagged(row.run, is_finished=row.is_finished, is_busy=row.is_busy)),
    ]


def cautions(rows: Sequence[ArmRow]) -> list[str]:
    """One sentence for each reason why speeds of different runs are not comparable: other conditions, other pace."""
    notes = []
    if differs := [name for name in CONDITIONS if len({getattr(row, name) for row in rows}) > 1]:
        notes.append(f"The runs differ in {', '.join(differs)}: compare speeds only between rows where these agree.")
    same: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        if row.is_baseline and not math.isnan(row.tokens_per_s):
            same.setdefault((row.model, row.data, row.conditions, row.n, row.n_tokens), []).append(row.tokens_per_s)
    for (model, data, *_), speeds in same.items():
        if max(speeds) > PACE * min(speeds):
            notes.append(
                f"Plain decoding of {model} on {data} ran at {min(speeds):.1f} to {max(speeds):.1f} tokens/s in these "
                "runs, all conditions being the same: so did the machine, and speedups hold within a run."
            )
    return notes


def arm_csv(rows: Sequence[ArmRow]) -> str:
    """The rows as CSV with full precision; fields name the columns, and the cell of a missing number is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(ArmRow)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value != value else value for name, value in asdict(row).items()})
    return file.getvalue()
