"""selfspec serve-sim: serve requests that come and go, with each controller at each rate, for real or from records."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build, build_serving
from experiments.builders.build_serving import KNOWN, Begun, Recorded
from experiments.results import figures
from experiments.results.run_writer import Folder, open_folder, reopen_folder
from experiments.serving.load_table import in_order, latency_figure, load_table, switching_figure
from experiments.serving.study import Engine, Study, left
from experiments.terminal.progress import Progress
from experiments.tracking import Tracker
from experiments.verbs.resuming import config_to_resume, make_ready, resuming
from selfspec.errors import InputError
from selfspec.records import provenance, run_files

log = logging.getLogger(__name__)

LOADS = "loads.jsonl"  # a row for each simulation
Row = Mapping[str, Any]
ENGINES: dict[str, tuple[Engine, ...]] = {"model": ("model",), "replay": ("replay",), "both": ("model", "replay")}


def serve_sim(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Simulate what `cfg` compares, or go on with the run that `cfg.resume` names; return the run folder.

    Raises:
        InputError: if the settings are impossible; after the run, if an output differs from plain decoding's.
    """
    resumed = Path(cfg.resume).expanduser() if cfg.resume else None
    cfg = config_to_resume(resumed, "serve-sim", overrides) if resumed else cfg
    build_serving.check(cfg)
    make_ready(resumed, cfg)
    progress = Progress()
    is_known = bool(cfg.records) or bool(resumed and (resumed / KNOWN).is_file())
    with resuming(resumed):
        begun = None if is_known and cfg.engine == "replay" else build_serving.begin(cfg, phase=progress)
        known = Recorded.read(Path(cfg.records) if cfg.records else resumed or Path()) if is_known else None
    with ExitStack() as stack:
        if resumed:
            folder = stack.enter_context(reopen_folder(resumed))
            run_files.drop_partial_line(folder.path / LOADS)
        else:
            config = OmegaConf.to_yaml(cfg, resolve=True)
            folder = stack.enter_context(
                open_folder(
                    Path(cfg.paths.outputs),
                    "serve-sim",
                    cfg.name,
                    config=config,
                    overrides=overrides,
                    facts=_facts(cfg, begun),
                )
            )
        if known is None:
            assert begun is not None
            known = build_serving.recorded(cfg, begun, phase=progress)
        if not (folder.path / KNOWN).is_file():
            known.write(folder.path)
        study = build_serving.study(cfg, known, begun.live(cfg) if begun and cfg.engine != "replay" else None)
        folder.warn_if_busy()
        tracker = stack.enter_context(build.tracking(cfg, verb="serve-sim", folder=folder.path, say=say))
        rows = _simulate(study, ENGINES[cfg.engine], folder, progress, tracker)
        _finish(cfg, study, rows, folder, say)
    return folder.path


def _facts(cfg: DictConfig, begun: Begun | None) -> dict[str, Any]:
    if begun is None:
        return {"name": cfg.name, "records": cfg.records}
    draft = {"skip": str(begun.spec.plan), "stop": build.stop_name(begun.spec.stop), "lookup": begun.spec.lookup}
    prompts = provenance.digest(str(begun.prompts))
    return build.facts(cfg, begun.loaded, **draft, max_new_tokens=cfg.max_new_tokens, seed=cfg.seed, prompts=prompts)


def _simulate(
    study: Study, engines: Sequence[Engine], folder: Folder, progress: Progress, tracker: Tracker
) -> list[Row]:
    """The rows of all simulations; those of an earlier session stay as they are."""
    path, cells = folder.path / LOADS, study.cells(engines)
    rows: list[Row] = list(run_files.read_rows(path)) if path.is_file() else []
    to_do = list(left(cells, rows))
    if rows:
        log.info("resumed: %d of %d simulations are there", len(cells) - len(to_do), len(cells))
    if to_do:
        (folder.path / run_files.SUMMARY).unlink(missing_ok=True)  # the run is no longer finished
    with progress.steps("simulation", len(cells), done=len(cells) - len(to_do)) as advance:
        for cell in to_do:
            row = study.run(cell)
            run_files.append_row(path, row)
            rows.append(row)
            shown = ("latency_s", "latency_p99_s", "first_token_s", "tokens_per_s", "mean_draft")
            tracker.show({f"{row['engine']}/{row['arm']}/{name}": row[name] for name in shown if row[name] is not None})
            advance(row)
    return in_order(rows, list(study.times), list(study.arms))


def _finish(cfg: DictConfig, study: Study, rows: Sequence[Row], folder: Folder, say: Callable[[str], None]) -> None:
    """Write table, pictures and summary, and tell them.

    Raises:
        InputError: if an output is not plain decoding's.
    """
    table = load_table(rows)
    run_files.write_text(folder.path / "loads.md", table + "\n")
    title = f"{cfg.model.name}, {cfg.data.name}" if not cfg.records else str(cfg.name)
    busiest = list(study.times)[-1]
    for engine in dict.fromkeys(row["engine"] for row in rows):
        if any(rate is not None for rate in study.rates.values()):
            figures.save(
                latency_figure(rows, engine=engine, title=f"{title}, {engine}"), folder.path / f"latency_{engine}"
            )
        figures.save(switching_figure(rows, engine=engine, load=busiest), folder.path / f"switching_{engine}")
    verdicts = sum((Counter(row.get("verdicts", {})) for row in rows), Counter[str]())
    agreement = _agreement(rows)
    say(table)
    if verdicts:
        say(f"outputs beside plain decoding's: {', '.join(f'{n} {name}' for name, n in sorted(verdicts.items()))}")
    if agreement is not None:
        say(f"tokens a second of the replay over those of real decoding: {agreement[0]:.3f} to {agreement[1]:.3f}")
    folder.finish(
        {"verb": "serve-sim", "n_simulations": len(rows), "verdicts": dict(verdicts), "replay_over_model": agreement}
    )
    say(f"run: {folder.path}")
    if verdicts.get("mismatch"):
        raise InputError(
            f"{verdicts['mismatch']} outputs differ from plain decoding's, which is a bug; see {folder.path / LOADS}"
        )


def _agreement(rows: Sequence[Row]) -> tuple[float, float] | None:
    """The least and the largest ratio of the tokens a second of a replay and of the same simulation with the model."""
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        rates.setdefault((row["load"], row["arm"]), {})[row["engine"]] = row["tokens_per_s"]
    found = [pair["replay"] / pair["model"] for pair in rates.values() if len(pair) == 2 and pair["model"]]
    return (min(found), max(found)) if found else None
