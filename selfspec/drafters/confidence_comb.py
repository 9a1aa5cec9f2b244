"""SWIFT's tree: a chain with siblings that are not expanded, the more of them the less sure the draft is."""

# N nodes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfspec.drafters.tree_shapes import Node, Shape
from selfspec.engine.protocols import ROOT
from selfspec.errors import InputError


@dataclass(frozen=True, slots=True)
class ConfidenceComb(Shape):
    """A chain of the likeliest tokens, each with its likeliest siblings.

    Attributes:
        widths: (probability, number): where the likeliest token has more than this probability, so many of the
            likeliest tokens are verified; in falling order, the last one for any probability.
        max_depth: length of the chain.
        threshold: the chain ends with a token whose probability is below it.

    Raises:
        InputError: if the widths are in no falling order, or a number is impossible.

    Source: Xia et al. 2025, SWIFT (arXiv:2410.06916), and its released code, whose greedy widths are larger.
    """

    widths: tuple[tuple[float, int], ...]
    max_depth: int
    threshold: float
    is_fixed = False

    def __post_init__(self) -> None:
        widths = tuple((float(probability), int(n)) for probability, n in self.widths)
        object.__setattr__(self, "widths", widths)
        limits = [probability for probability, _ in widths]
        if not widths or limits != sorted(limits, reverse=True) or limits[-1] > 0 or min(n for _, n in widths) < 1:
            raise InputError(
                f"tree.widths={[list(w) for w in widths]}; give [probability, number] in falling order, the last with "
                "probability 0, and numbers of 1 at least"
            )
        if self.max_depth < 1 or not 0 <= self.threshold <= 1:
            raise InputError(
                f"tree.max_depth={self.max_depth}, threshold={self.threshold}; the first is 1 at least, and the second "
                "a probability"
            )

    @property
    def n_children(self) -> int:
        """The largest width."""
        return max(n for _, n in self.widths)

    def expands(self, nodes: Sequence[Node], level: Sequence[int], *, rate: float) -> list[int]:
        """The likeliest node of the level, if its probability reaches the threshold."""
        return [i for i in level if not nodes[i].ranks[-1] and _probability(nodes, i) >= self.threshold]

    def keeps(self, nodes: Sequence[Node], *, rate: float) -> list[int]:
        """At each position as many of the likeliest nodes as its first one allows."""
        kept: dict[int, int] = {}  # parent -> number of its children
        for i, node in enumerate(nodes):
            if not node.ranks[-1]:
                sure = _probability(nodes, i)
                kept[node.parent] = next((n for limit, n in self.widths if sure > limit), self.widths[-1][1])
        return [i for i, node in enumerate(nodes) if node.ranks[-1] < kept[node.parent]]


def _probability(nodes: Sequence[Node], i: int) -> float:
    """The draft's probability of a node, given its parent."""
    before = 1.0 if nodes[i].parent == ROOT else nodes[nodes[i].parent].path_probability
    return nodes[i].path_probability / before if before else 0.0
