"""From configuration to a simulation of requests: its records, costs, arms and loads.

What takes long, recording and measuring, is kept in the run folder, so that a run that goes on, and another run with
`records=`, find it there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build, build_control, build_costs
from experiments.evaluation.unseen import unseen
from experiments.results.locate_draft import locate_draft
from experiments.serving.study import TRACE, Live, Study, arrivals, capacity, told_oracle
from search.costs.table import CostTable
from selfspec.control import Controller, StepCosts
from selfspec.control.measured import measure_drafting
from selfspec.data.prompts import encode
from selfspec.data.task import Example, select
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending
from selfspec.engine.sampling import Sampling
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.load import Loaded
from selfspec.records import run_files
from selfspec.serving import Arrival, MemoryBound, RecordedRequest, poisson, read_trace, record
from selfspec.serving.recorded_drafts import check_replayable
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet

log = logging.getLogger(__name__)

# the curves of SmartSpec's figure, and the two ends between which a controller lies
ARMS: Mapping[str, build_control.Asked] = {
    "off": {"fixed": {"max_draft": 0}},
    **{f"fixed {n}": {"fixed": {"max_draft": n}} for n in (2, 4, 6)},
    **{name: name for name in ("smartspec", "goodput", "oracle")},
}
ROUNDS, KNOWN = "rounds.jsonl", "costs.json"


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run knows of its requests.

    Attributes:
        requests: the recorded ones.
        times: arrivals of a trace; None: they arrive at random.
        steps: seconds of a step here, with those of the draft; None: not measured, since a file has them.
        overhead_s: seconds of a step beside its forwards.
        source, has_free_drafts: of the drafter.
        skip: the skip set and the number of layers, if the draft is nothing else; else None.
    """

    requests: list[RecordedRequest]
    times: list[float] | None
    steps: StepCosts | None
    overhead_s: float
    source: str
    has_free_drafts: bool
    skip: tuple[str, int] | None

    def write(self, folder: Path) -> None:
        """Write it into a run folder, so that `read` finds it whole or not at all."""
        lines = [json.dumps({"schema": run_files.SCHEMA, **request.to_dict()}) for request in self.requests]
        run_files.write_text(folder / ROUNDS, "".join(f"{line}\n" for line in lines))
        body = {name: getattr(self, name) for name in ("times", "overhead_s", "source", "has_free_drafts", "skip")}
        steps = None if self.steps is None else self.steps.to_dict()
        run_files.write_json(folder / KNOWN, {build_control.STEPS: steps, **body})

    @classmethod
    def read(cls, folder: Path) -> Recorded:
        """That of a run folder.

        Raises:
            InputError: if there is none, or its files are damaged.
        """
        try:
            body = json.loads((folder / KNOWN).read_text(encoding="utf-8"))
            requests = [RecordedRequest.from_dict(row) for row in run_files.read_rows(folder / ROUNDS)]
            return cls(
                requests,
                body["times"],
                None if body[build_control.STEPS] is None else StepCosts.from_dict(body[build_control.STEPS]),
                float(body["overhead_s"]),
                body["source"],
                body["has_free_drafts"],
                None if body["skip"] is None else (body["skip"][0], body["skip"][1]),
            )
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"records={folder} holds no recorded requests ({error}); give the folder of a selfspec serve-sim that "
                "has recorded"
            ) from None


def check(cfg: DictConfig) -> None:
    """Refuse settings that exclude each other, before anything is loaded.

    Raises:
        InputError: with the settings.
    """
    if cfg.records and cfg.engine != "replay":
        raise InputError(f"records={cfg.records} are replayed, and engine={cfg.engine} decodes; take engine=replay")
    if cfg.records and cfg.trace:
        raise InputError(f"records={cfg.records} and trace={cfg.trace} both say what is asked; leave one out")
    if cfg.trace and cfg.rates is not None:
        raise InputError(f"trace={cfg.trace} says when requests arrive, as do rates={list(cfg.rates)}; leave one out")
    if cfg.clock == "real" and cfg.engine == "replay":
        raise InputError("clock=real has no effect on engine=replay, which waits for nothing; leave it out")
    for rate in cfg.rates or ():
        poisson(1, rate=rate, seed=cfg.seed)
    if build.sampling(cfg) != Sampling(seed=cfg.sampling.seed):
        raise InputError(
            "serve-sim decodes greedily and without penalties, since other tokens have no recorded drafts; take "
            "sampling=greedy"
        )
    arms(cfg)


