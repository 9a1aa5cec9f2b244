"""What was computed before, found again by a digest of everything that determines it.

An entry is one file, which is written under a hidden name and then renamed. A killed writer therefore leaves no entry,
and of two writers the later one wins; both write the same content. An entry that cannot be read is computed again. This
module does not know what an entry means.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as bytes_of
from torch import Tensor

from selfspec.records.run_files import write_bytes

log = logging.getLogger(__name__)

DIGITS = 32  # hexadecimal digits of the SHA-256 in a file's name


@dataclass(frozen=True, slots=True)
class Entry:
    """Content of an entry: plain values as JSON, and tensors on the CPU."""

    body: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ContentCache:
    """Entries of one model in a folder, which may hold those of other models as well.

    Attributes:
        folder: holds a folder for each kind of entry; it is created with the first entry, and may be deleted any time.
        of: what determines all entries, as JSON: the weights, their dtype, the kernels, ...
    """

    folder: Path
    of: Mapping[str, Any]
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def path(self, kind: str, of: Mapping[str, Any], *, has_tensors: bool = False) -> Path:
        """File of an entry: `KIND/DIGEST.json`, or `.safetensors` if it has tensors.

        Args:
            kind: name of the kind of entries, which is the name of a folder.
            of: what else determines the entry, as JSON.
            has_tensors: whether the entry has tensors.
        """
        digest = hashlib.sha256(_text({"kind": kind, **self._all(of)}).encode()).hexdigest()[:DIGITS]
        return self.folder / kind / f"{digest}.{'safetensors' if has_tensors else 'json'}"

    def get(self, kind: str, of: Mapping[str, Any], *, has_tensors: bool = False) -> Entry | None:
        """The entry, or None if there is none or it is damaged; a warning says the latter.

        Arguments as in `path`.
        """
        path = self.path(kind, of, has_tensors=has_tensors)
        try:
            head, tensors = _read_tensors(path) if has_tensors else (json.loads(path.read_bytes()), {})
            checksum, same = head.pop("sha256"), head.pop("of") == json.loads(_text(self._all(of)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
        else:
            if same and checksum == _checksum(head, tensors):
                return Entry(head, tensors)
            why = "its checksum is that of another content"
        log.warning("%s is damaged (%s); it is computed again", path, why)
        return None

    def put(
        self, kind: str, of: Mapping[str, Any], body: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Keep an entry. A folder that cannot be written costs one warning and nothing else.

        Args:
            kind, of: see `path`.
            body: content as JSON; it must not have the keys `of` and `sha256`.
            tensors: content in tensors of any device; an entry without any is readable JSON.
        """
        path = self.path(kind, of, has_tensors=tensors is not None)
        # clones, because safetensors refuses views of one buffer
        kept = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in (tensors or {}).items()}
        head = {"of": self._all(of), "sha256": _checksum(json.loads(_text(body)), kept), **body}
        data = json.dumps(head, indent=1, allow_nan=False).encode()
        if tensors is not None:
            data = bytes_of(kept, {"entry": _text(head)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data)
        except OSError as error:
            if kind not in self._warned:
                self._warned.add(kind)
                log.warning("cannot keep %s in %s (%s); they will be computed again", kind, path.parent, error.strerror)

    def n_bytes(self, kind: str) -> int:
        """Size of all entries of a kind, of every model."""
        folder = self.folder / kind
        return sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0

    def _all(self, of: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.of, **of}


def _read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The values and tensors of a safetensors file."""
    path.stat()  # safe_open names a missing file in words alone
    with safe_open(path, framework="pt") as file:
        head: dict[str, Any] = json.loads((file.metadata() or {})["entry"])
        return head, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary


def _text(value: Mapping[str, Any]) -> str:
    """JSON that is the same text for the same values."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _checksum(body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(_text(body).encode())
    for part in _parts(tensors):
        found.update(part)
    return found.hexdigest()


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        yield tensor.flatten().view(torch.uint8).numpy()  # numpy has no bfloat16
