"""What every section decodes with: a model on the device, its decoders, prompts and skip sets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gpu import pieces
from gpu.check import Check
from gpu.shapes import SMOLLM2, TOY
from selfspec.drafters.chain import Drafter
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.trace import DecodeResult
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.attention import GROUPED
from selfspec.models.decoder import Decoder
from selfspec.recorded.graphed import GraphedDecoder
from selfspec.skipping.skip_set import SkipSet, evenly_spaced
from selfspec.stopping import Fixed

N_DRAFT = 4  # tokens a round, for every way to speculate; chosen, not tuned


def weights_folder(check: Check) -> Path | None:
    """Where the carried weights are, once all pieces of them are there."""
    folder: Path = check.settings.keep
    return folder if not check.is_toy and pieces.is_whole(folder) else None


def small_model(check: Check, dtype: torch.dtype) -> Any:
    """SmolLM2 with its weights where they are there, else with random ones in its shape."""
    folder = weights_folder(check)
    given: Path | None = check.settings.model
    if given:
        model = AutoModelForCausalLM.from_pretrained(given, dtype=dtype).to(check.device)
    elif folder:
        body = json.loads((folder / pieces.CONFIG).read_text())
        body.pop("quantization_config", None)
        model = build(check, body, dtype)
        missing, unexpected = model.load_state_dict(pieces.read_weights(folder, dtype), strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        model.tie_weights()
    else:
        model = build(check, TOY if check.is_toy else SMOLLM2, dtype)
    check.results["environment"]["weights"] = str(given) if given else "pieces" if folder else "random"
    return model.eval()


def build(check: Check, settings: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model of random weights, made on the device."""
    rest = {key: value for key, value in settings.items() if key != "model_type"}
    config = AutoConfig.for_model(settings["model_type"], **rest)
    with torch.device(check.device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(check.device).eval()


def decoders(model: Any) -> tuple[Decoder, GraphedDecoder]:
    """The plain decoder and the one by graphs, both attending by groups."""
    with contextlib.suppress(ValueError):
        model.set_attn_implementation(GROUPED)
    decoder = Decoder(model)
    return decoder, GraphedDecoder(decoder)


def prompts_of(check: Check, decoder: Decoder, n: int) -> list[list[int]]:
    """Token ids of `n` prompts: the carried ones, or random ones of rising length."""
    folder = weights_folder(check)
    if folder:
        return [ids[:400] for ids in pieces.read_prompts(folder)[:n]]
    rng = torch.Generator().manual_seed(1)
    vocab = int(decoder.config.vocab_size)
    return [torch.randint(vocab, (24 + 9 * i,), generator=rng).tolist() for i in range(n)]


def skip_sets(n_layers: int) -> dict[str, SkipSet]:
    """Nothing, a few sublayers, and a third of the layers, whole ones, as transformers can leave out as well."""
    if n_layers < 24:
        return {text: SkipSet.parse(text, n_layers) for text in ("none", "m1", "a1 m1")}
    return {
        "none": SkipSet(n_layers),
        "a13,22 m20": SkipSet.parse("a13,22 m20", n_layers),
        "a third of the layers": evenly_spaced(n_layers, n_layers // 3),
    }


def spec(decoder: Decoder, drafter: Drafter, prompts: Sequence[list[int]], n_new: int) -> list[DecodeResult]:
    """The prompts as one batch, `N_DRAFT` tokens drafted a round, no end-of-sequence token."""
    stops = [Fixed(N_DRAFT).begin() for _ in prompts]
    watch = Stopwatch(decoder.device)
    return speculate(decoder, prompts, drafter=drafter, stops=stops, ending=Ending(n_new, frozenset()), stopwatch=watch)