def arms(cfg: DictConfig) -> dict[str, Controller | None]:
    """The controllers that are compared, by name.

    Raises:
        InputError: if there is none, or one cannot be made.
    """
    asked = ARMS if cfg.arms is None else OmegaConf.to_container(cfg.arms)
    assert isinstance(asked, Mapping)
    if not asked:
        raise InputError("arms={} compares nothing; write arms={NAME: CONTROLLER}")
    return {str(name): build_control.by_name(controller) for name, controller in asked.items()}


@dataclass(frozen=True, slots=True)
class Begun:
    """A model with a draft and the prompts of the requests."""

    loaded: Loaded
    spec: DraftSpec
    prompts: list[list[int]]
    times: list[float] | None
    ending: Ending

    def live(self, cfg: DictConfig) -> Live:
        """What decodes for real."""
        drafter = build_drafter(self.spec, self.loaded.decoder)
        return Live(self.loaded.decoder, drafter, self.prompts, self.spec.stop, self.ending, cfg.clock == "real")


def begin(cfg: DictConfig, *, phase: Phases = unwatched) -> Begun:
    """Load the model and the prompts.

    Raises:
        InputError: if the settings are impossible.
    """
    trace = read_trace(Path(cfg.trace)) if cfg.trace else None
    draft = locate_draft(str(cfg.skip), Path(cfg.paths.outputs))
    policy = build.stop(cfg, draft)
    check_replayable(policy)
    loaded = build.model(cfg, phase=phase)
    lookup = build.searched(draft).get("lookup") if cfg.lookup == "searched" else cfg.lookup
    spec = build.spec(cfg, draft, loaded, policy, lookup=lookup, drafter=build.own_drafter(cfg), tree=build.tree(cfg))
    if trace is not None:
        examples = [Example(f"line {i}", prompt) for i, (_, prompt) in enumerate(trace, start=1)]
    else:
        found = unseen(build.examples(cfg, "evaluation", n=None, seed=cfg.seed), [draft], Path(cfg.paths.outputs))
        examples = select(found, n=min(cfg.n, cfg.n_prompts, len(found)), seed=cfg.seed)
    prompts = encode(
        loaded.tokenizer,
        examples,
        chat=cfg.data.chat and bool(loaded.tokenizer.chat_template),
        template=build.template(cfg),
        context_length=loaded.decoder.context_length,
        max_new_tokens=cfg.max_new_tokens,
    )
    memory(cfg).check([Arrival(0.0, len(prompt.ids), cfg.max_new_tokens) for prompt in prompts])
    times = None if trace is None else [at_s for at_s, _ in trace]
    return Begun(loaded, spec, [prompt.ids for prompt in prompts], times, Ending(cfg.max_new_tokens))


