"""Downloads, memory and time of an experiment, estimated from its configuration before it runs.

Times are upper bounds: every answer has its greatest length, and no arm is faster than plain decoding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from safetensors import safe_open

from experiments.config.steps import Step

BYTES = {"float64": 8, "float32": 4}  # bytes of a number; 2 in other dtypes, and for auto, which mostly is bfloat16
GB = 1e9
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a model.

    Attributes:
        parameters: numbers in its weights.
        n_layers: number of layers.
        kv_width: numbers in the key of a token in one layer, and again in its value: KV heads x head size.
        context: greatest number of tokens.
    """

    parameters: int
    n_layers: int
    kv_width: int
    context: int

    def weights(self, n_bytes: int) -> float:
        """GB of the weights."""
        return self.parameters * n_bytes / GB

    def cache(self, n_bytes: int, batch: int) -> float:
        """GB of the keys and values of full contexts."""
        return 2 * self.n_layers * self.kv_width * self.context * batch * n_bytes / GB


def size_of(model: DictConfig) -> Size | None:
    """The size of a model from its configuration, or else from the files of its folder; None if both lack it."""
    if not model.path:
        return Size(**model.size) if model.size else None
    folder = Path(model.path).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads = config["num_attention_heads"]
        head_size = config.get("head_dim") or config["hidden_size"] // heads
        kv_width = (config.get("num_key_value_heads") or heads) * head_size
        parameters = sum(map(_parameters, folder.glob("*.safetensors")))
        return Size(parameters, config["num_hidden_layers"], kv_width, config["max_position_embeddings"])
    except (OSError, ValueError, KeyError):  # other families use other names, or the folder holds no model
        return None


def _parameters(file: Path) -> int:
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def n_tokens(verb: str, cfg: DictConfig) -> int | None:
    """Greatest number of tokens that a step decodes one after the other; None if the configuration does not tell.

    The number leaves out the replays of a search: see `seconds`.
    """
    if verb == "evaluate":
        if cfg.n is None or cfg.get("ablation"):
            return None
        n_arms = (
            2
            + bool(cfg.generate)
            + len(cfg.arms or ())
            + 2 * bool(cfg.get("controls") and cfg.get("skip", "none") != "none")
        )
        return int(cfg.n * cfg.max_new_tokens * cfg.get("samples", 1) * n_arms)
    if verb != "search":
        return None
    o, finals = cfg.objective, cfg.finals
    n_sets = len(o.data or [cfg.data.name])
    per_pass = o.n_prompts * n_sets * o.max_new_tokens
    if o.name == "tokens_per_second":
        return int(cfg.searcher.n_trials * per_pass)
    n_scored = max(finals.n_prompts, finals.get("n_scored", 0))
    raced = (n_scored + finals.race * finals.n_prompts) * n_sets * o.max_new_tokens if finals.top else 0
    is_fitted = cfg.draft.kind != "skip" or cfg.head.n is not None
    return int(per_pass + raced + (cfg.calibration.n_tokens if is_fitted else 0))


def seconds(verb: str, cfg: DictConfig, tokens_per_s: float | None) -> float | None:
    """Greatest expected seconds of a step; None if they are unknown.

    A search that replays needs the seconds of its tokens plus `searcher.max_s`; without that limit they are unknown. A
    search that decodes ends after `searcher.max_s` as well.
    Those of a training are known if it has a limit.
    """
    if verb == "train":
        limit: float | None = cfg.train.max_s
        return limit
    tokens = n_tokens(verb, cfg)
    if tokens is None or not tokens_per_s:
        return None
    is_replayed = verb == "search" and cfg.objective.name != "tokens_per_second"
    if is_replayed and cfg.searcher.max_s is None:
        return None
    if verb == "search" and not is_replayed and cfg.searcher.max_s is not None:
        return float(min(tokens / tokens_per_s, cfg.searcher.max_s))
    return tokens / tokens_per_s + (cfg.searcher.max_s if is_replayed else 0)


def told_plan(
    name: str,
    steps: Sequence[tuple[Step, DictConfig]],
    left_out: Mapping[str, str],
    tokens_per_s: float | None,
    source: str | None,
) -> str:
    """The plan of an experiment in words.

    Args:
        name: name of the experiment.
        steps: the steps, each with the configuration of its verb.
        left_out: names of missing steps, each with the reason.
        tokens_per_s: speed of plain decoding; None if it is unknown for this model.
        source: source of `tokens_per_s`.
    """
    lines = [f"{name}: {len(steps)} steps; {{runs}} is the folder of their runs, {{NAME}} the run of the step NAME"]
    times = [seconds(step.verb, cfg, tokens_per_s) for step, cfg in steps]
    for number, ((step, _), time) in enumerate(zip(steps, times, strict=True), start=1):
        lines += [f"{number}. {step.name}: {_minutes(time)}", f"   {step.command()}"]
    lines += [f"left out: {step}, which {why}" for step, why in left_out.items()]
    with_model = [(step, cfg) for step, cfg in steps if "model" in cfg]
    for part in (_model(cfg) for _, cfg in with_model):
        lines += [line for line in part if line not in lines]
    sets = {_data(cfg.data): None for step, cfg in with_model if step.verb != "profile"}
    lines += [f"data: {', '.join(sets)}"] if sets else []
    known = [t for t in times if t is not None]
    unknown = [step.name for (step, _), time in zip(steps, times, strict=True) if time is None]
    open_end = f"; {UNKNOWN} for {', '.join(unknown)}" if known and unknown else ""
    lines.append(f"time: {_minutes(sum(known)) if known else UNKNOWN}{open_end}")
    if known:
        lines.append(f"  if plain decoding makes {tokens_per_s:g} tokens/s ({source}), answers are as long as allowed")
        lines.append("  and no arm is faster than plain decoding; prompts are not counted")
    return "\n".join(lines)


def _model(cfg: DictConfig) -> list[str]:
    m, size = cfg.model, size_of(cfg.model)
    n_bytes = BYTES.get(m.dtype, 2)
    weights = f"{size.weights(n_bytes):.3g} GB" if size else f"{UNKNOWN} size"
    source = f"{m.path} (nothing to download)" if m.path else f"{m.hub_id} from the hub, unless it is in the cache"
    if not m.path and m.registry:
        source += f", or {m.registry.requirement} from the package registry"
    lines = [f"model: {m.name}, {weights} in {m.dtype}: {source}"]
    batch = cfg.get("batch", 1)
    if not size:
        return [*lines, f"memory: {UNKNOWN}"]
    cache = size.cache(n_bytes, batch)
    return [
        *lines,
        f"memory: {size.weights(n_bytes) + cache:.3g} GB at most for weights and the keys and values of "
        f"{size.context} tokens{f' x {batch}' if batch > 1 else ''} ({cache:.3g} GB)",
    ]


def _data(data: Any) -> str:
    if data.get("path"):
        return f"{data.name} ({data.path})"
    return f"{data.name} (from the hub, unless it is in the cache)" if "split" in data else str(data.name)


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
