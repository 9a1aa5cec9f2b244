"""A model and its tokenizer, from located weights, on a device and in a dtype chosen for a reason that is logged."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from selfspec.attention import use_grouped
from selfspec.errors import InputError, unknown_name
from selfspec.hub import Located
from selfspec.model import Decoder
from selfspec.packed import can_pack
from selfspec.packed import pack as pack_linears

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A decoder, its tokenizer, and what was decided while loading (goes into provenance)."""

    decoder: Decoder
    tokenizer: Any
    facts: dict[str, Any]


def physical_cores() -> int:
    """Cores that do not share their arithmetic units, as far as the system tells; at least 1."""
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
    """`cpu`, `cuda`, `cuda:1`, `mps`, or `auto`: the first of cuda, mps, cpu that is there.

    Raises:
        InputError: if the device is not there.
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
    """The dtype, and why."""
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
    """The model in eval mode, its tokenizer, and what was decided.

    Args:
        located: where the weights are.
        dtype: float32, bfloat16, float16, float64 or auto.
        device: see `choose_device`.
        attention: transformers' attention implementation; auto: its own choice, by groups (`selfspec.attention`) where
            that is faster.
        threads: of torch on the CPU; None: the physical cores.
        trust_remote_code: run code that comes with the weights.
        device_map: accelerate's, for a model larger than one device; skipping is set up after dispatch.
        pack: lay the weights out once for oneDNN (`selfspec.packed`); None: where that is possible.

    Raises:
        InputError: if the weights cannot be loaded as asked.
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
    try:
        with _no_progress_bar():
            tokenizer = AutoTokenizer.from_pretrained(located.folder_or_id, trust_remote_code=trust_remote_code)
            model = AutoModelForCausalLM.from_pretrained(located.folder_or_id, **settings)
    except (ValueError, OSError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"cannot load the model in {located.folder_or_id}: {first}") from error
    model = model.eval() if device_map else model.eval().to(place)
    n_parameters = sum(p.numel() for p in model.parameters())
    if pack and not can_pack(model):
        raise InputError(f"model.pack=true: weights of {str(chosen)[6:]} on {place} cannot be packed; leave it to auto")
    if attention == "auto":
        use_grouped(model)
    n_packed = pack_linears(model) if pack or (pack is None and can_pack(model)) else 0
    decoder = Decoder(model)
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


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes a second; its bar would be the first thing a user sees of every command."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
