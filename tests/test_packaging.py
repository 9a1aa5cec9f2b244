"""Packaging: the wheel holds the four packages with their data and nothing else, and works without the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from setuptools import PackageFinder

from tests.plugins import write_plugins

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = {"tests", "scripts", "docs"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def packages(project: dict[str, Any]) -> list[str]:
    found: list[str] = PackageFinder.find(
        str(ROOT), include=project["tool"]["setuptools"]["packages"]["find"]["include"]
    )
    return found


def folder_of(package: str) -> Path:
    return ROOT / package.replace(".", "/")


def data_files(package: str) -> set[str]:
    """What lies in a package besides Python and what Python leaves behind."""
    files = (path for path in folder_of(package).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix not in (".py", ".pyc")}


def test_every_folder_that_holds_python_is_a_package(packages: list[str]) -> None:
    folders = {path.parent.relative_to(ROOT) for top in ROOT.iterdir() if _is_ours(top) for path in top.rglob("*.py")}
    assert sorted(packages) == sorted(folder.as_posix().replace("/", ".") for folder in folders)


def _is_ours(top: Path) -> bool:
    hidden = top.name.startswith(".") or top.name.endswith(".egg-info") or top.name in ("build", "dist", "outputs")
    return top.is_dir() and not hidden and top.name not in NOT_SHIPPED


def test_every_data_file_of_a_package_matches_a_pattern(project: dict[str, Any], packages: list[str]) -> None:
    patterns: dict[str, list[str]] = project["tool"]["setuptools"]["package-data"]
    shipped = {
        path.relative_to(ROOT).as_posix()
        for package, globs in patterns.items()
        for pattern in globs
        for path in folder_of(package).glob(pattern)
    }
    assert shipped == set().union(*map(data_files, packages))


def test_every_pattern_belongs_to_a_package_and_matches_something(project: dict[str, Any], packages: list[str]) -> None:
    for package, globs in project["tool"]["setuptools"]["package-data"].items():
        assert package in packages
        assert [pattern for pattern in globs if not any(folder_of(package).glob(pattern))] == []


class TestWheel:
    @pytest.fixture(scope="class")
    @staticmethod
    def wheel(packages: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A wheel that was built from a copy of the checkout."""
        pytest.importorskip("setuptools", reason="setuptools, which builds the wheel, is not installed")
        copy, wheels = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheels")
        for top in {package.partition(".")[0] for package in packages}:
            shutil.copytree(ROOT / top, copy / top, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, copy)
        build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
        done = subprocess.run([*build, "-w", wheels, copy], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (wheel,) = wheels.glob("*.whl")
        return wheel

    @pytest.fixture(scope="class")
    @staticmethod
    def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Its content."""
        folder = tmp_path_factory.mktemp("unpacked")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        return folder

    @pytest.fixture(scope="class")
    @staticmethod
    def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder that it is installed into, with the console script; other packages are those of the tests."""
        folder = tmp_path_factory.mktemp("installed")
        install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", folder, wheel]
        done = subprocess.run(install, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder

    def test_holds_the_packages_and_nothing_else(self, unpacked: Path, packages: list[str]) -> None:
        tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
        assert tops == {package.partition(".")[0] for package in packages}

    def test_holds_every_file_of_the_packages(self, unpacked: Path, packages: list[str]) -> None:
        ours = {path.relative_to(ROOT).as_posix() for package in packages for path in folder_of(package).glob("*.py")}
        ours = ours.union(*map(data_files, packages))
        assert [name for name in sorted(ours) if not (unpacked / name).is_file()] == []

    @pytest.mark.parametrize(
        ("words", "pieces"),
        [
            (["--help"], ["selfspec VERB key=value"]),
            (
                ["search", "--help", "all"],
                ["anneal, clasp, cmaes, custom", "_target_: search.samplers.quadratic.Quadratic"],
            ),
        ],
        ids=["usage", "a verb's help"],
    )
    def test_works_from_an_empty_folder(
        self, unpacked: Path, words: list[str], pieces: list[str], tmp_path: Path
    ) -> None:
        code = f"import sys, experiments.cli as c; sys.argv[1:] = {words}; print(c.__file__); c.main()"
        environment = {**os.environ, "PYTHONPATH": str(unpacked)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(unpacked)), "another copy was imported"
        assert [piece for piece in pieces if piece not in done.stdout] == [], done.stdout
        assert list(tmp_path.iterdir()) == []

    def test_runs_what_a_user_adds_from_a_folder_of_their_own(
        self, installed: Path, model_folder: Path, empty_folder: Path
    ) -> None:
        """A stop rule, a searcher and a data set, each a YAML file and a class, through the console script."""
        write_plugins(empty_folder / "mine")
        environment = {**os.environ, "PYTHONPATH": str(installed)}

        def ran(*words: str) -> str:
            line = [str(installed / "bin/selfspec"), *words]
            done = subprocess.run(line, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
            return done.stdout.rstrip().rpartition("run: ")[2]

        where = subprocess.run(
            [sys.executable, "-c", "import experiments; print(experiments.__file__)"],
            **{"capture_output": True, "text": True, "env": environment},
        ).stdout
        assert where.startswith(str(installed)), "another copy was imported"
        shared = ["--config-dir", "mine", "model=local", f"model.path={model_folder}", "model.dtype=float64"]
        shared += ["threads=1", "data=mine", "stop=mine"]
        small = ["objective=tokens_per_second", "objective.n_prompts=1", "objective.max_new_tokens=4"]
        found = ran("search", "draft=skip", *shared, "searcher=mine", *small, "searcher.n_trials=3", "finals.top=0")
        trials = [json.loads(line)["skip"] for line in (Path(found) / "trials.jsonl").read_text().splitlines()]
        assert trials == ["none", "m3", "a3"]
        evaluated = ran("evaluate", *shared, f"skip={found}", "n=2", "max_new_tokens=4", "generate=false")
        rows = [json.loads(line) for line in (Path(evaluated) / "records.jsonl").read_text().splitlines()]
        assert {(row["verdict"], row["prompt_id"].partition("-")[0]) for row in rows} == {
            ("baseline", "evaluation"),
            ("identical", "evaluation"),
        }


@pytest.mark.slow
def test_a_wheel_of_the_source_archive_runs_the_demos_verbs_alone(
    packages: list[str], toy: list[str], tmp_path: Path, empty_folder: Path
) -> None:
    """Built from the sdist, installed into an environment of its own; dependencies are those of the tests."""
    copy, unpacked, built = tmp_path / "copy", tmp_path / "unpacked", tmp_path / "built"
    for top in {package.partition(".")[0] for package in packages}:
        shutil.copytree(ROOT / top, copy / top, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, copy)
    for kind, folder in (("sdist", copy), ("wheel", unpacked)):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(built)!r})"
        built.mkdir(exist_ok=True)
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if kind == "sdist":
            (archive,) = built.glob("*.tar.gz")
            shutil.unpack_archive(archive, tmp_path / "archive", filter="data")
            next((tmp_path / "archive").iterdir()).rename(unpacked)
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", tmp_path / "venv", "install", "--no-deps", "--no-index", "-q"]
    done = subprocess.run([*install, wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in sys.path if "site-packages" in path))

    def ran(*words: str) -> str:
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        line = [str(tmp_path / "venv/bin/selfspec"), *words]
        done = subprocess.run(line, capture_output=True, text=True, env=clean)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", "import experiments; print(experiments.__file__)"],
        **{"capture_output": True, "text": True, "env": {"PATH": os.environ["PATH"]}},
    ).stdout
    assert where.startswith(str(site)), "another copy was imported"
    few = ["objective.n_prompts=1", "objective.max_new_tokens=4", "finals.n_prompts=1", "finals.top=1", "force=true"]
    costs = ["costs.contexts=[8]", "costs.max_tokens=14", "costs.repeats=1"]
    out = ran("search", "draft=skip", "starts=[nothing]", "searcher.n_trials=3", "name=demo", *toy, *few, *costs)
    run = out.rpartition("run: ")[2].strip()
    few = ["n=1", "max_new_tokens=4", "stop=searched", "lookup=searched"]
    out = ran("evaluate", "name=demo", *toy, f"skip={run}", *few)
    assert "speedup" in ran("report", f"runs={out.rpartition('run: ')[2].strip()}")
    assert "identical" in ran("decode", *toy, "prompt=hi", f"skip={run}", "max_new_tokens=4")
    assert "Best set" in ran("runs", "show", run)


def test_make_hides_pips_missing_folders_and_no_other_warning() -> None:
    """In the words of several versions of pip."""
    (pattern,) = re.findall(r'grep -vE "([^"]+)"', (ROOT / "Makefile").read_text(encoding="utf-8"))
    for hidden in (
        "Location 'file:///a/' is ignored: it is neither a file nor a directory.",
        "Location 'b' is ignored: it is either a non-existing path or lacks a specific scheme.",
    ):
        assert re.search(pattern, f"WARNING: {hidden}")
    assert not re.search(pattern, "WARNING: Retrying after connection broken by NewConnectionError")
