"""What do drafts cost on this device? Cost tables for models of several sizes, as files for `conf/costs/`."""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict
from typing import Any

import torch

from gpu.check import Check, environment, free_memory
from gpu.models import build, decoders
from gpu.shapes import SHAPES, TOY
from search.costs import device
from search.costs.table import CostTable
from selfspec.models.decoder import Decoder
from selfspec.recorded.graphed import GraphedDecoder
from selfspec.skipping.skip_set import SkipSet

REPEATS = 12


def tables(check: Check) -> None:
    """In bfloat16 with random weights, of which times do not depend; with and without graphs."""
    for name in ["toy"] if check.is_toy else check.settings.shapes:
        if not check.has(35):
            check.keep("tables", name, "skipped", "skipped: no time left")
            continue
        try:
            one_table(check, name, TOY if check.is_toy else SHAPES[name])
        except (RuntimeError, ValueError) as error:
            check.keep("tables", name, traceback.format_exc(), f"{type(error).__name__}: {str(error)[:140]}")
        free_memory()


def one_table(check: Check, name: str, settings: dict[str, Any]) -> None:
    """The table of one model; then, if there is time, eager forwards and forwards of several rows."""
    toy = check.is_toy
    decoder, graphed = decoders(build(check, settings, torch.float64 if toy else torch.bfloat16))
    contexts, n_max = ((16, 48), 5) if toy else ((128, 1024), 21)
    began = time.monotonic()
    table = device.measure_by_graphs(graphed, contexts=contexts, max_tokens=n_max, repeats=2 if toy else REPEATS)
    facts = {"contexts": contexts, "seconds": time.monotonic() - began, "shape": settings}
    check.keep("tables", name, {"costs": table.to_dict(), "of": facts}, table_text(table, decoder))
    if not toy:
        file = check.settings.out / f"costs-{name}.yaml"
        file.write_text(as_group(name, table, environment(check.device)))
    if check.has(60):
        rows = [1] if toy else [1, 8]
        forwards(check, f"{name}, eager", decoder, rows, contexts[0], 2 if toy else 5)
    if check.has(60):
        rows = [1, 2] if toy else [1, 8, 32]
        forwards(check, f"{name}, rows x tokens by graphs", graphed, rows, contexts[0], 2 if toy else 10)


def forwards(
    check: Check, name: str, decoder: Decoder | GraphedDecoder, rows: list[int], context: int, repeats: int
) -> None:
    """Forwards of 1 and 4 tokens in each of so many rows."""
    costs = device.forward_costs(decoder, rows=rows, tokens=[1, 4], contexts=[context], repeats=repeats)
    text = ", ".join(f"{c.n_rows}x{c.n_tokens}: {c.seconds * 1e3:.2f} ms" for c in costs)
    check.keep("tables", name, [asdict(c) for c in costs], text)


def as_group(name: str, table: CostTable, machine: dict[str, Any]) -> str:
    """A file for `conf/costs/`: `costs=h100/NAME` then searches for this device anywhere."""
    device = str(machine.get("device", machine["cpu"]))
    folder = device.lower().removeprefix("nvidia ").split()[0]
    settings = {
        "name": f"{folder}/{name}",
        "device": device,
        "path": None,
        "refresh": False,
        "contexts": list(table.contexts),
        "max_tokens": len(table.verify_s),
        "repeats": REPEATS,
        "table": table.to_dict(),
    }
    body = "\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items())
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    return (
        "# @package costs\n"
        f"# Choose this to search on any machine for {name} on this device. Measured there by scripts/check_gpu.sh,\n"
        f"# with graphs, in bfloat16, with random weights of this shape ({versions}).\n{body}\n"
    )


def table_text(table: CostTable, decoder: Decoder) -> str:
    """The table in one line."""
    n, context = decoder.n_layers, table.contexts[0]
    half = SkipSet(n, frozenset(range(0, n, 2)), frozenset(range(0, n, 2)))
    return (
        f"plain {table.plain_s(context) * 1e3:.2f} ms, attn {table.attn_s[0] * 1e6:.1f} us, mlp "
        f"{table.mlp_s * 1e6:.1f} us, base {table.base_s * 1e6:.0f} us, half skipped costs "
        f"{table.draft_cost(half, context):.2f}, v(8)/v(1) "
        f"{table.verification_s(8, context) / table.verification_s(1, context):.2f}, "
        f"round +{table.overhead_s * 1e6:.0f} us"
    )