def recorded(cfg: DictConfig, begun: Begun, *, phase: Phases = unwatched) -> Recorded:
    """Measure the costs of a step, and record what would be drafted after every token of the outputs.

    Raises:
        InputError: if the costs are of another device.
    """
    decoder, spec = begun.loaded.decoder, begun.spec
    # a replay takes the seconds of a file; only controllers of real decoding need those of this machine
    is_elsewhere = cfg.engine == "replay" and bool(cfg.costs.path)
    steps = None if is_elsewhere else build_control.step_costs(cfg, begun.loaded, may_measure=True, phase=phase)
    drafter, watch = build_drafter(spec, decoder), Stopwatch(decoder.device)
    if steps is not None:
        context = build_costs.place_and_time(cfg, begun.loaded)["contexts"][0]
        drafting = measure_drafting(decoder, drafter, n_rows=cfg.batch, context=context, stopwatch=watch)
        steps = steps.drafting(drafting)
    requests: list[RecordedRequest] = []
    overheads: list[float] = []
    with phase("recording drafts", len(begun.prompts)) as step:
        for first in range(0, len(begun.prompts), cfg.batch):
            group = begun.prompts[first : first + cfg.batch]
            found = record(decoder, drafter, group, policy=spec.stop, ending=begun.ending, stopwatch=watch)
            requests += found.requests
            overheads.append(found.overhead_s)
            step(len(group))
    is_plain = spec.is_plan and spec.plan == DraftPlan.from_skip_set(spec.skip)
    return Recorded(
        requests,
        begun.times,
        steps,
        sum(overheads) / len(overheads),
        drafter.name,
        bool(getattr(drafter, "has_free_drafts", False)),
        (str(spec.skip), spec.skip.n_layers) if is_plain else None,
    )


def study(cfg: DictConfig, known: Recorded, live: Live | None) -> Study:
    """The simulations of a run.

    Raises:
        InputError: if the costs of a file lack what is replayed, or a rate is impossible.
    """
    steps, overhead_s = known.steps, known.overhead_s
    if cfg.engine == "replay" and cfg.costs.path:
        steps, overhead_s = of_file(Path(cfg.costs.path), known), 0.0
        log.info("seconds of a step: %s, of %s", cfg.costs.path, dict(steps.of or {}) or "an unknown device")
    if steps is None:
        raise InputError(f"records={cfg.records} hold no seconds of a step; give them by costs.path=FILE")
    found = Study(
        requests=known.requests,
        times={},
        rates={},
        arms={name: told_oracle(policy, known.requests) for name, policy in arms(cfg).items()},
        costs=steps,
        source=known.source,
        has_free_drafts=known.has_free_drafts,
        overhead_s=overhead_s if cfg.overhead_s is None else cfg.overhead_s,
        memory=memory(cfg),
        chunk=cfg.chunk,
        live=live,
    )
    if known.times is not None:
        return replace(found, times={TRACE: known.times}, rates={TRACE: None})
    times, rates = arrivals(_rates(cfg, found), cfg.n, cfg.seed)
    return replace(found, times=times, rates=rates)


def memory(cfg: DictConfig) -> MemoryBound:
    """The bound of what is held at once."""
    return MemoryBound(cfg.memory.max_rows, cfg.memory.max_tokens, cfg.memory.margin)


def _rates(cfg: DictConfig, study: Study) -> Sequence[float | None]:
    if cfg.rates is not None:
        return list(cfg.rates)
    most = capacity(study)
    log.info("plain decoding serves %.4g requests a second if all arrive at once", most)
    return [load * most for load in cfg.loads]


def of_file(path: Path, known: Recorded) -> StepCosts:
    """The seconds of a step in a file, which may be of any device, with those of the draft.

    The file is `costs.json` of selfspec serve-sim or of selfspec profile. The latter has none of the draft; those of a
    skip set follow from its cost table.

    Raises:
        InputError: if it lacks the seconds of a step, or those of the draft.
    """
    steps = build_control.beside(path)
    if steps is None:
        raise InputError(f"{path} holds no costs of batches; `selfspec profile` measures them")
    n_forwards = sum(draft.n_forwards for request in known.requests for draft in request.drafts)
    if steps.draft is not None or not n_forwards:
        return steps
    body: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if known.skip is None or "costs" not in body:
        raise InputError(
            f"{path} holds no seconds of this draft, which is more than a skip set; give the {KNOWN} of a selfspec "
            "serve-sim on that device"
        )
    table, skip = CostTable.read(path), SkipSet.parse(*known.skip)
    share = table.draft_cost(skip, table.contexts[0])
    return steps.drafting((share * (steps.verify[0] + steps.verify[2]), share * (steps.verify[1] + steps.verify[3])))
