"""Run folders as search and evaluate leave them, with made-up rows: hundreds of them in a second."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfspec.records.run_files import SCHEMA
from selfspec.skipping.skip_set import SkipSet

N_LAYERS = 16
N_TRIALS = 40


def search_run(
    outputs: Path,
    *,
    seed: int = 0,
    n_trials: int = N_TRIALS,
    searcher: str = "quadratic",
    model: str = "toy",
    is_finished: bool = True,
) -> Path:
    """A search: skipping nothing, every sublayer alone as far as trials go, then sets at random."""
    rng = random.Random(seed)
    sets = [SkipSet(N_LAYERS)]
    sets += [SkipSet.from_bits([i == bit for i in range(2 * N_LAYERS)]) for bit in range(2 * N_LAYERS)]
    while len(sets) < n_trials:
        sets.append(SkipSet.from_bits([rng.random() < 0.4 for _ in range(2 * N_LAYERS)]))
    rows = [_trial(i, skip, rng) for i, skip in enumerate(sets[:n_trials])]
    facts = {"model": model, "data": "mini", "searcher": searcher, "objective": "expected_speedup"}
    folder = _folder(outputs, "search", seed, facts | {"n_layers": N_LAYERS, "seed": seed})
    _write_rows(folder / "trials.jsonl", rows)
    (folder / "config.yaml").write_text(
        f"searcher: {{n_trials: {N_TRIALS}}}\nstop: {{max_draft: 6}}\n", encoding="utf-8"
    )
    (folder / "study.journal").touch()
    if is_finished:
        best = max(rows, key=lambda row: float(row["value"]))
        found = {name: best[name] for name in ("number", "skip", "value")}
        _write(folder / "summary.json", {"verb": "search", "n_trials": n_trials, "best": found})
    return folder


def _trial(number: int, skip: SkipSet, rng: random.Random) -> dict[str, Any]:
    acceptance, cost = 1 - 0.9 * skip.fraction**1.5 - 0.05 * rng.random(), 1 - 0.9 * skip.fraction
    drafted = 100
    accepted = round(acceptance * drafted)
    return {
        "number": number,
        "origin": "start" if number < 4 else "searcher",
        "skip": str(skip),
        "attn": sorted(skip.attn),
        "mlp": sorted(skip.mlp),
        "state": "complete",
        "value": 0.6 + acceptance - 0.5 * cost,
        "acceptance": acceptance,
        "draft_cost": cost,
        "drafted": drafted,
        "accepted": accepted,
        "n_rounds": 30,
        "n_tokens": accepted + 30,
        "seconds": 1.0,
        "elapsed_s": float(number + 1),
        "seed": 0,
        "reason": None,
    }


def evaluate_run(
    outputs: Path, *, skip: str | None = None, seed: int = 0, arms: Sequence[str] = ("searched", "longer"), **facts: Any
) -> Path:
    """An evaluation of three arms on four prompts; by default of the best set of the first search there is."""
    if skip is None:
        summary = next((outputs / "search" / "made-up").glob("*/summary.json"))
        skip = json.loads(summary.read_text(encoding="utf-8"))["best"]["skip"]
    about = {"model": "toy", "data": "mini", "dtype": "float64", "device": "cpu", "threads": 1, "n_layers": N_LAYERS}
    folder = _folder(outputs, "evaluate", seed, about | facts)
    rows = []
    for prompt in range(4):
        for arm in ("plain", *arms):
            rows.append(_answer(f"mini/{prompt}", arm, skip, parts=prompt == 0 and arm == "searched"))
    _write_rows(folder / "records.jsonl", rows)
    _write(folder / "summary.json", {"verb": "evaluate", "n_prompts": 4})
    return folder


def train_run(outputs: Path, *, seed: int = 0, is_finished: bool = True) -> Path:
    """A training of 12 steps that looked at held-out texts three times; the second look is the best."""
    facts = {"model": "toy", "data": "mini", "drafter": "eagle", "n_weights": 4_200_000, "n_layers": N_LAYERS}
    folder = _folder(outputs, "train", seed, facts)
    rows: list[dict[str, Any]] = [{"step": i, "seconds": 2.0 * i, "loss": 9.0 / i} for i in range(1, 13)]
    for row, first, speedup in zip(rows[3::4], (0.4, 0.6, 0.5), (1.2, 1.5, 1.4), strict=True):
        row |= {"conditional": [first, 0.7], "expected_speedup": speedup, "draft_length": 2}
    _write_rows(folder / "curve.jsonl", rows)
    if is_finished:
        end = {"conditional": [0.61, 0.71], "expected_speedup": 1.53, "draft_length": 2}
        _write(folder / "summary.json", {"verb": "train", "steps": 12, "best_step": 8, "seconds": 24.0, **end})
    return folder


def _answer(prompt: str, arm: str, skip: str, *, parts: bool) -> dict[str, Any]:
    is_plain = arm == "plain"
    drafted, accepted = ([], []) if is_plain else ([3, 3, 2], [3, 2, 1])
    tokens = list(range(10))
    if parts:
        tokens[7] = 99
    return {
        "prompt_id": prompt,
        "category": "made-up",
        "arm": arm,
        "skip": None if is_plain else skip if arm == "searched" else "a1-3",
        "stop": None if is_plain else "fixed",
        "n_layers": N_LAYERS,
        "n_prompt_tokens": 5,
        "n_tokens": 10,
        "finish": "length",
        "n_rounds": 9 if is_plain else 3,
        "drafted": sum(drafted),
        "accepted": sum(accepted),
        "committed": 9,
        "prefill_s": 0.1,
        "draft_s": 0.0 if is_plain else 0.3,
        "verify_s": 0.9 if is_plain else 0.4,
        "other_s": 0.01,
        "total_s": 1.01 if is_plain else 0.81,
        "verdict": "baseline" if is_plain else "near_tie" if parts else "identical",
        "first_divergence": 7 if parts else None,
        "top2_gap": 0.001 if parts else None,
        "tolerance": 0.01 if parts else None,
        "order": 0,
        "error": None,
        "round_drafted": drafted,
        "round_accepted": accepted,
        "round_threshold": [0.6, 0.61, 0.62][: len(drafted)],
        "tokens": tokens,
        "text": "made up",
        "batch": 1,
    }


def _folder(outputs: Path, verb: str, seed: int, facts: dict[str, Any]) -> Path:
    day, minute = 1 + seed // 60, seed % 60
    folder = outputs / verb / "made-up" / f"202611{day:02}T10{minute:02}00Z-{seed:08x}"
    folder.mkdir(parents=True)
    started = f"2026-11-{day:02}T10:{minute:02}:00Z"
    _write(folder / "provenance.json", {"started": started, "packages": {}, "load_before": 0.5, "run": facts})
    return folder


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps({"schema": SCHEMA, **row}) + "\n" for row in rows), encoding="utf-8")
