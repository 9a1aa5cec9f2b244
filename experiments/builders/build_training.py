"""From configuration to the parts of a collection and of a training."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from experiments.builders import build
from search.costs.round_costs import round_costs
from search.costs.table import CostTable
from search.fitting.vocabulary import most_useful
from selfspec.drafters.lookup import joined
from selfspec.errors import InputError
from selfspec.heads.build import build_head_draft
from selfspec.heads.modules import DraftModule, build_module, size_of
from selfspec.heads.refinement.refine import Refine
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.decoder import Decoder
from selfspec.models.load import Loaded
from selfspec.skipping.plan import DraftPlan
from selfspec.training.batches import split
from selfspec.training.collect import Collecting
from selfspec.training.heldout import RoundCosts
from selfspec.training.refining import count
from selfspec.training.store import NAME, Store
from selfspec.training.trainer import Training

log = logging.getLogger(__name__)

STORES = "store"  # folder of the stores, in the outputs
AUTO = "auto"
FEATURES = (0.1, 0.5, 0.9)  # depths of the layers that EAGLE-3 reads: 2, L/2 and L - 3 of 30 layers


def collecting(cfg: DictConfig, decoder: Decoder) -> Collecting:
    """The settings of a collection."""
    layers = [*feature_layers(decoder), -1] if cfg.layers is None else list(cfg.layers)
    return Collecting(
        layers=tuple(sorted(set(layers))),
        temperatures=tuple(map(float, cfg.temperatures)),
        samples=cfg.samples,
        max_new_tokens=cfg.max_new_tokens,
        batch=cfg.batch,
        top_k=cfg.top_k,
        seed=cfg.seed,
    )


def feature_layers(decoder: Decoder) -> list[int]:
    """A low, a middle and a high layer."""
    return sorted({int(fraction * (decoder.n_layers - 1)) for fraction in FEATURES})


def new_store(
    cfg: DictConfig, loaded: Loaded, prompts: Sequence[Sequence[int]], how: Collecting, *, seen: Sequence[str]
) -> Store:
    """The store of these prompts and settings, which may hold shards already.

    Args:
        cfg: configuration of the run.
        loaded: the model.
        prompts: token ids.
        how: settings of the collection.
        seen: digests of the prompts, which no evaluation of a draft that is trained on them may use.
    """
    content: dict[str, Any] = {
        "weights": loaded.facts["weights"],
        "dtype": loaded.facts["dtype"],
        "prompts": hashlib.sha256(json.dumps([list(p) for p in prompts]).encode()).hexdigest(),
        **{name: getattr(how, name) for name in how.__dataclass_fields__},
    }
    content |= {"layers": list(how.layers), "temperatures": list(how.temperatures)}
    folder = Path(cfg.paths.outputs) / STORES
    facts = build.facts(cfg, loaded, n_prompts=len(prompts))
    return Store.create(folder, f"{cfg.model.name}-{cfg.data.name}", content, facts=facts, seen=list(seen))


def stores(cfg: DictConfig, loaded: Loaded) -> list[Store]:
    """The stores that `cfg.store` names, or the newest one of this model.

    Raises:
        InputError: if there is none, or one holds text of other weights.
    """
    asked = cfg.store
    if asked is None:
        folder = Path(cfg.paths.outputs) / STORES
        found = sorted(folder.glob(f"{cfg.model.name}-*/{NAME}"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise InputError(f"no store of {cfg.model.name} in {folder}; selfspec collect model=... data=... makes one")
        paths = [found[-1].parent]
        log.info("store: %s", paths[0])
    else:
        paths = [Path(str(p)).expanduser() for p in (asked if not isinstance(asked, str) else [asked])]
    opened = [Store(path) for path in paths]
    for store in opened:
        there, here = store.about["content"].get("weights"), json.loads(json.dumps(loaded.facts["weights"]))
        if there != here:
            raise InputError(
                f"the store {store.path} is of other weights ({there}); this model has {here}: collect text of this "
                "model, or load the other one"
            )
    return opened


def head_settings(cfg: DictConfig, decoder: Decoder | None = None) -> tuple[str, dict[str, Any]]:
    """Kind and settings of the head that `cfg.drafter` describes.

    Args:
        cfg: configuration of the run.
        decoder: the model, for settings that depend on it; None: these stay open.

    Raises:
        InputError: if the drafter is not trained.
    """
    head = cfg.drafter.get("head")
    if head is None:
        raise InputError(f"drafter={cfg.drafter.get('name')} is not trained; selfspec train needs one like eagle")
    settings = OmegaConf.to_container(head.settings, resolve=True)
    assert isinstance(settings, dict)
    if settings.get("layers") == AUTO and decoder is not None:
        settings["layers"] = feature_layers(decoder)
    return str(head.kind), {str(key): value for key, value in settings.items()}


def module(cfg: DictConfig, decoder: Decoder, held: Sequence[Store]) -> DraftModule:
    """A new head; what it counts, it counts on the texts that are not held out."""
    kind, settings = head_settings(cfg, decoder)
    torch.manual_seed(cfg.train.seed)
    made = build_module(kind, size_of(decoder, settings.get("mlp")), settings)
    if isinstance(made, Refine):
        count(made, held, split(held)[0], decoder.n_vocab)
    return made


def training(cfg: DictConfig) -> Training:
    """The settings of a training."""
    settings = OmegaConf.to_container(cfg.train, resolve=True)
    assert isinstance(settings, dict)
    return Training(**{str(k): v for k, v in settings.items()})


def vocabulary(cfg: DictConfig, decoder: Decoder, held: Sequence[Store]) -> Tensor:
    """Ids of the tokens that the draft scores: the most frequent ones of the stores."""
    if cfg.vocabulary is None:
        return torch.arange(decoder.n_vocab)
    texts = [text for store in held for text in store.texts()]
    return most_useful(
        [t.tokens for t in texts],
        cfg.vocabulary,
        n_vocab=decoder.n_vocab,
        prompts=[t.prompt for t in texts],
        always=decoder.eos_ids,
    )


def memory(cfg: DictConfig, held: Sequence[Store]) -> Tensor | None:
    """The memory of prompt lookup: the first answers of the stores, in their order, up to `cfg.memory` tokens."""
    if cfg.memory is None:
        return None
    texts: list[list[int]] = []
    n_left = cfg.memory
    for text in (text for store in held for text in store.texts()):
        if n_left <= 0:
            break
        texts.append(text.tokens[:n_left])
        n_left -= len(texts[-1])
    return joined(texts)


def costs_of_head(cfg: DictConfig, decoder: Decoder, plan: DraftPlan, table: CostTable) -> RoundCosts:
    """What rounds with the trained head of a plan cost on this machine."""
    drafter = build_head_draft(plan, decoder, sample=False, needs_confidence=False)
    return round_costs(decoder, drafter, table, repeats=cfg.costs.repeats, stopwatch=Stopwatch(decoder.device))
