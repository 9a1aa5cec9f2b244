"""Weights and prompts in pieces small enough to be carried to a machine without a network, and joined there.

The weights are the bytes of a GGUF file's 4-bit blocks, tensor by tensor, under the names that transformers uses; the
prompts are token ids, so that no tokenizer is needed. `pack_for_gpu.py` writes the pieces, `gpu.models` joins them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

INDEX, PROMPTS, CONFIG, BYTES = "index.json", "prompts.json", "config.json", "weights.bin"


def split(file: Path, folder: Path, *, n_parts: int) -> list[str]:
    """Cut a file into numbered parts; returns their names."""
    data = file.read_bytes()
    size = -(-len(data) // n_parts)
    names = []
    for i in range(n_parts):
        name = f"{file.name}.part{i + 1}of{n_parts}"
        (folder / name).write_bytes(data[i * size : (i + 1) * size])
        names.append(name)
    return names


def keep(carried: Path, folder: Path) -> bool:
    """Copy what was carried this time into a folder that stays; returns whether all pieces are there now."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in carried.rglob("*"):
        if file.is_file() and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)
    return is_whole(folder)


def is_whole(folder: Path) -> bool:
    """Whether index, configuration, prompts and every part are there."""
    if not all((folder / name).is_file() for name in (INDEX, PROMPTS, CONFIG)):
        return False
    parts = json.loads((folder / INDEX).read_text())["parts"]
    return all((folder / name).is_file() for name in parts)


def read_prompts(folder: Path) -> list[list[int]]:
    """The prompts' token ids."""
    prompts: list[list[int]] = json.loads((folder / PROMPTS).read_text())
    return prompts


def read_weights(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict, rounded to bfloat16 as the project's own conversion rounds it, then given in `dtype`."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    data = b"".join((folder / name).read_bytes() for name in index["parts"])
    found = {}
    for name, entry in index["tensors"].items():
        raw = np.frombuffer(data, dtype=np.uint8, count=entry["n_bytes"], offset=entry["offset"])
        values = DEQUANTISED[entry["kind"]](raw).reshape(entry["shape"])
        if entry["n_heads"]:
            values = in_halves(values, entry["n_heads"])
        found[name] = torch.from_numpy(np.ascontiguousarray(values)).bfloat16().to(dtype)
    return found


def in_halves(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of queries or keys as transformers turns them: halves of a head instead of pairs of neighbours."""
    half = weight.shape[0] // n_heads // 2
    pairs = weight.reshape(n_heads, half, 2, *weight.shape[1:])
    return pairs.swapaxes(2, 1).reshape(weight.shape)


def _f32(raw: np.ndarray) -> np.ndarray:
    return raw.view(np.float32)


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.view(np.float16).astype(np.float32)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    """Blocks of a scale and 32 signed bytes."""
    blocks = raw.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)).reshape(-1)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    """Blocks of a scale, a least value and 32 nibbles, the low halves of all bytes first."""
    blocks = raw.reshape(-1, 20)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
    return (scale * nibbles + least).reshape(-1)


def _q6_k(raw: np.ndarray) -> np.ndarray:
    """Blocks of 256: four low bits, two high bits, a scale for every 16, and one for all."""
    blocks = raw.reshape(-1, 210)
    low, high = blocks[:, :128], blocks[:, 128:192]
    scales = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    whole = blocks[:, 208:].copy().view(np.float16).astype(np.float32)
    n = len(blocks)
    low = (low.reshape(n, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)) & 15
    high = (high.reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & 3
    steps = (low.reshape(n, 8, 32) | (high.reshape(n, 8, 32) << 4)).reshape(n, 16, 16).astype(np.float32) - 32
    return (whole.reshape(n, 1, 1) * scales.reshape(n, 16, 1) * steps).reshape(-1)


DEQUANTISED = {"F32": _f32, "F16": _f16, "Q8_0": _q8_0, "Q4_1": _q4_1, "Q6_K": _q6_k}
