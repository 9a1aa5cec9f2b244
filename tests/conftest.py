"""What holds for every test."""

import base64
import multiprocessing
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from matplotlib.figure import Figure

_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_render = Figure.savefig


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The toys are far too small for a second thread to help."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_main_module() -> Iterator[None]:
    """Streamlit's tester leaves a page as the main module, which every process that is started later would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(autouse=True, scope="session")
def unrendered() -> Iterator[None]:
    """Figures are drawn but not rendered: on a toy that takes longer than the search or the report around it."""

    def save(figure: Figure, file: IO[bytes] | Path, *, format: str = "png", **how: Any) -> None:
        written = _PIXEL if format == "png" else b"<svg/>"
        file.write_bytes(written) if isinstance(file, Path) else file.write(written)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture(autouse=True, scope="session")
def options_read_once() -> Iterator[None]:
    """Each file of conf/ is read once: Hydra reads some thirty of them whenever it composes, five times a command."""
    Plugins.instance()  # reads the module of the class once more: the class is not the one that an import gives
    package = SourcesRegistry.instance().resolve("pkg")
    read, list_folder, is_there = package.load_config, package.list, package.is_group
    known: dict[tuple[str, str], ConfigResult] = {}
    listed: dict[tuple[str, str, ObjectType | None], list[str]] = {}
    groups: dict[tuple[str, str], bool] = {}

    def load(source: ConfigSource, config_path: str) -> ConfigResult:
        at = (source.path, config_path)
        if at not in known:
            known[at] = read(source, config_path)
        return deepcopy(known[at])

    def list_once(source: ConfigSource, config_path: str, results_filter: ObjectType | None) -> list[str]:
        at = (source.path, config_path, results_filter)
        if at not in listed:
            listed[at] = list_folder(source, config_path, results_filter)
        return list(listed[at])

    def is_group(source: ConfigSource, config_path: str) -> bool:
        at = (source.path, config_path)
        if at not in groups:
            groups[at] = is_there(source, config_path)
        return groups[at]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "load_config", load)
        patch.setattr(package, "list", list_once)
        patch.setattr(package, "is_group", is_group)
        yield


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are rendered: for tests of the pictures themselves."""
    monkeypatch.setattr(Figure, "savefig", _render)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers with its tokenizer; not to be changed."""
    from tests.commands import write_model  # loads all of transformers, which most tests do without

    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight short prompts, half of them for calibration."""
    from tests.commands import write_prompts

    return write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl")


@pytest.fixture(scope="session")
def toy(model_folder: Path, prompts_file: Path) -> list[str]:
    """What makes any verb run in a blink; in float64, so that outputs can be compared for equality."""
    return [
        *("model=local", f"model.path={model_folder}", "model.dtype=float64"),
        *("data=jsonl", f"data.path={prompts_file}", "threads=1"),
    ]


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the test, with nothing in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def quick_processes() -> Iterator[None]:
    """Processes of drafters share their imports by a fork server; without it each imports torch anew, by spawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfspec.overlapped.process.METHOD", "forkserver")
        multiprocessing.set_forkserver_preload(["selfspec.overlapped.child"])
        yield
