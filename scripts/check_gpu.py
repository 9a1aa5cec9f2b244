"""What the engine does by graphs on a GPU: is it exact, how fast is it beside transformers, what does a draft cost?

Usage: scripts/check_gpu.sh [--minutes 8] [--carried DIR] [--keep DIR] [--only SECTION ...] [--device cpu --toy]

Sections run in the order of their importance, each within a time of its own, and every result is written to
$OUT/check_gpu.json at once, so that what is cut short loses nothing. Without weights (`--model`, or pieces of
`pack_for_gpu.py` in `--carried` and `--keep`) a model of random weights is made in SmolLM2-135M's shape: times and
exactness mean the same, acceptance does not.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu import pieces
from gpu.check import Check, environment, free_memory, limit
from gpu.lossless import lossless
from gpu.precisions import precisions
from gpu.shapes import SHAPES
from gpu.speed import compiled, speed
from gpu.tables import tables
from gpu.verification import verification


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the check, the seconds below which it is not begun, and those after which it is cut off."""

    run: Callable[[Check], None]
    least_s: int
    most_s: int


# Measured on an H100 with slow host cores: lossless 87 s with five skip sets (here three), verification 34 s, three
# tables 82 s, precisions 12 s, compiling `generate` 35 s and ours 12 s. A turn of `speed` takes some 25 s by the rates
# measured there (an estimate). All limits but the last one's fit into eight minutes.
SECTIONS = {
    "lossless": Section(lossless, 40, 90),
    "verification": Section(verification, 25, 50),
    "speed": Section(speed, 60, 200),
    "tables": Section(tables, 35, 100),
    "precisions": Section(precisions, 15, 25),
    "compiled": Section(compiled, 60, 180),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny settings, to see that every section runs")
    parser.add_argument("--model", type=Path, default=os.environ.get("SELFSPEC_GPU_MODEL"), help="a local folder")
    parser.add_argument("--carried", type=Path, help="pieces that came with this call; copied to --keep")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/selfspec_pieces"), help="where pieces stay")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), help="sections to run; all without it")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "outputs/check_gpu")))
    parser.add_argument(
        "--shapes",
        nargs="*",
        choices=list(SHAPES),
        default=["smollm2-135m", "llama-3.1-8b", "llama-3.2-1b", "llama-3.2-3b", "qwen2.5-0.5b"],
        help="models of the cost tables, in this order while there is time",
    )
    settings = parser.parse_args()
    warnings.filterwarnings("ignore")
    check = Check(settings, torch.device(settings.device))
    if check.device.type == "cpu":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    if settings.carried and not pieces.keep(settings.carried, settings.keep):
        print(f"kept the pieces in {settings.keep}; the rest is still to come")
    machine = environment(check.device)
    print(machine)
    check.keep("environment", "machine", machine)
    for name, section in SECTIONS.items():
        if not settings.only or name in settings.only:
            run(check, name, section)
    print("\n" + check.table())


def run(check: Check, name: str, section: Section) -> None:
    """One section, whose failure is written down and costs the others nothing."""
    if not check.has(section.least_s):
        reason = f"skipped: {check.left_s:.0f} s left, {section.least_s} s needed"
        return check.keep(name, "skipped", reason, reason)
    began = time.monotonic()
    check.section_ends = began + section.most_s
    try:
        with limit(max(1.0, check.left_s)):
            section.run(check)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        check.keep(name, "error", traceback.format_exc(), f"{type(error).__name__}: {str(error)[:160]}")
    check.section_ends = math.inf
    check.keep(name, "seconds", time.monotonic() - began, f"{time.monotonic() - began:.0f}")
    free_memory()


if __name__ == "__main__":
    main()
