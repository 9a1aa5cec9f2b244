"""A trained head as a value: its kind, its settings and its weights. A draft plan holds one, and its files store it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

ROWS, EMBEDDING = "output.rows", "output.embedding"
OWN = (ROWS, EMBEDDING)
"""Tensors of a published head that are used instead of the target's: rows of the output head, and the embedding."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedHead:
    """Weights of a draft head, and what is needed to rebuild its module; heads of the same content are equal.

    Attributes:
        kind: name of the module's class, see `selfspec.heads.modules.KINDS`.
        settings: its settings.
        weights: its tensors by name, those of its module and any of `OWN`.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything except the weights, for YAML."""
        return {"kind": self.kind, "settings": dict(self.settings), "weights": sorted(self.weights)}

    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of all content; reads all weights."""
        found = hashlib.sha256(json.dumps([self.kind, dict(self.settings)], sort_keys=True).encode())
        for name in sorted(self.weights):
            found.update(name.encode() + self.weights[name].detach().cpu().float().contiguous().numpy().tobytes())
        return found.hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TrainedHead):
            return NotImplemented
        return self is other or (hash(self) == hash(other) and self.digest() == other.digest())

    def __hash__(self) -> int:
        return hash((self.kind, json.dumps(dict(self.settings), sort_keys=True), len(self.weights)))
