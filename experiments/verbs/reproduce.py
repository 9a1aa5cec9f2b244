"""selfspec reproduce: a whole experiment, step by step; a finished step never runs again.

All runs of an experiment lie below its own folder, each under the name of its step, so that an unfinished run can be
found and resumed. Steps run one after the other in this process; each frees its model before the next one.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from experiments.cli import composed, run_words
from experiments.config.composing import config_dir, flag_of, known_settings
from experiments.config.resource_estimate import told_plan
from experiments.config.steps import CACHE, RUNS, Step, is_own, plan
from experiments.results.run_writer import Folder, open_folder, reopen_folder
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records import provenance, run_files

log = logging.getLogger(__name__)

PLAN, STEPS = "plan.json", run_files.STEPS
VERBS = ("profile", "collect", "train", "search", "evaluate", "serve-sim", "report")  # verbs of steps
RESUMABLE = ("train", "search", "evaluate", "serve-sim")  # collect, begun again, goes on by itself

Say = Callable[[str], None]


def reproduce(cfg: DictConfig, overrides: list[str], say: Say) -> Path | None:
    """Run, resume or print an experiment; return its folder, or None if it was only printed."""
    words = [o for o in overrides if not is_own(o)]
    if cfg.resume:
        return _resume(Path(cfg.resume), cfg, overrides, say)
    e = cfg.experiment
    if not e.steps:
        raise InputError("reproduce needs experiment=NAME; `selfspec reproduce --help` shows which there are")
    commands = OmegaConf.to_container(e.steps, resolve=True)
    assert isinstance(commands, dict)
    steps, left_out = plan(
        {str(name): command for name, command in commands.items()},
        settings=e.settings,
        words=words,
        known={verb: known_settings(verb) for verb in VERBS},
        data_folder=cfg.data_folder,
    )
    flags = flag_of(config_dir())  # stored in each step, so that a resumed experiment has them too
    # composed once, which reports a mistake in any step before the first one runs
    settings = [composed(step.verb, step.words) for step in steps]
    steps = [replace(step, words=(*flags, *step.words)) for step in steps]
    if cfg.dry_run:
        rate = None if any(w.startswith("model=") for w in words) else e.tokens_per_s
        say(told_plan(e.name, list(zip(steps, settings, strict=True)), left_out, rate, e.rate_source))
        return None
    outputs = Path(cfg.paths.outputs)
    run_files.make_writable(outputs)
    name = e.name.replace("/", "-")
    config = OmegaConf.to_yaml(cfg, resolve=True)
    facts = {"name": name, "experiment": e.name, "left_out": left_out}
    with open_folder(outputs, "reproduce", name, config=config, overrides=overrides, facts=facts) as folder:
        run_files.write_json(folder.path / PLAN, {"steps": [asdict(step) for step in steps]})
        for left, why in left_out.items():
            say(f"left out: {left}, which {why}")
        return _run(folder, steps, cfg.paths.cache, say)


def _resume(path: Path, cfg: DictConfig, overrides: list[str], say: Say) -> Path | None:
    fixed = [o for o in overrides if o.partition("=")[0] not in ("resume", "dry_run")]
    if fixed:
        raise InputError(f"resume goes on with the experiment of {path} as it was planned; {fixed[0]} cannot change")
    if not (path / PLAN).is_file():
        raise InputError(f"resume={path}: no experiment there (no {PLAN}); give the folder that reproduce named")
    planned = json.loads((path / PLAN).read_text(encoding="utf-8"))["steps"]
    steps = [Step(s["name"], s["verb"], tuple(s["words"])) for s in planned]
    if cfg.dry_run:
        left = [s for s in steps if s.name not in _finished(path)]
        say("\n".join([f"{len(left)} of {len(steps)} steps are left", *(s.command() for s in left)]))
        return None
    run_files.drop_partial_line(path / STEPS)
    with reopen_folder(path) as folder:
        return _run(folder, steps, cfg.paths.cache, say)


def _run(opened: Folder, steps: list[Step], cache: str | None, say: Say) -> Path:
    """Run every unfinished step in order, with the experiment's cache; return the folder of the experiment."""
    folder = opened.path
    places = {RUNS: str(folder / RUNS), CACHE: cache or "null"}
    watch = Stopwatch()
    for number, planned in enumerate(steps, start=1):
        done = _finished(folder)
        place = f"step {number} of {len(steps)}, {planned.name}"
        if planned.name in done:
            say(f"{place}: finished before, {done[planned.name]}")
            continue
        step = _to_do(planned.filled({**done, **places}), folder)
        say(f"{place}: {step.command()}")
        began = watch.now()
        run = _do(step, folder, say)
        row = {"step": step.name, "verb": step.verb, "command": step.command(), "run": str(run)}
        run_files.append_row(
            folder / STEPS, {**row, "seconds": round(watch.now() - began, 3), "finished": provenance.now()}
        )
    opened.finish({"verb": "reproduce", "steps": _finished(folder)})
    say(f"run: {folder}")
    return folder


def _finished(folder: Path) -> dict[str, str]:
    """Step name to the run folder of the finished step."""
    path = folder / STEPS
    return {row["step"]: row["run"] for row in run_files.read_rows(path)} if path.is_file() else {}


def _to_do(step: Step, folder: Path) -> Step:
    """The step; or the step that resumes its unfinished run, if there is one."""
    begun = _newest(step, folder)
    can_go_on = step.verb in RESUMABLE and begun is not None and (begun / run_files.PROVENANCE).is_file()
    flags = [word for word in step.words if word.startswith("-")]
    return Step(step.name, step.verb, (*flags, f"resume={begun}")) if can_go_on else step


def _do(step: Step, folder: Path, say: Say) -> Path:
    """Run a step; return its run folder.

    Raises:
        InputError: if the step fails; the message names the command and how to resume.
        KeyboardInterrupt: if the user interrupts the step.
    """
    begun = _newest(step, folder)
    if begun is not None and run_files.is_finished(begun):  # the experiment ended before it recorded this run
        if n_wrong := _summary(begun).get("verdicts", {}).get("mismatch"):
            log.warning(
                "%s: %d outputs are not plain decoding's, and are counted as such in its tables", begun, n_wrong
            )
        return begun
    go_on = f"`selfspec reproduce resume={folder}` goes on from there"
    try:
        told = run_words(step.verb, list(step.words), say)
    except Exception as error:
        if not isinstance(error, InputError):
            log.exception("step %s failed", step.name)
        why = " ".join(str(error).split())
        raise InputError(f"step {step.name} failed: {why}; it was `{step.command()}`; {go_on}") from error
    except KeyboardInterrupt:
        log.info("interrupted; %s", go_on)
        raise
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    run = _newest(step, folder) or told
    assert run is not None
    return run


def _newest(step: Step, folder: Path) -> Path | None:
    found = sorted((folder / RUNS / step.verb / step.name).glob("*"))  # names begin with the start time
    return found[-1] if found else None


def _summary(run: Path) -> Mapping[str, Any]:
    return dict(json.loads((run / run_files.SUMMARY).read_text(encoding="utf-8")))
