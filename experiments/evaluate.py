"""selfspec evaluate: plain decoding and drafts in turn, on prompts that no search has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments import build
from experiments.alternate import alternate
from experiments.folder import Folder, open_folder
from experiments.progress import progress
from experiments.runs import find_runs
from experiments.tables import arm_rows, arm_table, verdict_sentences
from experiments.tracking import Tracker
from selfspec import records
from selfspec.errors import InputError


def evaluate(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Evaluate the arms of `cfg`; returns the run folder.

    Raises:
        InputError: if what was asked cannot be done; after the run, if an output is not the baseline's.
    """
    outputs = Path(cfg.paths.outputs)
    records.make_writable(outputs)
    if cfg.batch < 1:
        raise InputError(f"batch={cfg.batch}; decode at least 1 prompt at a time")
    loaded = build.model(cfg)
    n_new = cfg.max_new_tokens
    prompts = build.prompts(cfg, loaded, "evaluation", n=cfg.n, seed=cfg.seed, max_new_tokens=n_new)
    (warm_up,) = build.prompts(cfg, loaded, "calibration", n=1, seed=cfg.seed, max_new_tokens=n_new)
    arms = build.arms(cfg, loaded, build.ending(cfg, loaded))
    facts = build.facts(
        cfg,
        loaded,
        max_new_tokens=n_new,
        seed=cfg.seed,
        batch=cfg.batch,
        n_prompts=len(prompts),
        arms={a.name: {"skip": None if a.skip is None else str(a.skip), "stop": a.stop} for a in arms},
        warm_up=f"each arm decoded {warm_up.example.id!r} once before; not counted",
    )
    config = OmegaConf.to_yaml(cfg, resolve=True)
    with open_folder(outputs, "evaluate", cfg.name, config=config, overrides=overrides, facts=facts) as folder:
        tracker = build.tracker(cfg, verb="evaluate", run_id=folder.id, folder=folder.path)
        with progress("evaluate", len(prompts) * len(arms)) as advance:

            def on_row(row: dict[str, Any]) -> None:
                advance(f"{row['prompt_id']} {row['arm']}")

            verdicts = alternate(
                loaded.decoder,
                arms,
                prompts,
                batch=cfg.batch,
                warm_up=warm_up,
                to_text=lambda ids: str(loaded.tokenizer.decode(ids, skip_special_tokens=True)),
                is_greedy=not cfg.sampling.do_sample,
                rows_path=folder.path / records.RECORDS,
                listener=on_row,
            )
        folder.finish({"verb": "evaluate", "n_prompts": len(prompts), "verdicts": dict(verdicts)})
        _tell(folder, outputs, tracker, say)
    if verdicts["mismatch"]:
        raise InputError(
            f"{verdicts['mismatch']} outputs differ from plain decoding by more than a tie can explain; this is a bug "
            f"in the engine, please report it with {folder.path / records.RECORDS}"
        )
    return folder.path


def _tell(folder: Folder, outputs: Path, tracker: Tracker, say: Callable[[str], None]) -> None:
    rows = arm_rows(*find_runs(str(folder.path), outputs))
    say(arm_table(rows))
    for sentence in verdict_sentences(rows):
        say(sentence)
    tracker.table("arms", [asdict(r) for r in rows])
    line = tracker.finish()
    say(f"run: {folder.path}")
    if line:
        say(line)
