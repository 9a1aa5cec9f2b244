"""selfspec train drafter=...: train a draft head on stored text, and save it as a draft that every verb takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build, build_costs, build_training
from experiments.results import figures
from experiments.results.named_drafts import UNIT
from experiments.results.run_writer import open_folder, reopen_folder
from experiments.terminal.progress import Progress
from experiments.tracking.of_training import show_training, step_listener
from experiments.verbs.resuming import config_to_resume, make_ready
from search.costs.head_costs import round_costs
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import save_spec
from selfspec.models.load import Loaded
from selfspec.records import run_files
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Optimal
from selfspec.training.heldout import HeldOut, RoundCosts
from selfspec.training.overfit import check_overfit
from selfspec.training.trainer import Trainer


def train(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Train the head of `cfg`, or go on with the training that `cfg.resume` names; return the run folder.

    Raises:
        InputError: if the settings are impossible, or the head cannot learn.
    """
    resumed = Path(cfg.resume).expanduser() if cfg.resume else None
    cfg = config_to_resume(resumed, "train", overrides) if resumed else cfg
    outputs = Path(cfg.paths.outputs)
    make_ready(resumed, cfg)
    build_training.head_settings(cfg)
    progress = Progress()
    loaded = build.model(cfg, phase=progress)
    decoder, held = loaded.decoder, build_training.stores(cfg, loaded)
    module, how = build_training.module(cfg, decoder), build_training.training(cfg)
    n_weights = sum(p.numel() for p in module.parameters())
    facts = {"name": cfg.name, "model": cfg.model.name, "data": cfg.data.name, "drafter": cfg.drafter.name}
    facts |= {"n_weights": n_weights, "stores": [str(s.path) for s in held], **loaded.facts}
    facts |= {"seen": sorted({digest for s in held for digest in s.about.get("seen", ())})}
    with ExitStack() as stack:
        if resumed is not None:
            folder = stack.enter_context(reopen_folder(resumed))
            run_files.drop_partial_line(resumed / run_files.CURVE)
        else:
            config = OmegaConf.to_yaml(cfg, resolve=True)
            folder = stack.enter_context(
                open_folder(outputs, "train", cfg.name, config=config, overrides=overrides, facts=facts)
            )
        tracker = stack.enter_context(build.tracking(cfg, verb="train", folder=folder.path, say=say))
        say(f"{cfg.drafter.name}: {n_weights / 1e6:.2f} M weights, {sum(s.n_tokens for s in held)} answer tokens")
        if cfg.check_overfit and resumed is None:
            reached = check_overfit(decoder, module, held[0], how)
            say(f"one text by heart: acceptance {reached:.2f}, so the head is fed rightly")
        vocabulary = build_training.vocabulary(cfg, decoder, held)
        plan = DraftPlan(
            SkipSet.from_bits([True] * (2 * decoder.n_layers)),
            head=None if cfg.vocabulary is None else vocabulary,
            precision=cfg.precision,
            memory=build_training.memory(cfg, held),
            trained=module.value(),
        )
        costs = _costs(cfg, loaded, plan, progress)
        say(f"a drafted token costs {costs.draft:.3f} plain tokens, and a round {costs.overhead:.3f} besides")
        trainer = Trainer(decoder, module, held, vocabulary, how, costs, folder.path)
        with progress.steps("step", trainer.n_steps, done=trainer.progress.step) as advance:
            track = step_listener(tracker)
            for row in _earlier(folder.path / run_files.CURVE, trainer.progress.step):
                track(row)

            def told(row: Mapping[str, Any]) -> None:
                run_files.append_row(folder.path / run_files.CURVE, row)
                track(row)
                advance()
                if "conditional" in row:
                    say(f"step {row['step']}, {row['seconds']:.0f} s: {_text(row['conditional'], row)}")

            found = trainer.run(told)
        _finish(cfg, loaded, folder, replace(plan, trained=module.value()), found, costs, trainer, say)
        show_training(tracker, folder.path, name=cfg.name)
    return folder.path


def _earlier(file: Path, n_steps: int) -> list[dict[str, Any]]:
    """The rows of the steps before the checkpoint; later ones are taken again, so they leave the file."""
    rows = run_files.read_rows(file) if file.is_file() else []
    kept = [row for row in rows if row["step"] <= n_steps]
    if len(kept) < len(rows):
        run_files.write_text(file, "".join(f"{json.dumps(row)}\n" for row in kept))
    return kept


def _costs(cfg: DictConfig, loaded: Loaded, plan: DraftPlan, progress: Progress) -> RoundCosts:
    table, *_ = build_costs.costs(cfg, loaded, phase=progress)
    return round_costs(build_costs.head_costs(cfg, loaded, plan, table, phase=progress), plan)


def _text(conditional: list[float], row: Mapping[str, Any]) -> str:
    by_depth = " ".join(f"{a:.2f}" for a in conditional)
    return f"accepted by depth {by_depth}; {row['expected_speedup']:.2f}x expected, {row['draft_length']} a round"


def _finish(
    cfg: DictConfig,
    loaded: Loaded,
    folder: Any,
    plan: DraftPlan,
    found: HeldOut,
    costs: RoundCosts,
    trainer: Trainer,
    say: Callable[[str], None],
) -> None:
    """Save the draft and the summary, and say what was reached."""
    speedup, length = costs.best(found)
    rule = build.stop(cfg)
    if isinstance(rule, Optimal):
        rule = replace(rule, draft_cost=costs.draft, verify_cost=costs.one_more)
    spec = DraftSpec(plan, rule, lookup=cfg.lookup)
    save_spec(
        folder.path,
        spec,
        model=cfg.model.name,
        decoder=loaded.decoder,
        facts=loaded.facts,
        run=folder.id,
        conditional=[round(a, 4) for a in found.conditional],
        **({"expected": round(speedup, 4), "unit": UNIT} if cfg.lookup is None else {}),  # lookup is not in it
    )
    curve = run_files.read_rows(folder.path / run_files.CURVE)
    figures.save(figures.training_curve(curve, title=f"{cfg.drafter.name}, {cfg.model.name}"), folder.path / "curve")
    row = {"expected_speedup": speedup, "draft_length": length}
    folder.finish(
        {
            "verb": "train",
            "steps": trainer.progress.step,
            "best_step": trainer.progress.best_step,
            "seconds": trainer.progress.seconds,
            "conditional": list(found.conditional),
            "n_held_out": found.n,
            "draft_cost": costs.draft,
            "round_cost": costs.overhead,
            **row,
        }
    )
    say(
        f"held out ({found.n} drafts): {_text(list(found.conditional), row)}, without lookup\nrun: {folder.path}\n"
        f"try it: selfspec evaluate drafter={folder.path} stop=searched lookup=searched model={cfg.model.name} "
        f"data={cfg.data.name}"
    )
