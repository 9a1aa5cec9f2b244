"""selfspec train predictor=...: train predictors of acceptance for a draft, and compare stop rules that read them."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build, build_costs, build_training
from experiments.predictors import comparing, showing
from experiments.results import figures
from experiments.results.locate_draft import PREDICTORS as VERB
from experiments.results.locate_draft import locate_draft
from experiments.results.run_facts import read_provenance
from experiments.results.run_writer import open_folder
from experiments.terminal.progress import Progress
from search.costs.head_costs import round_costs
from search.costs.measure import check
from search.fitting import acceptance_fitting as fitting
from search.fitting.draft_examples import Examples, drafted_examples, teacher_forced
from selfspec.acceptance.files import Predictors, fingerprint, save_predictors
from selfspec.acceptance.predictors import Predictor, ResidualHead
from selfspec.drafters.lookup import LOOKUP
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.spec_files import load_spec
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.load import Loaded
from selfspec.records import run_files
from selfspec.stopping import Fixed
from selfspec.training.batches import split
from selfspec.training.heldout import RoundCosts
from selfspec.training.store import Store, StoredText, seen_by

log = logging.getLogger(__name__)

TABLE, LOGISTIC, SPECDEC, PUBLISHED = KINDS = ("table", "logistic", "specdec", "published")
HELD_OUT = 0.25  # largest fraction of the prompts that is held out; chosen, not tuned
RULES, RELIABILITY, REPORT, PICTURE = "rules.jsonl", "reliability.jsonl", "stops.md", "stops"


def check_predictors(cfg: DictConfig) -> None:
    """Refuse what cannot be trained, before a model is loaded.

    Raises:
        InputError: for an unknown predictor, no draft, or a setting of draft heads.
    """
    unknown = [kind for kind in cfg.predictor.kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"predictor.kinds={list(cfg.predictor.kinds)}; they are any of {', '.join(KINDS)}")
    if cfg.skip is None:
        raise InputError(
            "a predictor is trained for one draft; name it by skip=DRAFT: the folder of a search or of a selfspec "
            "train, or a skip set"
        )
    if cfg.resume:
        raise InputError("the training of a predictor takes minutes and is not resumed; start it again without resume")
    build.sampling(cfg)


def train_predictors(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Train the predictors of `cfg.predictor`, compare stop rules on held-out texts, and return the run folder.

    Raises:
        InputError: if the settings are impossible, or the stores hold too few examples.
    """
    check_predictors(cfg)
    how, outputs = cfg.predictor, Path(cfg.paths.outputs)
    run_files.make_writable(outputs)
    progress = Progress()
    loaded = build.model(cfg, phase=progress)
    held = build_training.stores(cfg.store, cfg, loaded)
    spec = _spec(cfg, loaded)
    _warn_if_seen(cfg, spec, held)
    train, kept = _texts(held, how.n_texts, how.n_compared)
    costs = _costs(cfg, loaded, spec, train, progress)
    if spec.tree is not None:
        spec = replace(spec, tree=_with_costs(spec, costs))
    facts = {"name": cfg.name, "model": cfg.model.name, "data": cfg.data.name, "stores": [str(s.path) for s in held]}
    facts |= {"draft": str(spec), "predictors": list(how.kinds), "seen": sorted(seen_by(held)), **loaded.facts}
    config = OmegaConf.to_yaml(cfg, resolve=True)
    with open_folder(outputs, VERB, cfg.name, config=config, overrides=overrides, facts=facts) as folder:
        sampling = build.sampling(cfg)
        run: dict[str, Any] = {"max_draft": how.max_draft, "sampling": sampling}
        with progress("drafting along stored texts", len(train)) as step:
            found = drafted_examples(loaded.decoder, spec, train, **run, told=step)
        if LOOKUP in found and len(found[LOOKUP].judged) < fitting.LEAST:
            say(f"{len(found.pop(LOOKUP).judged)} judged tokens of {LOOKUP} are too few: its drafts stay as they are")
        for source, examples in found.items():
            fitting.check_enough(examples.judged, source)
        say(", ".join(f"{len(e.judged)} judged tokens of {source}" for source, e in found.items()))
        predictors = {kind: _fitted(cfg, loaded, spec, kind, found, train, progress) for kind in how.kinds}
        every = spec.tree is None  # the rules are compared on chains; of a tree the predictors are judged alone
        with progress("drafting along held-out texts", len(kept)) as step:
            held_out = drafted_examples(loaded.decoder, spec, kept, **run, every_start=every, told=step)
        reliable = {
            source: comparing.reliabilities(held_out, predictors, source)
            for source in held_out
            if len(held_out[source].judged)
        }
        about = {"model": cfg.model.name, "skip": str(cfg.skip), "data": cfg.data.name, "run": folder.id}
        about |= {"draft_cost": costs.draft, "verify_cost": costs.one_more}
        for kind, of in predictors.items():
            whole = Predictors(of, spec.plan.digest(), fingerprint(loaded.decoder), spec.tree is not None, about)
            save_predictors(folder.path / kind, whole)
        text = [showing.predictor_table(reliable)]
        if every and len(kept) > 1:
            text.insert(0, _rules(folder.path, cfg, spec, found, held_out, kept, predictors, reliable, costs))
        elif every:
            say("stop rules are compared on two held-out texts at least; predictor.n_compared=1 leaves one")
        for source, of_source in reliable.items():
            for name, one in of_source.items():
                row = {"source": source, "predictor": name, "n": one.n, "log_loss": one.log_loss, "brier": one.brier}
                run_files.append_row(folder.path / RELIABILITY, {**row, "error": one.error, "bins": one.bins})
        report = "\n\n".join(text)
        run_files.write_text(folder.path / REPORT, report + "\n")
        folder.finish({"verb": VERB, "predictors": list(how.kinds), "n_texts": len(train), "n_compared": len(kept)})
    say(report)
    say(f"run: {folder.path}\n{_usage(cfg, folder.path, costs, overrides)}")
    return folder.path


