"""The skip set: the sublayers that a draft leaves out.

A skip set is a value that is passed as an argument; it is never global and never the state of a model. It knows layer
numbers and nothing of weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfspec.errors import InputError

_ITEM = re.compile(r"([am]?)([0-9]{1,9})(?:-([0-9]{1,9}))?")
SYNTAX = re.compile(r"\s*[am][0-9]+(-[0-9]+)?([,\s]+[am]?[0-9]+(-[0-9]+)?)*\s*")
"""Matches the notation of skip sets, for a model of any size."""
LONGEST = 400  # characters of a skip set that an error shows; those of large models have some hundreds


@dataclass(frozen=True, slots=True)
class SkipSet:
    """Attention and MLP sublayers to skip in a model of `n_layers` layers; indices are 0-based.

    Raises:
        InputError: if an index lies outside the model.
    """

    n_layers: int
    attn: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "attn", frozenset(self.attn))
        object.__setattr__(self, "mlp", frozenset(self.mlp))
        outside = sorted(i for i in self.attn | self.mlp if not 0 <= i < self.n_layers)
        if outside:
            raise InputError(
                f"the skip set names layer {outside[-1]}, but the model has layers 0..{self.n_layers - 1}; "
                "was it found for another model?"
            )

    @classmethod
    def parse(cls, text: str, n_layers: int) -> SkipSet:
        """The set written as `a3,5-9 m7`: attention of layers 3 and 5 to 9, MLP of layer 7; the inverse of `str()`.

        Args:
            text: items separated by commas or spaces. A letter applies until the next one. `none` or an empty text
                skips nothing.
            n_layers: number of layers of the model.

        Raises:
            InputError: if the text has another form or names a layer outside the model.
        """
        found: dict[str, set[int]] = {"a": set(), "m": set()}
        kind, shown = "", text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
        if text.strip() in ("", "none"):
            return cls(n_layers)
        if re.search(r"^\s*,|,\s*,|,\s*$", text):
            raise InputError(f"skip={shown!r} has a comma with nothing before or behind it; write it like 'a3,5-9 m7'")
        for item in re.split(r"[,\s]+", text.strip()):
            if item == "none":
                raise InputError(f"skip={shown!r} names sublayers and none; leave one of them out")
            match = _ITEM.fullmatch(item)
            if match is None or not (match[1] or kind):
                raise InputError(
                    f"cannot read {item[:20]!r} in skip={shown!r}; write it like 'a3,5-9 m7' (a attention, m MLP)"
                )
            kind = match[1] or kind
            first, last = int(match[2]), int(match[3] or match[2])
            if last < first:
                raise InputError(f"the range {item!r} in skip={shown!r} runs backwards; write the smaller layer first")
            if last >= n_layers:
                raise InputError(f"skip={shown!r} names layer {last}, but the model has layers 0..{n_layers - 1}")
            found[kind].update(range(first, last + 1))
        return cls(n_layers, frozenset(found["a"]), frozenset(found["m"]))

    @classmethod
    def from_bits(cls, bits: Sequence[bool]) -> SkipSet:
        """The set that skips sublayer 2·layer (attention) or 2·layer + 1 (MLP) if its bit is true."""
        n_layers, odd = divmod(len(bits), 2)
        if odd:
            raise InputError(f"a skip set has two bits a layer, but {len(bits)} were given")
        layers = range(n_layers)
        return cls(
            n_layers, frozenset(i for i in layers if bits[2 * i]), frozenset(i for i in layers if bits[2 * i + 1])
        )

    def bits(self) -> tuple[bool, ...]:
        """One boolean for each sublayer, attention before MLP in each layer; the inverse of `from_bits`."""
        return tuple(bit for i in range(self.n_layers) for bit in (i in self.attn, i in self.mlp))

    def __len__(self) -> int:
        return len(self.attn) + len(self.mlp)

    def __str__(self) -> str:
        parts = [letter + _ranges(s) for letter, s in (("a", self.attn), ("m", self.mlp)) if s]
        return " ".join(parts) or "none"

    @property
    def fraction(self) -> float:
        """Skipped sublayers over all sublayers, in [0, 1]."""
        return len(self) / (2 * self.n_layers)


def _ranges(indices: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for i in sorted(indices):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def evenly_spaced(n_layers: int, n_skipped: int) -> SkipSet:
    """Whole layers (both sublayers), evenly spaced over the model, never the first or the last."""
    inner = n_layers - 2
    if not 0 <= n_skipped <= max(inner, 0):
        raise InputError(f"cannot skip {n_skipped} inner layers of a model of {n_layers}; at most {max(inner, 0)}")
    layers = frozenset(1 + int((i + 0.5) * inner / n_skipped) for i in range(n_skipped))
    return SkipSet(n_layers, layers, layers)


def deepest_attention(n_layers: int, n_skipped: int) -> SkipSet:
    """Attention of the `n_skipped` deepest layers before the last one; attention is more redundant than MLPs.

    Source: He et al. 2024 (arXiv:2406.15786), who drop half of the attention sublayers of Llama-2-70B.
    """
    last = n_layers - 1
    return SkipSet(n_layers, frozenset(range(max(last - n_skipped, 0), last)))
