"""What holds for every test."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The toys are far too small for a second thread to help."""
    torch.set_num_threads(1)


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
