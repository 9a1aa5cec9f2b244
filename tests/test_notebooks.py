"""The notebooks run from top to bottom, on a toy in place of the model that they load."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell as a kernel does: the value of an expression that ends it is shown."""
    body = ast.parse(source)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, "cell", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # type: ignore[attr-defined]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs_from_top_to_bottom(notebook: Path, model_folder: Path, empty_folder: Path) -> None:
    names: dict[str, Any] = {}
    shown = [run_cell(code.replace(HUB_ID, str(model_folder)), names) for code in code_of(notebook)]
    if notebook.stem in ("quickstart", "write_your_own_drafter"):
        assert "identical" in shown  # the toy is in float64
    if notebook.stem == "anatomy_of_a_round":
        (coloured,) = (one for one in shown if hasattr(one, "_repr_html_"))
        assert {"accepted", "correction"} & {kind for _, kind in coloured.pieces}
        assert any(len(set(draft.parents)) < len(draft.parents) for draft, _ in names["shown"]), "no tree branches"
    if notebook.stem == "compare_skip_sets":
        acceptance = [row["acceptance"] for row in names["rows"]]  # below 1 where an answer ends within a draft
        assert len(acceptance) == 4 and acceptance[0] == max(acceptance) > acceptance[-1]


def test_there_are_four() -> None:
    assert len(NOTEBOOKS) == 4
