"""selfspec train drafter=...: train a draft on stored text, and save it as a draft that every verb takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from experiments.builders import build, build_costs, build_training
from experiments.predictors.training import train_predictors
from experiments.results import figures
from experiments.results.named_drafts import UNIT
from experiments.results.run_writer import open_folder, reopen_folder
from experiments.terminal.progress import Progress
from experiments.tracking.of_training import show_training, step_listener
from experiments.verbs.resuming import config_to_resume, make_ready
from search.costs.head_costs import round_costs
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import save_spec
from selfspec.heads.refinement.refine import Refine
from selfspec.models.load import Loaded
from selfspec.records import run_files
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Optimal
from selfspec.training.batches import check_layers
from selfspec.training.heldout import HeldOut, RoundCosts
from selfspec.training.overfit import check_overfit
from selfspec.training.peers import Peers, peers
from selfspec.training.refining import costs_with, refine
from selfspec.training.store import seen_by
from selfspec.training.trainer import CHECKPOINT, Trainer


def train(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Train the head of `cfg`, or go on with the training that `cfg.resume` names; return the run folder.

    Started by `torchrun`, or `accelerate launch` on GPUs, several processes train it together; the first one speaks.

    Raises:
        InputError: if the settings are impossible, or the head cannot learn.
    """
    if cfg.get("predictor") and cfg.predictor.kinds:
        return train_predictors(cfg, overrides, say)
    together = peers()
    if not together.is_first:  # the first process checks, measures, judges, speaks and writes
        logging.disable(logging.WARNING)
    resumed = Path(cfg.resume).expanduser() if cfg.resume else None
    cfg = config_to_resume(resumed, "train", overrides) if resumed else cfg
    outputs = Path(cfg.paths.outputs)
    make_ready(resumed, cfg)
    build_training.check(cfg)
    progress = Progress(None if together.is_first else Console(quiet=True))
    loaded = build.model(cfg, phase=progress)
    decoder, held = loaded.decoder, build_training.stores(cfg.store, cfg, loaded)
    module, how = build_training.module(cfg, loaded, held, phase=progress), build_training.training(cfg)
    check_layers(module.layers, held)
    if not together.is_first:
        vocabulary = build_training.vocabulary(cfg.vocabulary, decoder, held)
        costs, lr = together.first(lambda: (RoundCosts(0.0, ()), how.lr))
        _share_threads(together)
        Trainer(decoder, module, held, vocabulary, replace(how, lr=lr), costs, resumed, together).run()
        return outputs
    n_weights = sum(p.numel() for p in module.parameters())
    facts = {"name": cfg.name, "model": cfg.model.name, "data": cfg.data.name, "drafter": cfg.drafter.name}
    facts |= {"n_weights": n_weights, "stores": [str(s.path) for s in held], **loaded.facts}
    facts |= {"n_answer_tokens": sum(s.n_tokens for s in held)}
    facts |= {"seen": sorted(seen_by(held))}
    with ExitStack() as stack:
        if resumed is not None:
            folder = stack.enter_context(reopen_folder(resumed))
        else:
            config = OmegaConf.to_yaml(cfg, resolve=True)
            folder = stack.enter_context(
                open_folder(outputs, "train", cfg.name, config=config, overrides=overrides, facts=facts)
            )
        tracker = stack.enter_context(build.tracking(cfg, verb="train", folder=folder.path, say=say))
        say(f"{cfg.drafter.name}: {n_weights / 1e6:.2f} M weights, {sum(s.n_tokens for s in held)} answer tokens")
        if cfg.check_overfit and not (folder.path / CHECKPOINT).is_file():
            checked = check_overfit(decoder, module, held[0], how)
            lower = f"; it diverges at {2 * how.lr:g}, so it is trained with lr={checked.lr:g}" * (checked.lr < how.lr)
            how = replace(how, lr=checked.lr)
            say(f"one text by heart: acceptance {checked.acceptance:.2f}, so the head is fed rightly{lower}")
        vocabulary = build_training.vocabulary(cfg.vocabulary, decoder, held)
        base = DraftPlan(
            SkipSet.from_bits([True] * (2 * decoder.n_layers)),
            head=None if cfg.vocabulary is None else vocabulary,
            precision=cfg.precision,
            memory=build_training.memory(cfg, held),
        )
        costs, _ = together.first(lambda: (_costs(cfg, loaded, module.into(base), progress), how.lr))
        costs = costs_with(costs, module) if isinstance(module, Refine) else costs
        _share_threads(together)
        say(f"a drafted token costs {costs.draft:.3f} plain tokens, and a round {costs.overhead:.3f} besides")
        trainer = Trainer(decoder, module, held, vocabulary, how, costs, folder.path, together)
        curve = folder.path / run_files.CURVE
        run_files.keep_rows(curve, lambda row: row["step"] <= trainer.progress.step)
        with progress.steps("step", trainer.n_steps, done=trainer.progress.step) as advance:
            track = step_listener(tracker)
            for row in run_files.read_rows(curve) if curve.is_file() else ():
                track(row)

            def told(row: Mapping[str, Any]) -> None:
                run_files.append_row(curve, row)
                track(row)
                advance()
                if "conditional" in row:
                    say(f"step {row['step']}, {row['seconds']:.0f} s: {_text(row['conditional'], row)}")

            found = trainer.run(told)
        more: dict[str, Any] = {}
        if isinstance(module, Refine):
            refined = refine(trainer, module)
            say(str(refined))
            found, more = refined.held_out(module.mode), {"refined": refined.to_dict()}
        _finish(cfg, loaded, folder, module.into(base), found, costs, trainer, say, more)
        show_training(tracker, folder.path, name=cfg.name)
    return folder.path


def _share_threads(together: Peers) -> None:
    """Leave each process its share of the threads, once costs were measured with all of them."""
    if together.n > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // together.n))


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
    more: Mapping[str, Any],
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
            **({} if trainer.progress.untrained is None else {"untrained": trainer.progress.untrained}),
            "n_held_out": found.n,
            "draft_cost": costs.draft,
            "round_cost": costs.overhead,
            **row,
            **more,
        }
    )
    before = trainer.progress.untrained
    say(
        f"held out ({found.n} drafts): {_text(list(found.conditional), row)}, without lookup"
        + ("" if before is None else f"; {before:.2f}x before training")
        + f"\nrun: {folder.path}\n"
        f"try it: selfspec evaluate drafter={folder.path} stop=searched lookup=searched model={cfg.model.name} "
        f"data={cfg.data.name}"
    )
