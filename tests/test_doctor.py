"""selfspec doctor: what it prints, and what it warns of."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from experiments.verbs import doctor as verb
from experiments.verbs.doctor import EXTRAS, doctor
from selfspec import hub
from selfspec.errors import InputError
from selfspec.records import provenance


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)


def lines() -> list[str]:
    found: list[str] = []
    doctor([], found.append)
    return found


@pytest.mark.usefixtures("no_hub")
def test_every_finding_is_one_line() -> None:
    names = [line.split()[0] for line in lines() if line[0] not in "! "]
    assert names == ["versions", "device", "dtype", "threads", "load", "hub", "extras", "cache", "outputs"]


@pytest.mark.usefixtures("no_hub")
def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "load_average", lambda: 0.0)
    assert not any("busy" in line for line in lines())
    monkeypatch.setattr(provenance, "load_average", lambda: 64.0)
    assert any(line.startswith("!") and "busy" in line for line in lines())


def test_a_hub_that_does_not_answer_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for answers, told in ((False, "model.path=FOLDER"), (True, " answers")):
        monkeypatch.setattr(hub, "hub_answers", lambda answers=answers: answers)
        assert any(told in line for line in lines())


@pytest.mark.usefixtures("no_hub")
def test_extras_that_lack_a_module_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "_is_installed", lambda module: module != "plotly")
    (line,) = [line for line in lines() if "not installed:" in line]
    assert "dashboard" in line and not any(extra in line.split("(")[0] for extra in set(EXTRAS) - {"dashboard"})


def test_every_extra_of_the_project_is_known() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"dev"}


def test_settings_are_refused() -> None:
    with pytest.raises(InputError, match="takes no settings"):
        doctor(["model=x"], print)
