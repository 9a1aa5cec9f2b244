"""Locate a model's weights: a folder, a converted copy in the cache, the hub, or a package registry.

Every source ends as a local folder that `from_pretrained` reads. This module knows nothing of devices, attention
kernels, layers or caches of keys, and not how a registry's file becomes such a folder.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import huggingface_hub
from huggingface_hub import constants

from selfspec.errors import InputError
from selfspec.hub import hub_answers
from selfspec.models.weight_files import GENERATION_CONFIG, check_files, digest, has_tokenizer

log = logging.getLogger(__name__)

# Only safetensors, and only in the top folder: some repositories repeat the weights in sub-folders
# (`original/`, `onnx/`) or as one `consolidated` file.
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
HUB_SKIPPED_FILES = ["*/*", "consolidated*"]


class OtherSource(Protocol):
    """Where else a model's weights are, of which a copy is made once.

    Attributes:
        requirement: what it is called in messages.
        sha256: digest of the file that the copy is made from.
    """

    @property
    def requirement(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    def make(self, copy: Path) -> None:
        """Make the folder `copy`, whole or not at all."""

    def check(self, copy: Path) -> None:
        """Raise InputError unless `copy` is whole and was made the way that is asked for."""


@dataclass(frozen=True, slots=True)
class Located:
    """Weights that are on this machine.

    Attributes:
        folder_or_id: first argument of `from_pretrained`.
        revision: the hub's commit, if origin is "hub".
        origin: source of the weights.
        sha256: digest of the registry's file if origin is "registry", of the folder's model if it is "path".
    """

    folder_or_id: str
    revision: str | None
    origin: Literal["path", "hub", "registry"]
    sha256: str | None


def locate(
    hub_id: str | None,
    *,
    path: str | None = None,
    revision: str | None = None,
    registry: OtherSource | None = None,
    cache_dir: Path | None = None,
) -> Located:
    """A local folder with the model's weights, downloaded if necessary.

    The first existing source counts: `path`; an earlier conversion of the registry's file; the hub's cache; the hub, if
    it answers (`hub_answers`); the registry. With a `revision` the registry is not used, since its file has no
    revision.

    Args:
        hub_id: "owner/name" on the hub; None if there is only `path`.
        path: a folder in the form of `save_pretrained`.
        revision: branch, tag or commit on the hub.
        registry: source of the weights in a package registry.
        cache_dir: root of the cache of converted copies; `default_cache_dir()` if None.

    Raises:
        InputError: if `path` is no such folder, no source has the weights, or the registry's file has another digest.
    """
    if path is not None:
        if revision is not None:
            raise InputError(f"model.revision={revision} has no effect on the folder model.path={path}; drop one")
        folder = Path(path).expanduser()
        check_folder(folder, asked=f"model.path={path}")
        return Located(str(folder), None, "path", digest(folder))
    if hub_id is None:
        raise InputError("the model has neither model.hub_id nor model.path; pass model.path=FOLDER")
    if registry is None or revision is not None:
        try:
            return _from_hub(hub_id, revision)
        except InputError as refusal:
            why = "no registry source" if registry is None else f"no registry source of revision {revision}"
            raise InputError(
                f"{refusal}, and {hub_id} has {why}; download it elsewhere and pass model.path=FOLDER"
            ) from refusal
    copy = _copy_folder(cache_dir or default_cache_dir(), hub_id, registry)
    if not copy.exists():
        try:
            return _from_hub(hub_id, revision)
        except InputError as refusal:
            log.info("fetching %s from the package registry: %s", registry.requirement, refusal)
        registry.make(copy)
    registry.check(copy)
    return Located(str(copy), None, "registry", registry.sha256)


def default_cache_dir() -> Path:
    """`SELFSPEC_CACHE`, or `selfspec` in the user's cache folder."""
    own = os.environ.get("SELFSPEC_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "selfspec").expanduser()


def _from_hub(hub_id: str, revision: str | None) -> Located:
    """The hub's files, from its cache or by download; the message of an InputError is a clause with the reason."""
    from huggingface_hub import errors

    def snapshot(*, local_files_only: bool) -> Located:
        folder = huggingface_hub.snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_SKIPPED_FILES,
            local_files_only=local_files_only,
        )
        check_folder(Path(folder), asked=hub_id)
        return Located(folder, Path(folder).name, "hub", None)  # the folder is named by its commit

    cached, lacks = None, ""
    try:
        cached = snapshot(local_files_only=True)
        lacks = _lacking(Path(cached.folder_or_id))
    except errors.HFValidationError as error:
        raise InputError(f"{hub_id} is not a name on the hub") from error
    except errors.LocalEntryNotFoundError:
        pass  # not in the hub's cache
    except InputError as error:
        lacks = str(error)  # incomplete, for example a tokenizer alone
    if cached and not lacks:
        return cached
    if not hub_answers():
        if cached and has_tokenizer(Path(cached.folder_or_id)):
            return cached  # `load` warns about a missing generation config
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise InputError(f"{why}, in its cache {lacks}" if lacks else why)
    log.info("fetching %s from the hub", hub_id)
    # A progress bar for a terminal, but not in a log file.
    bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with bars:
            return snapshot(local_files_only=False)
    except errors.GatedRepoError as error:
        raise InputError("the hub gives it only to a token (`hf auth login`) that accepted its licence") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError("the hub has no such model, or a private one (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"the hub has no revision {revision} of it") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:  # type: ignore[attr-defined]
        raise InputError(f"the hub failed ({str(error).splitlines()[0]})") from error


def _lacking(folder: Path) -> str:
    """The missing file of a folder in the hub's cache, as a clause; empty if it is complete.

    transformers downloads file by file, so a cache may hold weights without a tokenizer. It records in `.no_exist`
    which files the hub lacks.
    """
    if not has_tokenizer(folder):
        return f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)"
    absent = folder.parents[1] / ".no_exist" / folder.name / GENERATION_CONFIG
    if not (folder / GENERATION_CONFIG).is_file() and not absent.exists():
        return f"{folder} has no {GENERATION_CONFIG}"
    return ""


def check_folder(folder: Path, *, asked: str) -> None:
    """Raises InputError unless `folder` holds a config and all of its safetensors files, and they are such files."""
    need = "a folder with config.json and *.safetensors files is needed"
    if not folder.exists():
        raise InputError(f"{asked} does not exist; {need}")
    if not folder.is_dir():
        raise InputError(f"{asked} is a file; {need}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{asked} has no config.json; {need}")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}"))
        if pickled:
            raise InputError(
                f"{asked} has its weights only in {pickled[0]}, and only safetensors are loaded; "
                "convert them with save_pretrained"
            )
        raise InputError(f"{asked} has no *.safetensors file; {need}")
    check_files(folder)


def _copy_folder(cache_dir: Path, hub_id: str, source: OtherSource) -> Path:
    return cache_dir / "models" / f"{hub_id.replace('/', '--')}-{source.sha256[:12]}"
