"""What the README shows works: its Python runs, and its commands name verbs and settings that there are."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from experiments.config.composing import configuration
from experiments.config.sweep_words import check_sweep

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0]
    for line in README.splitlines()
    if re.match(r"selfspec (decode|profile|search|evaluate|report|dashboard)\b", line)
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_runs(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (code,) = blocks("python")
    exec(compile(code.replace("FOLDER", str(folder)), "README.md", "exec"), {})
    assert (folder / "skip_set.yaml").is_file()
    assert capsys.readouterr().out.strip()


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_names_what_there_is(line: str) -> None:
    verb, *words = shlex.split(line)[1:]
    settings = [w for w in words if "=" in w and not w.startswith("hydra")]
    if "-m" in words:
        check_sweep(verb, settings)
    else:
        configuration(verb, settings)