def _spec(cfg: DictConfig, loaded: Loaded) -> DraftSpec:
    """The draft that the predictors are for."""
    name = locate_draft(str(cfg.skip), Path(cfg.paths.outputs))
    spec = load_spec(name, loaded.decoder, loaded.facts, stop=Fixed(cfg.predictor.max_draft))
    found = replace(spec, lookup=cfg.lookup, lookup_settings={}, tree=build.tree(cfg))
    if PUBLISHED in cfg.predictor.kinds and (found.plan.trained is not None or found.tree is not None):
        raise InputError(
            "predictor=published reads a text with the draft alone, and a trained head or a tree cannot do that; take "
            "predictor=specdec"
        )
    draws = bool(cfg.sampling.do_sample and cfg.sampling.sample_draft)
    if draws and found.tree is not None and found.tree.is_fixed:
        raise InputError(
            "siblings that are drawn without replacement have no label of their own; train and use the predictor with "
            "sampling.sample_draft=false"
        )
    return replace(found, sample_draft=bool(cfg.sampling.sample_draft))


def _texts(held: Sequence[Store], n_texts: int | None, n_compared: int) -> tuple[list[StoredText], list[StoredText]]:
    """Texts to train on and texts held out, up to a fourth of the prompts; samples of one prompt are on one side."""
    by_prompt: dict[str, list[StoredText]] = {}
    for side in reversed(split(held)):  # the prompts that a trained draft has not seen are held out first
        for text in (held[s].text(i, ()) for s, i in side):
            by_prompt.setdefault(str(text.prompt), []).append(text)
    train: list[StoredText] = []
    kept: list[StoredText] = []
    for number, texts in enumerate(by_prompt.values()):
        is_kept = len(kept) < n_compared and number < max(2, round(HELD_OUT * len(by_prompt)))
        (kept if is_kept else train).extend(texts)
    if not train:
        raise InputError(
            f"the stores hold answers to {len(by_prompt)} prompts; a predictor needs 3 at least: collect more"
        )
    return train[:n_texts], kept[:n_compared]


def _warn_if_seen(cfg: DictConfig, spec: DraftSpec, held: Sequence[Store]) -> None:
    """Tell that the draft was trained on these prompts, on which it is accepted more often than on others."""
    if spec.plan.trained is None and not spec.plan.tuned:
        return
    try:
        name = locate_draft(str(cfg.skip), Path(cfg.paths.outputs))
        seen = set(read_provenance(Path(name))["run"].get("seen") or ())
    except (ValueError, OSError, KeyError):
        return
    if seen & seen_by(held):
        log.warning(
            "the draft was trained on prompts of these stores, so its acceptance there is higher than elsewhere; "
            "collect other prompts for its predictor (store=...)"
        )


