"""selfspec collect: let the model continue prompts, and store its text and hidden states for training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from experiments.builders import build, build_training
from experiments.terminal.progress import Progress
from selfspec.data.same_prompts import digests_of
from selfspec.records import run_files
from selfspec.training.collect import collect as fill


def collect(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Collect what the store lacks, and return its folder."""
    run_files.make_writable(Path(cfg.paths.outputs))
    progress = Progress()
    loaded = build.model(cfg, phase=progress)
    how = build_training.collecting(cfg, loaded.decoder)
    found = build.prompts(cfg, loaded, "calibration", n=cfg.n, seed=cfg.seed, max_new_tokens=how.max_new_tokens)
    prompts = [prompt.ids for prompt in found]
    seen = digests_of(prompt.example for prompt in found)
    store = build_training.new_store(cfg, loaded, prompts, how, seen=seen)
    n_shards = how.samples * -(-len(prompts) // how.batch)
    n_done = len(store.shards)
    if n_done:
        say(f"found again: {n_done} of {n_shards} shards")
    with (
        build.tracking(cfg, verb="collect", folder=store.path, say=say) as tracker,
        progress.steps("shard", n_shards, done=n_done) as advance,
    ):

        def told(n_tokens: int) -> None:
            advance()
            tracker.show({"collect/number": len(store.shards), "collect/tokens_of_shard": n_tokens})

        fill(loaded.decoder, store, prompts, how, told=told)
        tracker.show({"collect/tokens": store.n_tokens, "collect/texts": len(store)})
    say(
        f"{store.n_tokens} answer tokens of {len(prompts)} prompts, hidden states of layers "
        f"{', '.join(map(str, store.layers))}\nstore: {store.path}"
    )
    return store.path
