"""The files of a model's folder: checks of their format, and a digest of the weights.

Only the standard library reads the files here, so that a damaged file is reported before a loader fails on it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from selfspec.errors import InputError

INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
JSON_FILES = ("config.json", GENERATION_CONFIG, "tokenizer_config.json", "tokenizer.json")
# A tokenizer has one of these files; patterns, since some names contain the name of the model.
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json", "merges.txt")

_POINTER = b"version https://git-lfs"  # first bytes of a file that git checks out without Git LFS
_LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses a longer one
_WHOLE = 64 * 2**20  # bytes; the digest reads smaller files whole, in some tens of milliseconds; chosen, not tuned
_BLOCK = 4096  # bytes that the digest reads at the start, middle and end of each tensor of a larger file
# Keys of config.json about the origin of the file and about loading, which do not affect the computation.
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def check_files(folder: Path) -> None:
    """Refuse a folder with a damaged file: a Git LFS pointer, or a file that is truncated, empty or of another format.

    Raises:
        InputError: names the first such file and the fault.
    """
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_object(folder / name)
    for file in weight_files(folder):
        with _naming(file), file.open("rb") as stream:
            _header(stream, file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that loading reads, sorted by name.

    Raises:
        InputError: if the index is malformed or names missing files.
    """
    if (folder / INDEX).is_file():
        names = _shards(folder / INDEX)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder} lacks {len(missing)} of {len(names)} weight files, as {missing[0]}; add them")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def has_tokenizer(folder: Path) -> bool:
    """Whether a file of the folder can hold a tokenizer's vocabulary."""
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZERS)


def digest(folder: Path) -> str:
    """SHA-256 of configuration, code and tensors of a model.

    For a file above 64 MiB it covers the header and three blocks of each tensor, so that gigabytes take milliseconds.
    It does not detect a change elsewhere in such a file.
    """
    config = read_object(folder / "config.json")
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL}
    found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for code in sorted(folder.glob("*.py")):
        found.update(code.read_bytes())
    for file in weight_files(folder):
        with _naming(file), file.open("rb") as stream:
            found.update(struct.pack("<Q", file.stat().st_size))
            for part in _sample(stream, file):
                found.update(part)
    return found.hexdigest()


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: if the file holds anything else.
    """
    with _naming(file):
        data = file.read_bytes()
    _check_start(data, file)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _no_file(file, f"not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(body, dict):
        raise _no_file(file, f"JSON of another kind ({type(body).__name__} instead of an object)")
    return body


def _shards(index: Path) -> list[str]:
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise _no_file(index, "not an index of weight files (it has no weight_map)")
    return sorted(set(names.values()))


def _header(stream: BinaryIO, file: Path) -> tuple[int, dict[str, Any]]:
    """Offset of the first tensor of a safetensors file, in bytes, and the header's entry for each tensor."""
    size = file.stat().st_size
    start = stream.read(len(_POINTER))
    _check_start(start, file)
    (length,) = struct.unpack("<Q", start[:8]) if len(start) >= 8 else (_LONGEST_HEADER + 1,)
    if length > _LONGEST_HEADER:
        raise _no_file(file, "not a safetensors file (its first bytes are not the length of a header)")
    if size < 8 + length:
        raise _no_file(file, f"cut off ({size} bytes, and its header alone takes {8 + length})")
    stream.seek(8)
    try:
        header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        raise _no_file(file, "not a safetensors file (its header cannot be read)") from None
    if size != end:
        what = "cut off" if size < end else "longer than it should be"
        raise _no_file(file, f"{what} ({size} bytes, and its header says {end})")
    return 8 + length, tensors


def _sample(stream: BinaryIO, file: Path) -> Iterator[bytes]:
    """The bytes of a digest: the whole file, or the header and blocks of each tensor of a large one."""
    begin, tensors = _header(stream, file)
    stream.seek(0)
    if file.stat().st_size <= _WHOLE:
        yield stream.read()
        return
    yield stream.read(begin)
    for entry in tensors.values():
        first, last = entry["data_offsets"]
        for at in sorted({first, max(first, (first + last) // 2), max(first, last - _BLOCK)}):
            stream.seek(begin + at)
            yield stream.read(min(_BLOCK, last - at))


def _check_start(start: bytes, file: Path) -> None:
    if not start:
        raise _no_file(file, "empty")
    if start.startswith(_POINTER):
        raise InputError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in that folder")


def _no_file(file: Path, what: str) -> InputError:
    return InputError(f"{file} is {what}; fetch that file again")


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn an error of the file system into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror})") from None
