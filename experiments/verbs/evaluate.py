"""selfspec evaluate: decode prompts that no search has seen, with plain decoding and with drafts in turn."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build
from experiments.builders.build_arms import arms as build_arms
from experiments.builders.build_trained import named_trained, pinned
from experiments.evaluation import ablation, online_report
from experiments.evaluation.arms import Arm
from experiments.evaluation.conversations import Asked, Encode
from experiments.evaluation.interleave import Key, alternate, finished, latest
from experiments.evaluation.online_arm import OnlineFiles
from experiments.evaluation.overlapped import OverlappedArm, end_processes, overlap, overlap_facts, overlap_sentences
from experiments.evaluation.predicted import predicted
from experiments.evaluation.specbench_export import write_answers
from experiments.evaluation.unseen import unseen
from experiments.quality import judge
from experiments.results.find_runs import find_runs
from experiments.results.run_writer import Folder, open_folder, provenance_of, reopen_folder
from experiments.results.tables import ArmRow, arm_rows, arm_table, speedup_text
from experiments.results.verdicts import verdict_sentences
from experiments.terminal import live_panel
from experiments.terminal.progress import Progress
from experiments.tracking import Tracker
from experiments.tracking.of_evaluation import show_evaluation
from experiments.verbs.resuming import config_to_resume, make_ready, resuming
from selfspec.answer_text import text_after
from selfspec.data.prompts import check_room, encode_turns, fit
from selfspec.data.task import Example, select
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.load import Loaded
from selfspec.records import provenance, run_files

log = logging.getLogger(__name__)

ARMS = "arms"  # the fact that is known when drafts are fitted


def evaluate(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Evaluate the arms of `cfg`, or resume the run that `cfg.resume` names; return the run folder.

    Raises:
        InputError: if the settings are impossible; after the run, if an output differs from the baseline's or no
            prompt could be decoded.
    """
    resumed = Path(cfg.resume).expanduser() if cfg.resume else None
    cfg = config_to_resume(resumed, "evaluate", overrides) if resumed else cfg
    make_ready(resumed, cfg)
    progress = Progress()
    with resuming(resumed):
        begun = begin(cfg, phase=progress)
    cfg = begun.cfg
    with ExitStack() as stack:
        if resumed:
            with resuming(resumed):
                setup = set_up(cfg, begun, phase=progress)
            _check_same(resumed, setup.facts)
            folder = stack.enter_context(reopen_folder(resumed))
            _drop_partial(resumed)
        else:
            config = OmegaConf.to_yaml(cfg, resolve=True)
            outputs = Path(cfg.paths.outputs)
            folder = stack.enter_context(
                open_folder(outputs, "evaluate", cfg.name, config=config, overrides=overrides, facts=begun.facts)
            )
            setup = set_up(cfg, begun, phase=progress)  # fits drafts, which may take long
        stack.callback(end_processes, setup.arms)
        folder.add_facts(setup.facts)
        learnt = OnlineFiles(
            folder.path,
            setup.arms,
            outputs=Path(cfg.paths.outputs),
            name=cfg.name,
            config=OmegaConf.to_yaml(cfg, resolve=True),
            overrides=overrides,
            provenance=provenance_of(folder.path),
        )
        tracker = stack.enter_context(build.tracking(cfg, verb="evaluate", folder=folder.path, say=say))
        path = folder.path / run_files.RECORDS
        rows = latest(run_files.read_rows(path)) if path.is_file() else {}
        _check_own(rows, setup, path)
        done = finished(rows, setup.asked, setup.arms)
        n_rows, n_done = _counts(setup, done)
        if rows:
            log.info("resumed: %d of %d rows are there", n_done, n_rows)
        folder.warn_if_busy()
        if n_done < n_rows:
            (folder.path / run_files.SUMMARY).unlink(missing_ok=True)  # the run is no longer finished
        panel = progress.steps("answer", n_rows, done=n_done, show=live_panel.arms, rows=list(rows.values()))
        with panel as advance:

            def tell(row: dict[str, Any]) -> None:
                learnt.told(row)
                advance(row)

            alternate(
                setup.loaded.decoder,
                setup.arms,
                setup.asked,
                batch=cfg.batch,
                warm_up=setup.warm_up,
                encode=encoder(cfg, setup.loaded, folder.path / run_files.PROMPTS),
                to_text=partial(text_after, setup.loaded.tokenizer),
                is_greedy=not cfg.sampling.do_sample,
                rows_path=path,
                done=done,
                listener=tell,
            )
        with progress("judging", 0):
            _judge(setup, folder)
        learnt.finish({"stream": folder.path.name, "finished": provenance.now()})
        _finish(cfg, setup, folder, tracker, say)
    return folder.path


def _drop_partial(path: Path) -> None:
    """Remove half-written lines of a killed run."""
    run_files.drop_partial_line(path / run_files.PROMPTS)
    if run_files.drop_partial_line(path / run_files.RECORDS):
        log.warning("resumed: the last row of %s was cut off; its prompt is decoded again", run_files.RECORDS)


