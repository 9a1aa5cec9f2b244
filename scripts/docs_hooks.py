"""Pages of the documentation that are made from other files; mkdocs calls this (`hooks` in mkdocs.yml).

`reference/verbs.md` and `reference/options.md` come from the schema and the comments of `conf/`; the lab log, the
changelog and the rules for contributors from the files at the root of the repository.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from experiments.config import help as command_help
from experiments.config.annotations import members
from experiments.config.comments import Commented, Setting, of_option, of_verb
from experiments.config.composing import composing, groups, options
from experiments.config.kinds import text as kind_text
from experiments.config.schema import VERBS
from selfspec.targets import TARGET

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
AT_THE_ROOT = {"log.md": "LOG.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    from mkdocs.structure.files import File

    pages = {"reference/verbs.md": verbs_page(), "reference/options.md": options_page()}
    for page, name in AT_THE_ROOT.items():
        pages[page] = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links of pages in docs/ to files at the root of the repository lead to the pages of these."""
    for page, name in AT_THE_ROOT.items():
        markdown = markdown.replace(f"](../{name})", f"]({page})")
    return markdown


def verbs_page() -> str:
    """Every verb: what it does, examples, groups and own settings."""
    lines = ["# Verbs", "", "`selfspec VERB --help` shows this page's section on the terminal.", ""]
    for verb in VERBS:
        about = of_verb(verb)
        lines += [f"## {verb}", "", _sentence(about.heading), "", "```", *command_help.examples(verb), "```", ""]
        lines += [f"Groups: {', '.join(f'[`{g}`](options.md#{g})' for g in sorted(groups(verb)))}.", ""]
        lines += [*_table(command_help.settings_of(verb), VERBS[verb]), ""]
    return "\n".join(lines)


def options_page() -> str:
    """Every group: which option to choose when, and the settings of each."""
    lines = [
        "# Options",
        "",
        "`group=option` chooses an option, `group.setting=value` changes a setting of it.",
        "",
    ]
    kinds = {name: kind for verb in VERBS.values() for name, kind in get_type_hints(verb, include_extras=True).items()}
    with composing():
        owned = {verb: groups(verb) for verb in VERBS}
        for group in sorted(set().union(*owned.values())):
            users = [verb for verb in VERBS if group in owned[verb]]
            lines += [f"## {group}", "", f"Used by {', '.join(f'[{v}](verbs.md#{v})' for v in users)}.", ""]
            names = options(group)
            lines += ["| option | when to choose it |", "|---|---|"]
            found = {name: of_option(group, name) for name in names}
            lines += [f"| `{group}={name}` | {_cell(one.heading)} |" for name, one in found.items()]
            base = _base(group)
            if base is not None:
                lines += ["", f"Settings of every option of `{group}`:", "", *_table(base.settings, kinds[group])]
            for name, one in found.items():
                if one.settings:
                    target = f", `{one.target}`" if one.target else ""
                    lines += ["", f"### {group}={name}", "", f"Settings{target}:", ""]
                    lines += _table(one.settings, kinds[group], one.target)
            lines += [""]
    return "\n".join(lines)


def _base(group: str) -> Commented | None:
    try:
        return of_option(group, "_base")
    except FileNotFoundError:
        return None


def _table(settings: Sequence[Setting], kind: Any, target: str = "") -> Iterator[str]:
    """The settings with their defaults, kinds and comments."""
    if not settings:
        return
    yield "| setting | default | takes | meaning |"
    yield "|---|---|---|---|"
    for one in settings:
        takes = _takes(kind, one.name, target)
        default = f"`{one.default}`" if one.default else ""
        yield f"| `{one.name}` | {_cell(default)} | {_cell(takes)} | {_cell(one.comment)} |"


def _takes(kind: Any, name: str, target: str) -> str:
    """The kind of a setting in words; empty if it is not declared."""
    node: Any = {TARGET: target} if target else None
    for part in name.split("."):
        known, others = members(kind, node)
        kind, node = known.get(part, others), None
    return "" if kind in (None, Any) or kind is None else kind_text(kind)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(heading: str) -> str:
    """`selfspec search : what ...` with the command as code."""
    command, colon, rest = heading.partition(" : ")
    return f"`{command}`: {rest}" if colon else heading
