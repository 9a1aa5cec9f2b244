"""selfspec export RUN format=speculators: a trained draft as a folder that serving engines read.

The model is that of the run. Its words are a name and few settings, so it does not use Hydra.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from experiments.builders import build
from experiments.config.composing import read_config
from experiments.config.words import OUTPUTS, outputs_of
from experiments.results.locate_draft import locate_draft
from experiments.results.run_facts import read_provenance
from selfspec.drafters.spec_files import find_draft, read_draft
from selfspec.errors import InputError, unknown_name
from selfspec.heads.published import BESIDE
from selfspec.heads.speculators_format import write_speculators
from selfspec.models.load import Loaded
from selfspec.records import run_files

FORMATS = ("speculators",)
N_DRAFTED = 3  # tokens of a draft, if the run does not say how many pay
USAGE = (
    "selfspec export RUN format=speculators [folder=FOLDER] [verifier=HUB_ID]; RUN is the folder or the id of a "
    "training, verifier= says where the other machine finds the model"
)


def export(words: Sequence[str], say: Callable[[str], None]) -> None:
    """Run the verb.

    Args:
        words: words after `export`.
        say: function that prints a line.

    Raises:
        InputError: if the words name no training, or the format has no place for its head.
    """
    if {"-h", "--help"} & set(words):
        return say(USAGE)
    name, settings = _read(words)
    if settings["format"] not in FORMATS:
        raise unknown_name("format", settings["format"], list(FORMATS))
    outputs = outputs_of(words)
    found = find_draft(locate_draft(name, outputs))
    if found.kind != "plan" or found.file is None or not (found.file.parent / run_files.CONFIG).is_file():
        raise InputError(f"{name!r} is no training; {USAGE}")
    run = found.file.parent
    cfg = read_config(run / run_files.CONFIG)
    folder = Path(settings["folder"] or run / settings["format"]).expanduser()
    loaded = build.model(cfg)
    plan, _ = read_draft(run, loaded.decoder, loaded.facts)
    facts = read_provenance(run)["run"]
    n_drafted = _n_drafted(run)
    run_files.make_writable(folder, hint="choose another with folder=FOLDER")
    verifier = settings["verifier"] or _verifier(cfg, loaded)
    write_speculators(folder, plan, loaded.decoder, verifier=verifier, n_drafted=n_drafted)
    run_files.write_json(folder / BESIDE, {"run": run.name, "model": facts.get("model"), "seen": facts.get("seen", [])})
    n_scored = loaded.decoder.n_vocab if plan.head is None else plan.head.numel()
    say(
        f"a head over {n_scored} tokens, for {verifier}, {n_drafted} tokens a draft\n"
        f"folder: {folder}\ntry it: vllm serve {folder}; selfspec evaluate drafter={folder} model={cfg.model.name}"
    )


def _read(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    settings = {"format": FORMATS[0], "folder": "", "verifier": ""}
    names = []
    for word in words:
        key, is_setting, value = word.partition("=")
        if word.startswith(OUTPUTS):
            continue
        if is_setting and key in settings:
            settings[key] = value
        elif is_setting and "/" not in key:
            raise unknown_name("setting", key, list(settings))
        else:
            names.append(word)
    if len(names) != 1:
        raise InputError(f"{len(names)} runs were named; {USAGE}")
    return names[0], settings


def _verifier(cfg: DictConfig, loaded: Loaded) -> str:
    """Hub id of the model, or the full path of the folder that its weights were read from."""
    if loaded.facts["weights"]["origin"] == "hub":
        return str(cfg.model.hub_id)
    return str(Path(str(loaded.decoder.model.name_or_path)).resolve())


def _n_drafted(run: Path) -> int:
    """Tokens of a draft that the training found to pay most."""
    try:
        summary = json.loads((run / run_files.SUMMARY).read_text(encoding="utf-8"))
        return int(summary["draft_length"])
    except (OSError, ValueError, KeyError, TypeError):
        return N_DRAFTED
