"""The script for a GPU machine runs from end to end without one, and its cost tables are found by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import build_search
from search.cost import CostTable
from selfspec.skip import SkipSet

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
    assert len(verdicts) == 12 and all(v == {"identical": 3} for v in verdicts)
    costs = found["tables"]["toy"]["costs"]  # type: ignore[index]
    assert CostTable.of(costs).draft_cost(SkipSet(3), 16) > 0


@pytest.mark.slow
def test_a_section_whose_time_is_over_says_so_and_costs_the_others_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, "--only", "precisions")
    assert "speed" not in found and "seconds" in found["precisions"]


def test_a_cost_table_of_another_device_is_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "costs" / "h100"
    folder.mkdir(parents=True)
    body = {"name": "h100/some", "path": None, "table": TABLE.as_dict()}
    lines = ["# @package costs", *(f"{k}: {json.dumps(v)}" for k, v in body.items())]
    (folder / "some.yaml").write_text("\n".join(lines) + "\n")
    overrides = ["costs=h100/some", f"hydra.searchpath=[file://{tmp_path}]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        cfg = compose("search", overrides=overrides)
    assert OmegaConf.select(cfg, "costs.name") == "h100/some"
    table, path, is_new = build_search.costs(cfg, None)  # type: ignore[arg-type]
    assert (table, str(path), is_new) == (TABLE, "costs=h100/some", False)
