"""What the README and the pages show works: Python runs, commands name what there is, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from functools import cache
from pathlib import Path

import pytest

from experiments.cli import VERBS as ALL_VERBS
from experiments.config.composing import configuration, groups, make_importable, split_config_dir
from experiments.config.help import EXAMPLES, settings_of
from experiments.config.schema import VERBS
from experiments.config.sweep_words import check_sweep
from scripts.docs_hooks import AT_THE_ROOT, options_page, verbs_page
from tests.commands import command

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
GENERATED = {"reference/verbs.md", "reference/options.md", *AT_THE_ROOT}
PAGES = sorted(page for page in (README, ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every command line of the pages and of the help, once."""
    lines = [re.split(r"\s+# ", line)[0].strip() for page in PAGES for line in text_of(page).splitlines()]
    lines += [line for examples in EXAMPLES.values() for line in examples]
    return sorted({line for line in lines if re.match(r"selfspec [a-z][a-z-]*( |$)", line) and " is " not in line})


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def test_the_readme_is_one_page() -> None:
    assert len(text_of(README).splitlines()) <= 120


@pytest.fixture(scope="module")
def searched(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a short search."""
    outputs = tmp_path_factory.mktemp("outputs")
    few = ["objective.n_prompts=1", "objective.max_new_tokens=4", "searcher.n_trials=3", "finals.top=0", "force=true"]
    costs = ["costs.contexts=[8]", "costs.max_tokens=14", "costs.repeats=1"]
    ran = command("search", "draft=skip", "starts=[nothing]", *toy, *few, *costs, f"paths.outputs={outputs}")
    assert ran.status == 0, ran.err
    return ran.run


@pytest.mark.parametrize("page", [README, DOCS / "tutorial" / "use_in_transformers.md"], ids=lambda page: page.stem)
def test_python_runs(
    page: Path, model_folder: Path, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (code,) = blocks(page, "python")
    code = code.replace("FOLDER", str(folder)).replace('"RUN"', f'"{searched}"')
    exec(compile(code, page.name, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_python_for_a_gpu_is_valid() -> None:
    (code,) = blocks(DOCS / "tutorial" / "gpu.md", "python")
    exec(compile(code, "gpu.md", "exec"), {})


def test_there_are_commands() -> None:
    assert len(commands()) >= 60


@pytest.mark.parametrize("line", commands())
def test_a_command_names_what_there_is(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS / "examples")
    line = re.sub(r"=(RUN|FOLDER)\b", r"=./\1", line)  # these stand for a folder
    verb, *words = shlex.split(line.split(" > ")[0])[1:]
    assert verb in ALL_VERBS
    if verb not in VERBS or "--help" in words:
        return
    folder, words = split_config_dir([word for word in words if not word.startswith("hydra")])
    make_importable(folder)
    settings = [word for word in words if "=" in word]
    if "-m" in words:
        check_sweep(verb, settings, folder=folder)
    else:
        configuration(verb, settings, folder=folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    def is_there(link: str) -> bool:
        target = (page.parent / link.partition("#")[0]).resolve()
        return target.exists() or any(target == (DOCS / name).resolve() for name in GENERATED)

    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]+`", "", text_of(page), flags=re.DOTALL))
    assert [link for link in links if not link.startswith(("http", "#")) and not is_there(link)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_includes_is_there(page: Path) -> None:
    assert [name for name in re.findall(r'--8<-- "([^"]+)"', text_of(page)) if not (ROOT / name).is_file()] == []


def test_the_navigation_names_every_page() -> None:
    named = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {page.relative_to(DOCS).as_posix() for page in PAGES if DOCS in page.parents}
    assert named == there | GENERATED


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_verbs_has_every_setting_and_group(verb: str) -> None:
    section = verbs_page().partition(f"\n## {verb}\n")[2].partition("\n## ")[0]
    assert [one.name for one in settings_of(verb) if f"| `{one.name}` |" not in section] == []
    assert [group for group in groups(verb) if f"(options.md#{group})" not in section] == []


def test_the_page_of_options_has_every_option() -> None:
    page = options_page()
    files = [file.relative_to(ROOT / "conf") for file in (ROOT / "conf").glob("*/**/*.yaml")]
    names = [f"`{f.parts[0]}={'/'.join(f.with_suffix('').parts[1:])}`" for f in files if not f.stem.startswith("_")]
    used = [name for name in names if f"\n## {name[1:].partition('=')[0]}\n" in page]
    assert len(used) > 100 and [name for name in used if name not in page] == []
    assert "a whole number from 1 on" in page
