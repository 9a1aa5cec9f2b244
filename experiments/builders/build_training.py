"""From configuration to the parts of a collection and of a training."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from experiments.builders import build, build_bridged
from search.fitting.vocabulary import most_useful
from selfspec.drafters.lookup import joined
from selfspec.errors import InputError
from selfspec.heads.modules import Trainable, build_module, size_of
from selfspec.heads.refinement.refine import Refine
from selfspec.measure.phases import Phases, unwatched
from selfspec.models.decoder import Decoder
from selfspec.models.load import Loaded
from selfspec.training.batches import split
from selfspec.training.collect import Collecting
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


def stores(asked: str | Sequence[str] | None, cfg: DictConfig, loaded: Loaded) -> list[Store]:
    """The stores in these folders; None: the newest one of this model.

    Raises:
        InputError: if there is none, or one holds text of other weights.
    """
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


def check(cfg: DictConfig) -> None:
    """Refuse what cannot be trained, before a model is loaded.

    Raises:
        InputError: if the drafter is not trained, or a setting is for another one.
    """
    if not build_bridged.is_bridged(cfg):
        head_settings(cfg)


def module(cfg: DictConfig, loaded: Loaded, held: Sequence[Store], *, phase: Phases = unwatched) -> Trainable:
    """A new head, or new parts of a bridged draft; `phase` is told how the latter are fitted to the stores."""
    if build_bridged.is_bridged(cfg):
        return build_bridged.module(cfg, loaded, held, phase=phase)
    decoder = loaded.decoder
    kind, settings = head_settings(cfg, decoder)
    torch.manual_seed(cfg.train.seed)
    made = build_module(kind, size_of(decoder, settings), settings)
    if isinstance(made, Refine):
        count(made, held, split(held)[0], decoder.n_vocab)
    return made


def training(cfg: DictConfig) -> Training:
    """The settings of a training."""
    settings = OmegaConf.to_container(cfg.train, resolve=True)
    assert isinstance(settings, dict)
    return Training(**{str(k): v for k, v in settings.items()})


def vocabulary(size: int | None, decoder: Decoder, held: Sequence[Store]) -> Tensor:
    """Ids of so many tokens that the draft scores, the most frequent ones of the stores; None: all."""
    if size is None:
        return torch.arange(decoder.n_vocab)
    texts = [held[s].text(i, ()) for s, i in split(held)[0]]  # held-out texts judge the vocabulary too
    return most_useful(
        [t.tokens for t in texts],
        min(size, decoder.n_vocab),
        n_vocab=decoder.n_vocab,
        prompts=[t.prompt for t in texts],
        always=decoder.eos_ids,
    )


def memory(cfg: DictConfig, held: Sequence[Store]) -> Tensor | None:
    """The memory of prompt lookup: up to `cfg.memory` tokens of answers, of each store in turn, in its order."""
    if cfg.memory is None:
        return None
    in_turn = (text.tokens for texts in zip_longest(*(s.texts() for s in held)) for text in texts if text is not None)
    found: list[list[int]] = []
    n_left = cfg.memory
    while n_left > 0 and (tokens := next(in_turn, None)) is not None:
        found.append(tokens[:n_left])
        n_left -= len(found[-1])
    return joined(found)
