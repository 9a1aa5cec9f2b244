"""Draft specs on disk, and everything else that names a draft: plans, skip sets, folders of searches, published names.

The file of a spec is the file of its plan with further keys. It therefore refuses other weights, and readers of plans
read it. A search writes these keys into the file of its skip set as well; a draft that is only a skip set has no plan.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from selfspec.drafters.spec import DraftSpec
from selfspec.errors import InputError
from selfspec.heads.published import CONFIG as HEAD_CONFIG
from selfspec.heads.published import published_folder, read_published
from selfspec.models.decoder import Decoder
from selfspec.skipping import plan_files, skip_set_files
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SYNTAX, SkipSet
from selfspec.stopping import StopPolicy


def save_spec(
    path: Path | str, spec: DraftSpec, *, model: str, decoder: Decoder, facts: Mapping[str, Any], **provenance: Any
) -> None:
    """Write `spec` and the weights it is for; `load_spec` reads it, and `load_plan` reads its plan.

    Args:
        path: the YAML file, or its folder; the file of tensors gets the same name.
        spec: the spec to write.
        model: name of the model.
        decoder: the model.
        facts: `Loaded.facts` of the model, which identify its weights.
        **provenance: objective, value, run, date, calibration text, ...
    """
    settings = spec.settings() | provenance
    plan_files.save_plan(path, spec.plan, model=model, decoder=decoder, facts=facts, **settings)


def load_spec(
    draft: Path | str,
    decoder: Decoder,
    facts: Mapping[str, Any] | None = None,
    *,
    stop: StopPolicy | None = None,
    default_stop: StopPolicy | None = None,
) -> DraftSpec:
    """The spec of a draft that is given by any of its names.

    Args:
        draft: a file of `save_spec`, `save_plan` or `save_skip_set`, the folder of one or of a search, a published
            name, or a skip set written as `a3,5-9 m7`.
        decoder: the model that it is for.
        facts: `Loaded.facts` of the model; without them revision and digest of the weights are not compared.
        stop: stop rule to use instead of the saved one.
        default_stop: stop rule to use if none was saved.

    Raises:
        InputError: if there is no such draft, it is for other weights, or it has no stop rule.
    """
    plan, settings = read_draft(draft, decoder, facts)
    if stop is None and "stop" not in settings:
        stop = default_stop
    return DraftSpec.from_settings(plan, settings, stop=stop)


def read_draft(
    draft: Path | str, decoder: Decoder, facts: Mapping[str, Any] | None = None
) -> tuple[DraftPlan, dict[str, Any]]:
    """The plan of a draft, and the content of its file; arguments as in `load_spec`."""
    found = find_draft(draft)
    if found.kind == "plan":
        assert found.file is not None
        return plan_files.load_plan(found.file, decoder, facts), dict(found.settings)
    if found.kind == "head":
        assert found.file is not None
        return read_published(found.file.parent, decoder), {}
    return DraftPlan.from_skip_set(found.skip(decoder.n_layers)), dict(found.settings)


@dataclass(frozen=True, slots=True)
class NamedDraft:
    """What the name of a draft stands for, known before a model is there to load it for.

    Attributes:
        name: as the user wrote it.
        kind: a set written as `a3,5-9 m7`, a set published with this package, the file of a skip set, the file of a
            plan, or a head in a published format.
        file: the YAML file, or `config.json` of a head; None for a written or a published set.
        settings: what the file says; of the plan of a search also what stands in the file of its skip set.
    """

    name: str
    kind: Literal["written", "published", "skip_set", "plan", "head"]
    file: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_well_written(self) -> bool:
        """Whether the name is a written set without mistakes, whatever the model."""
        return self.name == "none" or SYNTAX.fullmatch(self.name) is not None

    def skip(self, n_layers: int | None = None) -> SkipSet:
        """The sublayers that the draft leaves out.

        Args:
            n_layers: of the model it is wanted for; a written set needs it.

        Raises:
            InputError: if the draft is for another number of layers, or `n_layers` is missing.
        """
        if self.kind == "written":
            if n_layers is None:
                raise InputError(f"{self.name!r} is written without a model; tell the layers of its model")
            return SkipSet.parse(self.name, n_layers)
        if self.kind == "head":
            if n_layers is None:
                raise InputError(f"{self.name!r} is a head in the place of all layers; tell the layers of its model")
            return SkipSet.from_bits([True] * (2 * n_layers))
        if self.kind == "published":
            return skip_set_files.load_skip_set(self.name, n_layers=n_layers)
        if self.kind == "skip_set":
            assert self.file is not None
            return skip_set_files.read_skip_set(self.file, n_layers=n_layers)
        return SkipSet.parse(str(self.settings["skip"]), self.settings["n_layers"])


def find_draft(name: Path | str) -> NamedDraft:
    """What a name stands for: a written set, a file or folder of a draft, or a published set.

    Args:
        name: see `load_spec`. A folder is that of a search, or any other with `plan.yaml` or `skip_set.yaml` in it, or
            a head in a published format.

    Raises:
        InputError: if it stands for nothing, or its file cannot be read.
    """
    text = str(name)
    path = Path(text).expanduser()
    if (written := NamedDraft(text, "written")).is_well_written:  # also beside a folder of that name, which is ./a1
        return written
    if file := _plan_file(path):
        return NamedDraft(text, "plan", file, _beside(file) | plan_files.read_plan_file(file))
    if head := published_folder(path):
        return NamedDraft(text, "head", head / HEAD_CONFIG)
    if os.path.exists(path):
        file = path / skip_set_files.NAME if os.path.isdir(path) else path
        skip_set_files.read_skip_set(file)  # which says what is wrong with it
        return NamedDraft(text, "skip_set", file, dict(yaml.safe_load(file.read_text(encoding="utf-8"))))
    if text in skip_set_files.published():
        return NamedDraft(text, "published")
    if _LIKE_A_SET.match(text) and path.suffix not in (".yaml", ".yml"):
        return written  # reading it tells what is wrong with it
    raise skip_set_files.unknown_draft(text)


_LIKE_A_SET = re.compile(r"\s*[am]\d[^/]*$|[^/]*[,\s][^/]*$")
"""What was meant as a written skip set, though it may not be one."""


def _beside(plan: Path) -> dict[str, Any]:
    """What the skip set beside a plan says, if it is the plan's: a search notes its value there alone."""
    file = plan.parent / skip_set_files.NAME
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
        return dict(body) if body["skip"] == plan_files.read_plan_file(plan)["skip"] else {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, InputError):
        return {}


def _plan_file(path: Path) -> Path | None:
    """The plan file that a path names; None if there is none, or if it is a skip set."""
    if os.path.isdir(path):
        return path / plan_files.NAME if (path / plan_files.NAME).is_file() else None
    if path.name == plan_files.NAME:
        return path
    if path.suffix not in (".yaml", ".yml") or not os.path.isfile(path):
        return None
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return path if isinstance(body, Mapping) and "bridges" in body else None
