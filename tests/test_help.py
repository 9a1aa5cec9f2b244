"""The help of the command line: short, in groups, and only what the verb uses; the completion knows the same names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from experiments.config.comments import commented
from experiments.config.composing import groups
from experiments.config.help import settings_of, verb_help
from experiments.config.schema import VERBS
from experiments.verbs.completion import script
from selfspec.errors import InputError
from tests.commands import command

TEXT = """# When to choose it,
# and why.
defaults: [_base]
n: 3   # how many,
       # at most
# The size
# of it.
size:
  width: null
_target_: a.B
"""


def test_comments_belong_to_the_setting_beside_or_below_them() -> None:
    about = commented(TEXT)
    assert (about.heading, about.target) == ("When to choose it, and why.", "a.B")
    assert [(s.name, s.default, s.comment) for s in about.settings] == [
        ("n", "3", "how many, at most"),
        ("size", "", "The size of it."),
        ("size.width", "null", ""),
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_has_examples_groups_and_settings_and_fits(verb: str) -> None:
    text = verb_help(verb, [], [])
    lines = text.splitlines()
    assert f"  selfspec {verb}" in text
    assert [g for g in groups(verb) if not any(line.split()[:1] == [g] for line in lines)] == []
    assert [s.name for s in settings_of(verb) if f"\n  {s.name}" not in text] == []
    assert max(map(len, lines)) <= 110 and len(lines) < 120


def test_what_is_trained_is_an_option_of_train_alone() -> None:
    assert "eagle" in verb_help("train", [], []) and "eagle3" not in verb_help("search", [], [])


def test_a_group_is_explained() -> None:
    text = verb_help("evaluate", ["stop"], [])
    assert "stop=adaptive\n  The default, and the paper's rule" in text and "    target_acceptance=0.85" in text


def test_an_unknown_topic_is_one_line() -> None:
    with pytest.raises(InputError, match="did you mean 'stop'"):
        verb_help("evaluate", ["stp"], [])


class TestCompletion:
    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        file = tmp_path_factory.mktemp("completion") / "selfspec"
        file.write_text(script(), encoding="utf-8")
        return file

    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ("selfspec sea", "search"),
            ("selfspec search stop=fi", "fixed"),
            ("selfspec search finals.t", "finals.top="),
            ("selfspec evaluate stop.thr", "stop.threshold="),
            ("selfspec runs c", "compare"),
            ("selfspec search nothing", ""),
        ],
    )
    def test_completes(self, line: str, found: str, file: Path) -> None:
        code = f'source "{file}"; COMP_LINE="$1"; COMP_POINT=${{#1}}; _selfspec; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", code, "bash", line], capture_output=True, text=True)
        assert (done.stdout.strip(), done.returncode) == (found, 0), done.stderr

    def test_another_shell_is_refused_in_one_line(self) -> None:
        ran = command("completion", "fish")
        assert ran.status == 2 and len(ran.error_lines) == 1 and "bash" in ran.err
