"""From configuration to what the training of a bridged draft begins with: a skip set, linear maps, adapters, layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from experiments.builders import build
from experiments.results.locate_draft import locate_draft
from search.fitting.bridge_fitting import BridgeFitter
from search.fitting.continuations import Text
from search.fitting.kept_fits import bridge_fitter
from selfspec.errors import InputError
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.load import Loaded
from selfspec.skipping.plan import BRIDGED, DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.training.batches import split
from selfspec.training.bridged import LAYER, Bridged, kept_layers, own_weights, with_adapters
from selfspec.training.store import Store

FIT_TOKENS = 4096  # positions of stored texts that the first maps are fitted to; chosen, not tuned


def is_bridged(cfg: DictConfig) -> bool:
    """Whether the run trains parts in place of skipped sublayers.

    Raises:
        InputError: if it does not, and has settings for that.
    """
    if cfg.drafter.get("adapter") is not None:
        return True
    idle = [name for name in ("skip", "adapter", "width") if cfg.get(name) is not None]
    if idle:
        raise InputError(
            f"{', '.join(idle)} is for drafter=bridged, and drafter={cfg.drafter.name} skips nothing: leave it out"
        )
    return False


def module(cfg: DictConfig, loaded: Loaded, stores: Sequence[Store], *, phase: Phases = unwatched) -> Bridged:
    """The parts to train, as they are before training."""
    skip = skip_set(cfg, loaded)
    plan = begun(
        skip, cfg.adapter, cfg.width, loaded=loaded, fits=fitter(cfg, loaded, stores, phase=phase), seed=cfg.train.seed
    )
    return Bridged(loaded.decoder, plan)


def skip_set(cfg: DictConfig, loaded: Loaded) -> SkipSet:
    """The skip set of the run: that of `cfg.skip`, or everything after the first layers.

    Raises:
        InputError: if there is none, or it skips nothing.
    """
    n_layers = loaded.decoder.n_layers
    if cfg.skip is None:
        keep = cfg.drafter.get("keep_first")
        if keep is None:
            raise InputError("drafter=bridged trains parts in place of skipped sublayers; set skip=RUN, or a skip set")
        return SkipSet.from_bits([i >= 2 * keep for i in range(2 * n_layers)])
    return named_set(str(cfg.skip), cfg, loaded)


def named_set(name: str, cfg: DictConfig, loaded: Loaded) -> SkipSet:
    """The skip set of a name, see `locate_draft`.

    Raises:
        InputError: if there is none, or it skips nothing.
    """
    skip = build.plan(locate_draft(name, Path(cfg.paths.outputs)), loaded).skip
    if not len(skip):
        raise InputError(f"skip={name} skips nothing, so there is nothing to train; choose a set that does")
    return skip


def fitter(cfg: DictConfig, loaded: Loaded, stores: Sequence[Store], *, phase: Phases = unwatched) -> BridgeFitter:
    """The fitter of linear maps to the stored texts that are not held out."""
    texts: list[Text] = []
    n_tokens = 0
    for s, i in split(stores)[0]:
        text = stores[s].text(i, ())
        texts.append(Text(text.prompt, text.tokens))
        n_tokens += len(text.tokens)
        if n_tokens >= FIT_TOKENS:
            break
    return bridge_fitter(loaded.decoder, texts, n_tokens=FIT_TOKENS, cache=build.cache(cfg, loaded), phase=phase)


def begun(
    skip: SkipSet, adapter: str, width: int | None, *, loaded: Loaded, fits: BridgeFitter, seed: int
) -> DraftPlan:
    """The plan of linear maps that training begins with, with adapters at zero or one layer of each run kept.

    Raises:
        InputError: if the form is unknown, has no width, or no run holds a whole layer.
    """
    if adapter != LAYER:
        return with_adapters(fits.plan(skip), adapter, width or 0, seed=seed)
    left, layers = kept_layers(skip)
    if not layers:
        raise InputError(f"adapter=layer keeps and trains a layer of each run, and skip={skip} skips no whole layer")
    plan = fits.plan(left) if len(left) else DraftPlan(left)
    return replace(plan, kind=BRIDGED, tuned=own_weights(loaded.decoder, layers))
