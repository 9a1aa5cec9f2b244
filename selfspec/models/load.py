"""Load a model and its tokenizer from located weights; choose device and dtype, and log the reason."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from selfspec.errors import InputError, unknown_name
from selfspec.models.attention import use_grouped
from selfspec.models.decoder import Decoder
from selfspec.models.locate import Located
from selfspec.models.packing import can_pack
from selfspec.models.packing import pack as pack_linears
from selfspec.models.weight_files import GENERATION_CONFIG

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Settings of a generation config that have an effect here, or that do not affect the output.
_USED = ("eos_token_id", "pad_token_id", "bos_token_id", "transformers_version", "use_cache", "cache_implementation")
LONGEST = 400  # characters of a loader's message that an error shows; chosen to stay readable


@dataclass(frozen=True, slots=True)
class Loaded:
    """A decoder, its tokenizer, and the facts of loading, which provenance records."""

    decoder: Decoder
    tokenizer: Any
    facts: dict[str, Any]


def physical_cores() -> int:
    """Number of physical cores, as far as the system reports them; at least 1."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, (os.cpu_count() or 2) // 2)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def choose_device(name: str) -> torch.device:
    """The device named `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is the first of cuda, mps, cpu that exists.

    Raises:
        InputError: if the device does not exist.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    kind = name.partition(":")[0]
    if kind not in there:
        raise unknown_name("device", name, ["auto", *there])
    if not there[kind]:
        found = ", ".join(k for k, is_there in there.items() if is_there)
        raise InputError(
            f"model.device={name} was asked for, but this machine offers {found}; choose one of these or auto"
        )
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype, and the reason for it."""
    if name != "auto":
        if name not in DTYPES:
            raise unknown_name("dtype", name, ["auto", *DTYPES])
        return DTYPES[name], "asked for"
    if device.type != "cpu":
        return torch.bfloat16, "auto: an accelerator"
    abilities = torch.cpu.get_capabilities()
    if abilities.get("avx512_bf16") or abilities.get("amx_bf16"):
        return torch.bfloat16, "auto: the CPU multiplies bfloat16"
    return torch.float32, "auto: the CPU does not multiply bfloat16"


