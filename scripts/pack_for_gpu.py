"""Write the default model and its prompts in pieces that can be carried to a machine without a network.

Usage: python scripts/pack_for_gpu.py GGUF CONVERTED FOLDER [--parts 2]

GGUF is the registry's file, CONVERTED the project's own conversion of it (its folder in the cache), against which every
tensor is checked. FOLDER gets a sub-folder for each journey: `1`, `2`, ...
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from gguf import GGUFReader
from gpu.pieces import BYTES, CONFIG, INDEX, PROMPTS, keep, read_weights, split
from safetensors.torch import load_file
from transformers import AutoTokenizer

from selfspec.data.mini import Mini
from selfspec.data.prompts import encode

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("converted", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", type=int, default=2)
    asked = parser.parse_args()
    scratch = asked.folder / "whole"
    scratch.mkdir(parents=True)
    config = json.loads((asked.converted / CONFIG).read_text())
    tensors, offset = {}, 0
    with (scratch / BYTES).open("wb") as out:
        for tensor in GGUFReader(asked.gguf).tensors:
            raw = tensor.data.tobytes()
            heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
            kind = tensor.name.split(".")[-2] if tensor.name.startswith("blk.") else ""
            tensors[hugging_face_name(tensor.name)] = {
                "kind": tensor.tensor_type.name,
                "shape": [int(n) for n in reversed(tensor.shape)],
                "n_heads": heads.get(kind, 0),
                "offset": offset,
                "n_bytes": len(raw),
            }
            out.write(raw)
            offset += len(raw)
    parts = split(scratch / BYTES, scratch, n_parts=asked.parts)
    (scratch / INDEX).write_text(json.dumps({"parts": parts, "tensors": tensors}))
    shutil.copy(asked.converted / CONFIG, scratch / CONFIG)
    tokenizer = AutoTokenizer.from_pretrained(asked.converted)
    examples = [*Mini().examples("calibration"), *Mini().examples("evaluation")]
    prompts = encode(tokenizer, examples, chat=True, context_length=2048, max_new_tokens=128)
    (scratch / PROMPTS).write_text(json.dumps([p.ids for p in prompts]))
    check(asked.converted, scratch)
    for i, part in enumerate(parts, start=1):
        journey = asked.folder / str(i)
        journey.mkdir()
        shutil.move(scratch / part, journey / part)
        if i == 1:
            for name in (INDEX, CONFIG, PROMPTS):
                shutil.copy(scratch / name, journey / name)
    shutil.rmtree(scratch)
    print(f"{asked.folder}: {len(parts)} journeys of {offset / len(parts) / 2**20:.1f} MiB, {len(prompts)} prompts")


def hugging_face_name(name: str) -> str:
    """transformers' name of a tensor of a GGUF file of the Llama architecture."""
    *layer, kind, end = name.split(".")
    return ".".join([*(["model", "layers", layer[1]] if layer else []), _NAMES[kind], end])


def check(converted: Path, folder: Path) -> None:
    """Refuse pieces that do not give the converted weights, every one."""
    assert keep(folder, folder)
    expected: dict[str, torch.Tensor] = {}
    for file in converted.glob("*.safetensors"):
        expected |= load_file(file)
    found = read_weights(folder, torch.bfloat16)
    wrong = [name for name, t in expected.items() if name in found and not torch.equal(found[name], t)]
    missing = [name for name in expected if name not in found]
    if wrong or missing:
        raise SystemExit(f"the pieces differ from the conversion at {wrong[:3]}, and lack {missing[:3]}")


if __name__ == "__main__":
    main()
