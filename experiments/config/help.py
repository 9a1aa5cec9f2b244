"""What `selfspec VERB --help` shows: examples, groups of options and settings, in the words of the YAML files.

Without a topic the help is a page; with the name of a group it explains the options of the group; `all` is the whole
configuration as YAML.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from experiments.config.comments import Commented, Setting, of_option, of_verb
from experiments.config.composing import composing, groups, options, unchecked
from experiments.config.schema import VERBS, Run
from experiments.config.words import OUTPUTS
from selfspec.errors import unknown_name

EXAMPLES: dict[str, tuple[str, ...]] = {
    "decode": (
        'selfspec decode prompt="Why is the sky blue?" skip="a13,22 m20"',
        'selfspec decode prompt="Why is the sky blue?" skip=RUN stop=searched',
    ),
    "profile": ("selfspec profile", "selfspec profile check=20"),
    "search": (
        "selfspec search",
        "selfspec search draft=skip searcher=tpe searcher.n_trials=60",
        "selfspec search resume=outputs/search/NAME/RUN",
    ),
    "evaluate": (
        "selfspec evaluate skip=outputs/search/NAME/RUN stop=searched lookup=searched",
        'selfspec evaluate skip="a20-24 m3" stop=threshold data=humaneval n=20',
        "selfspec evaluate -m stop=adaptive,optimal,fixed",
    ),
    "serve-sim": (
        "selfspec serve-sim skip=RUN lookup=searched",
        "selfspec serve-sim records=outputs/serve-sim/NAME/RUN engine=replay n=500 costs.path=h100/costs.json",
        "selfspec serve-sim skip=RUN trace=trace.jsonl",
    ),
    "collect": ("selfspec collect data=gsm8k data.calibration_n=300",),
    "train": ("selfspec train drafter=eagle", "selfspec train drafter=bridged skip=outputs/search/NAME/RUN"),
    "report": ("selfspec report", "selfspec report runs='outputs/evaluate/**' format=html"),
    "reproduce": ("selfspec reproduce experiment=paper/smollm2-135m dry_run=true",),
    "dashboard": ("selfspec dashboard", "selfspec dashboard runs='outputs/search/**' port=8502"),
}
SECTIONS: dict[str, tuple[str, ...]] = {
    "what is decoded": ("model", "data", "sampling", "experiment"),
    "what drafts": ("drafter", "draft", "head", "tree", "stop", "predictor", "controller", "schedule", "online"),
    "how it is searched or trained": ("searcher", "objective", "recipe", "train"),
    "machine and records": ("calibration", "costs", "tracker", "paths"),
}
WIDTH = 100  # characters of a line
NAMES = 22  # of these, for names of settings


def verb_help(verb: str, topics: Sequence[str], settings: Sequence[str], *, folder: Path | None = None) -> str:
    """The help of a verb, of one of its groups, or its whole configuration.

    Args:
        verb: the verb.
        topics: words behind `--help` that are no settings: empty, the name of a group, or `all`.
        settings: words `key=value`, which `all` shows applied.
        folder: the user's folder of options.

    Raises:
        InputError: for a topic that is neither, with the nearest one.
    """
    with composing(folder):
        own = sorted(groups(verb))
        for topic in topics:
            if topic not in (*own, "all"):
                raise unknown_name("topic of help", topic, [*own, "all"])
        if "all" in topics:
            return _everything(verb, own, settings)
        if topics:
            return "\n\n".join("\n".join(_group(verb, group, folder)) for group in topics)
        return "\n".join(_page(verb, own))


def _page(verb: str, own: Sequence[str]) -> Iterator[str]:
    """Examples, groups with their options, and the settings of the verb itself."""
    about = of_verb(verb)
    yield from textwrap.wrap(about.heading, WIDTH)
    yield from ("", "Examples", *(f"  {line}" for line in examples(verb)))
    yield from ("", "Options, chosen by GROUP=OPTION")
    named = {group for members in SECTIONS.values() for group in members}
    others = {"others": tuple(group for group in own if group not in named)}
    for section, members in (SECTIONS | others).items():
        there = [group for group in members if group in own]
        if there:
            yield f"  {section}"
        for group in there:
            yield from _entry(group, ", ".join(of_use(verb, group)), indent=4)
    yield from ("", "Settings, with their defaults")
    for one in settings_of(verb):
        yield from _setting(one)
    yield from (
        "",
        f"selfspec {verb} --help GROUP explains the options of a group, such as {own[-1]}, and their settings;",
        f"selfspec {verb} --help all shows the whole configuration. {OUTPUTS}FOLDER keeps runs elsewhere.",
    )


def examples(verb: str) -> tuple[str, ...]:
    """Commands that show a verb."""
    return EXAMPLES.get(verb, (f"selfspec {verb}",))


def settings_of(verb: str) -> list[Setting]:
    """The settings of a verb itself, then those that all verbs with a model share."""
    shared = of_verb("_run").settings if issubclass(VERBS[verb], Run) else ()
    return [*of_verb(verb).settings, *shared]


def of_use(verb: str, group: str) -> list[str]:
    """The options of a group that a verb can use: drafts that are trained are for `train`, the others for the rest."""
    names = options(group)
    if group != "drafter":
        return names
    is_trained = {name: of_option(group, name, folder=None).heading.startswith("Trained") for name in _ours(names)}
    return [name for name in names if is_trained.get(name, False) == (verb == "train")]


def _ours(names: Sequence[str]) -> Iterator[str]:
    """The drafters of this package among the options."""
    for name in names:
        try:
            of_option("drafter", name)
        except FileNotFoundError:
            continue
        yield name


def _group(verb: str, group: str, folder: Path | None) -> Iterator[str]:
    """Each option of a group with the reason to choose it, and its settings."""
    yield f"{group}: chosen by {group}=OPTION; a setting of it is changed by {group}.SETTING=VALUE"
    for name in of_use(verb, group):
        about = of_option(group, name, folder=folder)
        yield ""
        yield f"{group}={name}"
        yield from textwrap.wrap(about.heading, WIDTH, initial_indent="  ", subsequent_indent="  ")
        for one in _with_base(group, about):
            yield from _setting(one, indent=4)


def _with_base(group: str, about: Commented) -> list[Setting]:
    """The settings of an option, and those of the file that all options of the group begin with."""
    try:
        base = of_option(group, "_base").settings
    except FileNotFoundError:
        base = ()
    own = {one.name for one in about.settings}
    return [*about.settings, *(one for one in base if one.name not in own)]


def _setting(one: Setting, indent: int = 2) -> Iterator[str]:
    name = f"{one.name}={one.default}" if one.default else f"{one.name}.*"
    return _entry(name, one.comment, indent=indent)


def _entry(name: str, text: str, *, indent: int) -> Iterator[str]:
    """A name and its text beside it, folded; a long name has a line of its own."""
    left = " " * indent + name
    column = NAMES + indent
    lines = textwrap.wrap(text, WIDTH - column, break_on_hyphens=False) or [""]
    if len(left) >= column:
        yield left
        yield from (" " * column + line for line in lines if line)
        return
    yield f"{left:<{column}}{lines[0]}".rstrip()
    yield from (" " * column + line for line in lines[1:])


def _everything(verb: str, own: Sequence[str], words: Sequence[str]) -> str:
    """The groups of a verb with all options, and its configuration under these words, as YAML."""
    settings = OmegaConf.to_yaml(unchecked(verb, words)).strip()
    listed = "\n".join(f"{group}: {', '.join(options(group))}" for group in own)
    return (
        f"== Configuration groups ==\nOptions are chosen by group=option\n\n{listed}\n\n"
        f"== Config ==\nSettings are changed by setting=value\n\n{settings}\n\n"
        f"Powered by Hydra (https://hydra.cc), see {verb} --hydra-help"
    )