def load(
    located: Located,
    *,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    device_map: str | None = None,
    pack: bool | None = None,
) -> Loaded:
    """The model in eval mode, its tokenizer, and the facts of loading.

    Args:
        located: location of the weights.
        dtype: float32, bfloat16, float16, float64 or auto.
        device: see `choose_device`.
        attention: transformers' attention implementation; auto: transformers' choice, or grouped attention
            (`selfspec.models.attention`) if that is faster.
        threads: threads of torch on the CPU; None: the number of physical cores.
        trust_remote_code: run code that comes with the weights.
        device_map: map of accelerate, for a model larger than one device.
        pack: pack the weights for oneDNN (`selfspec.models.packing`); None: if that is possible.

    Raises:
        InputError: if the weights cannot be loaded with these settings.
    """
    torch.set_num_threads(threads or physical_cores())
    place = choose_device(device)
    chosen, reason = choose_dtype(dtype, place)
    log.info("dtype %s (%s), device %s, %d threads", str(chosen)[6:], reason, place, torch.get_num_threads())
    settings: dict[str, Any] = {
        "dtype": chosen,
        "attn_implementation": None if attention == "auto" else attention,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
    }
    if device_map:
        settings["device_map"] = device_map
    where = located.folder_or_id
    with _one_line(where), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
        model, report = AutoModelForCausalLM.from_pretrained(
            where, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    _check_report(where, model, report)
    if not (Path(where) / GENERATION_CONFIG).is_file():
        log.warning(
            "%s has no %s: answers end where config.json says (token %s); if the model ends its turns with another "
            "token, fetch that file",
            *(where, GENERATION_CONFIG, model.generation_config.eos_token_id),
        )
    _tell_generation(model.generation_config)
    model = model.eval() if device_map else model.eval().to(place)
    n_parameters = sum(p.numel() for p in model.parameters())
    if pack and not can_pack(model):
        raise InputError(f"model.pack=true: weights of {str(chosen)[6:]} on {place} cannot be packed; leave it to auto")
    if attention == "auto":
        use_grouped(model)
    n_packed = pack_linears(model) if pack or (pack is None and can_pack(model)) else 0
    decoder = Decoder(model)
    _tell_ends(tokenizer, decoder)
    facts = {
        "model_type": model.config.model_type,
        "n_layers": decoder.n_layers,
        "n_parameters": n_parameters,
        "n_packed": n_packed,
        "weights": {"origin": located.origin, "revision": located.revision, "sha256": located.sha256},
        "dtype": str(chosen)[6:],
        "dtype_reason": reason,
        "device": str(place),
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads(),
    }
    return Loaded(decoder, tokenizer, facts)


def vocabulary(folder: str | Path) -> dict[str, int]:
    """The id of each token of the tokenizer in a folder.

    Raises:
        InputError: if there is none.
    """
    with _one_line(str(folder)):
        found: dict[str, int] = AutoTokenizer.from_pretrained(str(folder)).get_vocab()
        return found


def _check_report(where: str, model: Any, report: Mapping[str, Any]) -> None:
    """Refuse a model with missing tensors, which transformers would draw at random.

    A superfluous tensor of a module that the model has means that the configuration is of another model; it is refused.
    Other superfluous tensors, for example of a vision tower, are ignored with a warning.

    Raises:
        InputError: names the first such tensor and the number of them.
    """
    wrong = sorted((name, tuple(there), tuple(wanted)) for name, there, wanted in report["mismatched_keys"])
    if wrong:
        name, there, wanted = wrong[0]
        raise InputError(
            f"{where}: {name} has shape {list(there)}, but config.json wants {list(wanted)} ({len(wrong)} such "
            "tensors); put the config.json and the weights of one model together"
        )
    extra = sorted(report["unexpected_keys"], key=_by_number)
    missing = sorted(report["missing_keys"], key=_by_number)
    if missing:
        also = f", and {len(extra)} others have unknown names, as {extra[0]}" if extra else ""
        raise InputError(
            f"{where} lacks {len(missing)} of the model's tensors, as {missing[0]}{also}; fetch the weights again, or "
            "save them with save_pretrained of the bare model"
        )
    modules = {_any_number(name) for name, _ in model.named_modules()}
    alien = [name for name in extra if _any_number(name.rpartition(".")[0]) in modules]
    if alien:
        raise InputError(
            f"{where} holds {len(alien)} tensors that config.json has no place for, as {alien[0]}; put the config.json "
            "and the weights of one model together"
        )
    if extra:
        log.warning("%s: %d tensors are not part of the model and are left out, as %s", where, len(extra), extra[0])


def _tell_generation(config: Any) -> None:
    """Log which settings of the model's generation config have no effect, since a run has its own settings."""
    neutral = GenerationConfig()._get_default_generation_params()
    unused = {
        name: value
        for name, value in config.to_diff_dict().items()
        if name not in _USED and value not in (None, False, neutral.get(name)) and not name.startswith(("_", "output_"))
    }
    if unused:
        text = ", ".join(f"{k}={v}" for k, v in sorted(unused.items()))
        log.warning("of the model's generation config only the end tokens are used; these are not: %s", text)


def _tell_ends(tokenizer: Any, decoder: Decoder) -> None:
    """Warn if the tokenizer's end token does not end an answer: a chat model would go on to write further turns."""
    end = tokenizer.eos_token_id
    if end is not None and end not in decoder.eos_ids:
        log.warning(
            "the tokenizer's end token %d (%s) does not end an answer, since the model's generation config ends it at "
            "%s; if answers run on, add it to eos_token_id there",
            *(end, tokenizer.eos_token, sorted(decoder.eos_ids) or "no token"),
        )


def _any_number(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 9 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """Turn any exception of a loader into an InputError of one line."""
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: "
        raise InputError(f"cannot load the model in {where}: {kind}{what[:LONGEST]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bar and its load report, which `_check_report` checks."""
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    reports = logging.getLogger("transformers.modeling_utils")
    reports.addFilter(_is_no_report)
    try:
        yield
    finally:
        reports.removeFilter(_is_no_report)
        if had_bar:
            transformers_logging.enable_progress_bar()


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
