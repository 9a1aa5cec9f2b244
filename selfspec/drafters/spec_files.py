"""Draft specs on disk, and everything else that names a draft: plans, skip sets, folders of searches, published names.

The file of a spec is the file of its plan with further keys. It therefore refuses other weights, and readers of plans
read it. A search writes these keys into the file of its skip set as well; a draft that is only a skip set has no plan.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfspec.drafters.spec import DraftSpec
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
    text = str(draft)
    path = Path(text).expanduser()
    if text == "none" or SYNTAX.fullmatch(text):  # a folder of that name is written ./a1
        return DraftPlan.from_skip_set(SkipSet.parse(text, decoder.n_layers)), {}
    if file := _plan_file(path):
        return plan_files.load_plan(file, decoder, facts), plan_files.read_plan_file(file)
    if "/" not in text and path.suffix not in (".yaml", ".yml") and not os.path.exists(path):
        return DraftPlan.from_skip_set(
            SkipSet.parse(text, decoder.n_layers)
        ), {}  # raises an error that names the fault
    skip = skip_set_files.load_skip_set(text, n_layers=decoder.n_layers)
    file = path / skip_set_files.NAME if os.path.isdir(path) else path
    return DraftPlan.from_skip_set(skip), dict(
        yaml.safe_load(file.read_text(encoding="utf-8"))
    ) if file.is_file() else {}


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
