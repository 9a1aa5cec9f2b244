"""The plan of a draft: its skip set, bridges, head, precision, memory, and trained parts in place of layers.

A plan is a value that is passed as an argument. It holds tensors; of the model it knows only the number of layers.
`Decoder.bind` makes a forward of it.
"""

# D hidden size, V tokens that the draft's head scores, N tokens of texts

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from selfspec.errors import InputError, unknown_name
from selfspec.heads.trained import TrainedHead
from selfspec.skipping.bridges import KINDS, Bridge
from selfspec.skipping.skip_set import SkipSet

SublayerKind = Literal["attn", "mlp"]
Sublayer = tuple[SublayerKind, int]  # (kind, layer)
Precision = Literal["same", "int8", "int4"]

PLAIN = "skip"  # the kind without bridges
BRIDGED = "bridged"  # the kind whose bridges, or kept sublayers, were trained


@dataclass(frozen=True, slots=True, eq=False)
class DraftPlan:
    """A skip set and what compensates for it; plans of the same content are equal.

    Attributes:
        skip: the skipped sublayers.
        bridges: bridge by sublayer; a skipped sublayer without one adds nothing. The bridge of a run of adjacent
            sublayers is at the first one, and the others have none.
        head: ids of the tokens that the draft's head scores besides those of its text, [V]; None: all tokens.
        kind: `skip`, or the kind of the bridges: mean, linear or lowrank; `bridged` if parts were trained.
        precision: precision of the weights that the draft keeps, head included: `same` as the model's, int8 or int4
            (`rounding`).
        memory: texts that prompt lookup searches besides the row's own, [N], in the form of `lookup.Memory`; None: no
            texts.
        trained: a trained head that drafts in place of the model's layers; None: the layers that are not skipped draft.
        tuned: weights of kept sublayers that were trained for the draft, by their names in the sublayer.

    Raises:
        InputError: if a bridge is at a sublayer that is not skipped, trained weights are at one that is, or a name is
            unknown.
    """

    skip: SkipSet
    bridges: Mapping[Sublayer, Bridge] = field(default_factory=dict)
    head: Tensor | None = None
    kind: str = PLAIN
    precision: Precision = "same"
    memory: Tensor | None = None
    trained: TrainedHead | None = None
    tuned: Mapping[Sublayer, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = sorted(self.bridges, key=position)
        object.__setattr__(self, "bridges", {at: self.bridges[at] for at in order})
        if self.kind not in (PLAIN, *KINDS, BRIDGED):
            raise unknown_name("kind of plan", self.kind, [PLAIN, *KINDS, BRIDGED])
        if self.precision not in get_args(Precision):
            raise unknown_name("precision", self.precision, list(get_args(Precision)))
        if self.kind == PLAIN and order:
            raise InputError(f"a plan of kind 'skip' has no bridges, but {len(order)} were given; name their kind")
        for at in order:
            if at not in self.skipped:
                raise InputError(
                    f"the plan has a bridge at {format_sublayer(at)}, which is not skipped (skip={self.skip}); "
                    "skip it, or leave the bridge out"
                )
        for at in self.tuned:
            if at in self.skipped:
                raise InputError(
                    f"the plan has trained weights of {format_sublayer(at)}, which is skipped (skip={self.skip}); "
                    "keep it, or leave them out"
                )

    @classmethod
    def from_skip_set(cls, skip: SkipSet) -> DraftPlan:
        """The plan that only skips: no bridges, whole head, the model's precision."""
        return cls(skip)

    @property
    def skipped(self) -> list[Sublayer]:
        """The skipped sublayers in the order in which they run."""
        return [sublayer(i) for i, bit in enumerate(self.skip.bits()) if bit]

    def to_dict(self) -> dict[str, Any]:
        """Everything except the tensors, for YAML; `from_dict` takes this and `tensors()`."""
        runs = self._runs()
        return {
            "n_layers": self.skip.n_layers,
            "skip": str(self.skip),
            "kind": self.kind,
            "precision": self.precision,
            "bridges": [
                {
                    "at": format_sublayer(at),
                    "for": [format_sublayer(a) for a in runs[at]],
                    "shapes": [list(t.shape) for t in b.tensors],
                    **({"adapter": len(b.adapter)} if b.adapter else {}),
                }
                for at, b in self.bridges.items()
            ],
            "head_size": None if self.head is None else self.head.numel(),
            "memory_size": None if self.memory is None else self.memory.numel(),
            **({} if self.trained is None else {"trained": self.trained.to_dict()}),
            **(
                {"tuned": {format_sublayer(at): sorted(named) for at, named in self.tuned.items()}}
                if self.tuned
                else {}
            ),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, on the CPU: those of the bridges, `head`, `memory`, the trained head and sublayers."""
        named = {
            f"{format_sublayer(at)}.{i}": t for at, bridge in self.bridges.items() for i, t in enumerate(bridge.tensors)
        }
        named |= {name: t for name, t in (("head", self.head), ("memory", self.memory)) if t is not None}
        if self.trained is not None:
            named |= {f"trained.{name}": t for name, t in self.trained.weights.items()}
        named |= {
            f"tuned.{format_sublayer(at)}.{n}": t for at, weights in self.tuned.items() for n, t in weights.items()
        }
        return {name: t.detach().cpu().contiguous() for name, t in named.items()}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DraftPlan:
        """The plan of `to_dict` and `tensors`.

        Raises:
            InputError: if a value is invalid.
            AttributeError, KeyError, IndexError, TypeError, ValueError: if a part is missing or malformed.
        """
        bridges = {}
        for entry in body["bridges"]:
            parts = [tensors[f"{entry['at']}.{i}"] for i in range(len(entry["shapes"]))]
            n = len(parts) - entry.get("adapter", 0)
            bridges[_parsed(entry["at"])] = Bridge(parts[0], tuple(parts[1:n]), tuple(parts[n:]))
        trained = None
        if entry := body.get("trained"):
            weights = {name: tensors[f"trained.{name}"] for name in entry["weights"]}
            trained = TrainedHead(entry["kind"], entry["settings"], weights)
        return cls(
            SkipSet.parse(body["skip"], body["n_layers"]),
            bridges,
            head=None if body["head_size"] is None else tensors["head"],
            kind=body["kind"],
            precision=body["precision"],
            memory=None
            if body.get("memory_size") is None
            else tensors["memory"],  # plans of version 0.1.0 lack this key
            trained=trained,
            tuned={
                _parsed(at): {name: tensors[f"tuned.{at}.{name}"] for name in names}
                for at, names in body.get("tuned", {}).items()
            },
        )

    def _runs(self) -> dict[Sublayer, list[Sublayer]]:
        """Sublayers that each bridge replaces: its own, and the adjacent skipped ones after it without a bridge."""
        runs: dict[Sublayer, list[Sublayer]] = {}
        at: Sublayer | None = None
        for place in self.skipped:
            if place in self.bridges:
                at, runs[place] = place, [place]
            elif at is not None and position(place) == position(runs[at][-1]) + 1:
                runs[at].append(place)
        return runs

    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of all content; reads all weights."""
        found = hashlib.sha256(f"{self.skip.n_layers} {self.skip} {self.kind} {self.precision}".encode())
        for at, bridge in self.bridges.items():
            found.update(f" {format_sublayer(at)} {bridge.digest()}".encode())
        if self.head is not None:
            found.update(f" head {self.head.tolist()}".encode())
        if self.memory is not None:
            found.update(f" memory {self.memory.tolist()}".encode())
        if self.trained is not None:
            found.update(f" trained {self.trained.digest()}".encode())
        for at, weights in self.tuned.items():
            found.update(f" tuned {format_sublayer(at)} {TrainedHead('', {}, weights).digest()}".encode())
        return found.hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DraftPlan):
            return NotImplemented
        return self is other or (hash(self) == hash(other) and self.digest() == other.digest())

    def __hash__(self) -> int:
        # Cheap, and equal for equal plans: `__eq__` compares weights only if the hashes are equal.
        sizes = tuple(-1 if t is None else t.numel() for t in (self.head, self.memory))
        return hash((self.skip, self.kind, self.precision, tuple(self.bridges), sizes, self.trained, tuple(self.tuned)))

    def __str__(self) -> str:
        parts = [str(self.skip) if self.trained is None else f"head {self.trained.kind}"]
        if self.tuned:
            parts.append(f"trained {' '.join(map(format_sublayer, self.tuned))}")
        if self.bridges:
            parts.append(f"{self.kind} at {' '.join(format_sublayer(at) for at in self.bridges)}")
        if self.head is not None:
            parts.append(f"head of {self.head.numel()}")
        if self.precision != "same":
            parts.append(self.precision)
        if self.memory is not None:
            parts.append(f"memory of {self.memory.numel()}")
        return ", ".join(parts)


def position(at: Sublayer) -> int:
    """Index of a sublayer in the order of execution, as in `SkipSet.bits`."""
    return 2 * at[1] + (at[0] == "mlp")


def sublayer(position: int) -> Sublayer:
    """The sublayer at an index; the inverse of `position`."""
    return ("mlp" if position % 2 else "attn", position // 2)


def format_sublayer(at: Sublayer) -> str:
    """A sublayer in the notation of skip sets: `a3`, `m7`."""
    return f"{at[0][0]}{at[1]}"


def _parsed(text: str) -> Sublayer:
    return sublayer(2 * int(text[1:]) + "am".index(text[0]))