def _costs(
    cfg: DictConfig, loaded: Loaded, spec: DraftSpec, texts: Sequence[StoredText], progress: Progress
) -> RoundCosts:
    """What a round costs with this draft, in plain tokens."""
    table, *_ = build_costs.costs(cfg, loaded, phase=progress)
    plan = spec.plan
    if plan.trained is not None:
        return round_costs(build_costs.head_costs(cfg, loaded, plan, table, phase=progress), plan)
    context = int(sum(text.n_prompt for text in texts) / len(texts))
    if build_costs.given_table(cfg) is not None:
        draft = table.draft_cost(plan, context)
    else:
        watch = Stopwatch(loaded.decoder.device)
        ((_, draft),) = check(
            loaded.decoder, table, [plan], stopwatch=watch, phase=progress, **build_costs.measuring(cfg)
        )
    plain_s = table.plain_s(context)
    verify = tuple(table.verification_s(n, context) / plain_s for n in range(1, len(table.verify_s) + 1))
    return RoundCosts(max(0.0, draft), verify, max(0.0, table.overhead_s) / plain_s)


def _with_costs(spec: DraftSpec, costs: RoundCosts) -> Any:
    tree = spec.tree
    if getattr(tree, "is_priced", True):
        return tree
    return tree.priced(costs.draft, max(0.0, costs.one_more))  # type: ignore[union-attr]


def _fitted(
    cfg: DictConfig,
    loaded: Loaded,
    spec: DraftSpec,
    kind: str,
    found: Mapping[str, Examples],
    texts: Sequence[StoredText],
    progress: Progress,
) -> dict[str, Predictor]:
    """A predictor of this kind for each source; looked-up tokens have no hidden state, and take the regression."""
    how = cfg.predictor
    fits: dict[str, Predictor] = {}
    training = fitting.HeadTraining(how.rejection_weight, how.epochs, how.lr, how.batch, seed=cfg.train.seed)
    for source, examples in found.items():
        judged = examples.judged
        if kind == TABLE:
            fits[source] = fitting.fit_table(judged)
        elif kind == LOGISTIC or source == LOOKUP:
            fits[source] = fitting.fit_logistic(judged)
        else:
            if kind == PUBLISHED:
                forward = loaded.decoder.bind(spec.plan)
                with progress("reading texts as published", len(texts)) as step:
                    judged = teacher_forced(
                        loaded.decoder, forward, texts, share=how.share, seed=cfg.train.seed, told=step
                    )
                training = fitting.published(training)
            assert judged.hidden_ND is not None
            head = ResidualHead(judged.hidden_ND.shape[-1], form="published" if kind == PUBLISHED else "corrected")
            fits[source] = fitting.fit_head(head, judged, training)
    return fits


def _rules(
    folder: Path,
    cfg: DictConfig,
    spec: DraftSpec,
    found: Mapping[str, Examples],
    held_out: Mapping[str, Examples],
    kept: Sequence[StoredText],
    predictors: Mapping[str, Mapping[str, Predictor]],
    reliable: Mapping[str, Mapping[str, fitting.Reliability]],
    costs: RoundCosts,
) -> str:
    """Compare the rules; writes their rows and the picture, and returns the table."""
    source = next(name for name in found if name != LOOKUP)
    chains = comparing.chains_of(held_out, predictors, comparing.entropy_table(found[source].judged))
    lengths = [len(text.tokens) for text in kept]
    compared, oracle = comparing.compare(chains, lengths, list(predictors), costs, max_draft=cfg.predictor.max_draft)
    for one in compared:
        run_files.append_row(folder / RULES, one.to_dict())
    run_files.append_row(folder / RULES, comparing.Compared("oracle", "", oracle, 0.0).to_dict())
    title = f"{str(spec).rpartition('; stop')[0]}, {cfg.model.name} on {cfg.data.name}"
    figures.save(showing.picture(compared, oracle, reliable[source], title=title), folder / PICTURE)
    n_judged = len(kept) // 2
    where = f"{oracle.tokens} tokens of {n_judged} held-out texts; {len(kept) - n_judged} others chose the thresholds"
    price = f"a drafted token costs {costs.draft:.3f} plain tokens, verifying one more {costs.one_more:.3f}"
    return f"{where}; {price}.\n\n{showing.rule_table(compared, oracle)}"


def _usage(cfg: DictConfig, folder: Path, costs: RoundCosts, overrides: Sequence[str]) -> str:
    kind = cfg.predictor.kinds[0]
    tree = "".join(f"{word} " for word in overrides if word.startswith("tree"))
    draft = shlex.quote(f"skip={cfg.skip}")
    of = f"{draft} {tree}stop.predictor={folder / kind} model={cfg.model.name} data={cfg.data.name}"
    return (
        f"try it: selfspec evaluate {of} stop=specdec\n"
        f"or: selfspec evaluate {of} stop=optimal stop.draft_cost={costs.draft:.3f} "
        f"stop.verify_cost={max(0.0, costs.one_more):.3f}"
    )
