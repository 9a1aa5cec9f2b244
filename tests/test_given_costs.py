"""Cost tables of other devices: the shipped ones load, searches take them, and nothing is added to them here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments.builders import build, build_costs, build_search
from search.costs.table import CostTable
from selfspec.errors import InputError
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from tests.commands import Ran, command

CONF = Path(__file__).parents[1] / "conf"
SHIPPED = sorted(str(p.relative_to(CONF / "costs").with_suffix("")) for p in (CONF / "costs").glob("*/*.yaml"))
N_LAYERS = {"h100/llama-3.1-8b": 32, "h100/qwen2.5-0.5b": 24, "h100/smollm2-135m": 30}
SMALL = "objective.n_prompts=2", "objective.max_new_tokens=8", "finals.top=0", "searcher.n_trials=6"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("search", overrides=list(overrides))


def search(toy: list[str], *words: str) -> Ran:
    return command("search", "draft=skip", *toy, *SMALL, "costs=h100/smollm2-135m", *words)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_table_composes_loads_and_is_of_a_model_of_its_name(name: str) -> None:
    cfg = composed(f"costs={name}", f"model={name.partition('/')[2]}")
    table, _, is_new = build_costs.costs(cfg, None)  # type: ignore[arg-type]
    assert not is_new and cfg.costs.device
    n = N_LAYERS[cfg.costs.name]
    half = SkipSet(n, frozenset(range(0, n, 2)), frozenset(range(0, n, 2)))
    assert table.draft_cost(half, 128) < table.draft_cost(SkipSet(n), 128) == pytest.approx(1, abs=0.03)
    assert CostTable.from_dict(table.to_dict()) == table


def test_a_search_takes_the_seconds_of_the_table_alone(toy: list[str], empty_folder: Path) -> None:
    ran = search(toy)
    assert ran.status == 0, ran.err
    table, _, _ = build_costs.costs(composed("costs=h100/smollm2-135m"), None)  # type: ignore[arg-type]
    assert CostTable.read(ran.run / "costs.json") == table


def test_a_table_of_a_model_of_another_name_is_warned_of_in_one_line(toy: list[str], empty_folder: Path) -> None:
    lines = [line for line in search(toy).error_lines if "costs=" in line]
    expected = "costs=h100/smollm2-135m is of NVIDIA H100 80GB HBM3, and the run's model is local"
    assert len(lines) == 1 and expected in lines[0]
    own = search(toy, "costs.name=h100/local")
    assert not [line for line in own.error_lines if "costs=" in line]


@pytest.mark.parametrize(
    "words", [["draft=linear"], ["head=trimmed"], ["precision=int8"], ["space={precision: [same, int4]}"]]
)
def test_drafts_with_parts_that_the_table_lacks_are_refused_in_one_line(
    words: list[str], toy: list[str], empty_folder: Path
) -> None:
    ran = search(toy, *words)
    assert ran.status == 2 and len(ran.error_lines) == 1
    assert "does not hold what" in ran.err and not (empty_folder / "outputs" / "search").exists()


def test_what_the_table_lacks_is_not_measured_here(toy: list[str], empty_folder: Path) -> None:
    cfg = composed(*toy, "costs=h100/smollm2-135m", "draft=skip")
    loaded = build.model(cfg)
    costs = build_costs.draft_costs(cfg, loaded, build_search.asked(cfg).drafts, ())
    skip = SkipSet(loaded.decoder.n_layers)
    with pytest.raises(InputError, match="does not hold"):
        costs.for_plan(DraftPlan(skip, precision="int8"))


def test_a_table_that_an_objective_does_not_use_is_refused() -> None:
    with pytest.raises(InputError, match="no effect"):
        build_search.asked(composed("costs=h100/smollm2-135m", "objective=tokens_per_second"))


def test_profile_does_not_check_a_table_of_another_device_on_this_one(toy: list[str], empty_folder: Path) -> None:
    ran = command("profile", *toy, "costs=h100/smollm2-135m")
    assert ran.status == 2 and "check=0" in ran.err and len(ran.error_lines) == 1