def _check_same(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to resume a run if the model, the data or an arm has changed since its start."""
    began = provenance_of(path)["run"]
    here = json.loads(json.dumps(facts))
    for name in began.keys() | here.keys():
        is_new = name == ARMS and name not in began  # it ended while its drafts were fitted
        if began.get(name) != here.get(name) and not is_new:
            raise InputError(
                f"resume={path} began with {name}={began.get(name)}, and here it is {here.get(name)}; its rows would "
                "not be comparable: restore what it began with, or start another run"
            )


def _check_own(rows: Mapping[Key, Mapping[str, Any]], setup: Setup, path: Path) -> None:
    """Refuse to resume a run with answers to other prompts or from other arms."""
    keys, names = {a.key for a in setup.asked}, {arm.name for arm in setup.arms}
    for prompt, sample, _, arm in rows:
        if (prompt, sample) not in keys or arm not in names:
            raise InputError(
                f"{path} holds an answer of arm {arm!r} to prompt {prompt!r} (sample {sample}), which this run does "
                "not ask; it is of another run; put this run's own file back, or start another run"
            )


@dataclass(frozen=True, slots=True)
class Begun:
    """A run whose settings are checked, with its model and prompts; no draft is fitted yet."""

    cfg: DictConfig  # names the trained draft that an ablation tries
    loaded: Loaded
    examples: Sequence[Example]
    warm_up: Example
    facts: Mapping[str, Any]  # those that identify it, without the arms


@dataclass(frozen=True, slots=True)
class Setup:
    """The prompts and arms of a run, and the facts that identify it."""

    loaded: Loaded
    arms: Sequence[Arm]
    asked: Sequence[Asked]
    warm_up: list[int]
    facts: Mapping[str, Any]
    measure: judge.Measure | None
    speedups: Mapping[str, float]  # arm to the speedup that a search predicted
    is_spec_bench: bool  # whether answers are also written in Spec-Bench's format


def begin(cfg: DictConfig, *, phase: Phases = unwatched) -> Begun:
    """Model and prompts of `cfg`; `phase` is told how they are loaded.

    Raises:
        InputError: if the settings are impossible.
    """
    if cfg.samples > 1 and not cfg.sampling.do_sample:
        raise InputError(f"samples={cfg.samples}, but greedy decoding gives the same each time; add sampling=sample")
    loaded = build.model(cfg, phase=phase)
    trained = named_trained(cfg, loaded) if cfg.ablation and cfg.get("trained") else None
    cfg = pinned(cfg, trained) if cfg.ablation else cfg
    with phase("prompts", 0):
        asked_examples = select(_unseen(cfg), n=cfg.n, seed=cfg.seed)
        (warm_up,) = build.examples(cfg, "calibration", n=1, seed=cfg.seed)
    examples = fit(
        loaded.tokenizer,
        asked_examples,
        chat=cfg.data.chat,
        template=build.template(cfg),
        context_length=loaded.decoder.context_length,
        max_new_tokens=cfg.max_new_tokens,
    )
    _check_room(encoder(cfg, loaded), examples)
    facts = build.facts(
        cfg,
        loaded,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        batch=cfg.batch,
        samples=cfg.samples,
        n_prompts=len(examples),
        prompts=provenance.digest(str([asdict(e) for e in examples])),
        warm_up=f"each arm decoded {warm_up.id!r} once before; not counted",
    )
    return Begun(cfg, loaded, examples, warm_up, facts)


def set_up(cfg: DictConfig, begun: Begun, *, phase: Phases = unwatched) -> Setup:
    """The arms of a run, with their drafts; `phase` is told how these are fitted.

    Raises:
        InputError: if the settings of an arm are impossible.
    """
    loaded, examples = begun.loaded, begun.examples
    warm_up_ids = encode_turns(
        loaded.tokenizer, [begun.warm_up.prompt], chat=cfg.data.chat, template=build.template(cfg)
    )
    room = max(1, loaded.decoder.context_length - cfg.max_new_tokens)
    arms = build_arms(cfg, loaded, build.ending(cfg, loaded), phase=phase)
    facts = {**begun.facts, ARMS: {a.name: a.about for a in arms}}
    asked = [Asked(example, sample) for sample in range(cfg.samples) for example in examples]
    # cut to fit, because the warm-up's answer is thrown away
    return Setup(
        loaded,
        arms,
        asked,
        warm_up_ids[:room],
        facts,
        judge.measure(
            cfg.data.get("metric") if cfg.quality else None,
            examples,
            chat=cfg.data.chat,
            may_run_code=cfg.allow_code_execution,
        ),
        speedups=predicted(
            arms,
            {str(name): str(arm.get("skip", "none")) for name, arm in (cfg.arms or {}).items()},
            own=str(cfg.skip),
            outputs=Path(cfg.paths.outputs),
        ),
        is_spec_bench=getattr(build.instance(cfg.data.task), "is_spec_bench", False),
    )


def _unseen(cfg: DictConfig) -> list[Example]:
    """The evaluation prompts that the searches of the drafts have not seen."""
    arms = cfg.arms.values() if isinstance(cfg.arms, DictConfig) else ()
    named = [str(arm.get("skip", "none")) for arm in arms if isinstance(arm, DictConfig)]
    named += [str(cfg.get(name)) for name in ("ablation", "trained") if cfg.get(name)]
    every = build.examples(cfg, "evaluation", n=None, seed=cfg.seed)
    return unseen(every, [str(cfg.skip), *named], Path(cfg.paths.outputs))


def encoder(cfg: DictConfig, loaded: Loaded, kept: Path | None = None) -> Encode:
    """A function from a conversation to token ids; it raises InputError if they leave no room for the answer.

    A chat template may write the time, so each conversation is rendered once, for all arms and for a resumed run.

    Args:
        cfg: configuration of the run.
        loaded: the model.
        kept: file of JSON lines with the rendered conversations; it is read if it exists, and extended.
    """
    rows = run_files.read_rows(kept) if kept and kept.is_file() else []
    rendered: dict[str, list[int]] = {row["conversation"]: row["ids"] for row in rows}

    arguments = build.template(cfg)

    def encode(name: str, texts: Sequence[str]) -> list[int]:
        conversation = provenance.digest(json.dumps([name, *texts]))
        ids = rendered.get(conversation)
        if ids is None:
            ids = encode_turns(loaded.tokenizer, texts, chat=cfg.data.chat, template=arguments)
            rendered[conversation] = ids
            if kept and cfg.data.chat:
                row = {"conversation": conversation, "prompt_id": name, "turn": len(texts) // 2, "ids": ids}
                run_files.append_row(kept, row)
        check_room(name, ids, context_length=loaded.decoder.context_length, max_new_tokens=cfg.max_new_tokens)
        return ids

    return encode


def _check_room(encode: Encode, examples: Sequence[Example]) -> None:
    """Refuse data if no prompt can be decoded; single prompts that cannot be decoded become rows with a reason."""
    errors: list[InputError] = []
    for example in examples:
        try:
            encode(example.id, [example.prompt])
            return
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _counts(setup: Setup, done: Collection[tuple[str, int]]) -> tuple[int, int]:
    """Number of rows of the run at its end, and number of present rows."""
    n_turns = {a.key: len(a.questions) for a in setup.asked}
    return len(setup.arms) * sum(n_turns.values()), len(setup.arms) * sum(n_turns[key] for key in done)


def _judge(setup: Setup, folder: Folder) -> None:
    """Judge the answers, and write them for Spec-Bench."""
    rows = latest(run_files.read_rows(folder.path / run_files.RECORDS))
    if setup.is_spec_bench:
        write_answers(folder.path, list(rows.values()))
    judge.write_quality(folder.path, setup.measure, (a.example for a in setup.asked), rows.values())


def _finish(cfg: DictConfig, setup: Setup, folder: Folder, tracker: Tracker, say: Callable[[str], None]) -> None:
    """Write the summary, and print the results."""
    path = folder.path / run_files.RECORDS
    rows = latest(run_files.read_rows(path))
    verdicts = Counter(row.get("verdict", "failed") for row in rows.values())
    summary = {"verb": "evaluate", "n_prompts": setup.facts["n_prompts"], "verdicts": dict(verdicts)}
    overlaps = {arm.name: (arm, overlap(arm, rows.values())) for arm in setup.arms if isinstance(arm, OverlappedArm)}
    if overlaps:
        summary["overlapped"] = {name: overlap_facts(*each) for name, each in overlaps.items()}
    folder.finish(summary | {"predicted": setup.speedups})
    plain = [row for row in rows.values() if row["arm"] == setup.arms[0].name]
    if all(row.get("error") for row in plain):
        tracker.finish()
        raise InputError(f"no prompt could be decoded, see {path}; the first: {plain[0]['error']}")
    online_report.write(*find_runs(str(folder.path), Path(cfg.paths.outputs)))
    if cfg.ablation:
        ablation.write(*find_runs(str(folder.path), Path(cfg.paths.outputs)))
    arms = arm_rows(*find_runs(str(folder.path), Path(cfg.paths.outputs)))
    show_evaluation(tracker, arms, list(rows.values()))
    _tell(folder, arms, setup.speedups, say)
    measured = {row.arm: (row.speedup, row.low, row.high) for row in arms}
    for arm, found in overlaps.values():
        for sentence in overlap_sentences(arm, found, measured):
            say(sentence)
    if verdicts["mismatch"]:
        raise InputError(
            f"{verdicts['mismatch']} outputs differ from plain decoding by more than a tie can explain; this is a bug "
            f"in the engine, please report it with {path}"
        )


def _tell(folder: Folder, rows: Sequence[ArmRow], speedups: Mapping[str, float], say: Callable[[str], None]) -> None:
    say(arm_table(rows))
    for sentence in verdict_sentences(rows):
        say(sentence)
    for row in rows:
        if row.arm in speedups:
            say(f"{row.arm}: predicted {speedups[row.arm]:.2f}x, measured {speedup_text(row)}")
    if found := judge.summary(judge.quality_rows(folder.path)):
        say(judge.quality_table(found))
    say(f"run: {folder.path}")
