"""The script for a GPU machine runs from end to end without one, and its cost tables are found by name."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.builders import build_costs
from search.costs.table import CostTable
from selfspec.engine.decode import Ending, autoregress
from selfspec.engine.trace import DecodeResult
from selfspec.models.decoder import Decoder
from selfspec.skipping.skip_set import SkipSet
from tests import toys

ROOT = Path(__file__).parents[1]
TABLE = CostTable((128, 1024), (1e-5, 2e-5), 2e-5, 1e-4, (1e-3, 2e-3), (1e-3, 1.1e-3), (2e-3, 2.1e-3))


def run(out: Path, *words: str) -> dict[str, dict[str, object]]:
    command = [sys.executable, "scripts/check_gpu.py", "--device", "cpu", "--toy", "--out", str(out), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, object]] = json.loads((out / "check_gpu.json").read_text())
    errors = {name: body["error"] for name, body in found.items() if "error" in body}
    assert not errors, errors
    return found


@pytest.mark.slow
def test_every_section_of_the_script_runs_on_a_toy(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert {"environment", "lossless", "speed", "verification", "tables", "precisions"} <= set(found)
    verdicts = [v for v in found["lossless"].values() if isinstance(v, dict)]
    assert len(verdicts) == 8 and all(v == {"identical": 3} for v in verdicts)
    ways = {n: v for section in ("speed", "compiled") for n, v in found[section].items() if isinstance(v, dict)}
    assert "generate, assisted, a1 m1" in ways and "plain by graphs" in ways
    assert [name for name, way in ways.items() if way["verdicts"] != {"identical": 2}] == []
    assert not [v for section in found.values() for v in section.values() if "Traceback" in str(v)]
    costs = found["tables"]["toy"]["costs"]  # type: ignore[index]
    assert CostTable.from_dict(costs).draft_cost(SkipSet(3), 16) > 0


@pytest.mark.slow
def test_a_section_whose_time_is_over_says_so_and_costs_the_others_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, "--only", "precisions")
    assert "speed" not in found and "seconds" in found["precisions"]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gpu.turns")


def test_turns_before_a_time_out_are_on_disk(turns: ModuleType, tmp_path: Path) -> None:
    check = importlib.import_module("gpu.check").Check(argparse.Namespace(out=tmp_path, toy=True), torch.device("cpu"))
    calls = []

    def late(ids: list[int]) -> DecodeResult:
        calls.append(ids)
        if len(calls) > 4:
            raise TimeoutError("4 s are over")
        return DecodeResult([1, 2, 3], [], 1.0, 5.0, "length")

    ways = {turns.BASE: late}
    with pytest.raises(TimeoutError):
        turns.take_turns(check, "speed", ways, [[7]], decoder=None, expected=[[1, 2, 3]], n_turns=9)
    found = json.loads((tmp_path / "check_gpu.json").read_text())["speed"]
    assert found[turns.BASE]["tokens_per_s"] == [0.5, 0.5, 0.5] and found["turns"] == 3


def test_generate_does_not_end_at_the_models_own_end_of_sequence_token(turns: ModuleType) -> None:
    peers = importlib.import_module("gpu.peers")
    decoder = Decoder(toys.toy("llama"))
    ending = Ending(8, frozenset())
    expected = autoregress(decoder, [[1, 2, 3]], ending=ending)[0].tokens
    decoder.model.config.eos_token_id = expected[2]  # type: ignore[union-attr]
    way = peers.generate(peers.never_ending(decoder.model), 8)
    assert way([1, 2, 3]).tokens == expected


def test_a_cost_table_of_another_device_is_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "costs" / "h100"
    folder.mkdir(parents=True)
    body = {"name": "h100/some", "path": None, "table": TABLE.to_dict()}
    lines = ["# @package costs", *(f"{k}: {json.dumps(v)}" for k, v in body.items())]
    (folder / "some.yaml").write_text("\n".join(lines) + "\n")
    overrides = ["costs=h100/some", f"hydra.searchpath=[file://{tmp_path}]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        cfg = compose("search", overrides=overrides)
    assert OmegaConf.select(cfg, "costs.name") == "h100/some"
    table, path, is_new = build_costs.costs(cfg, None)  # type: ignore[arg-type]
    assert (table, str(path), is_new) == (TABLE, "costs=h100/some", False)
