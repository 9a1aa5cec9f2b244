"""Shapes of trees: which nodes the draft expands, and which nodes the target verifies.

A shape sees depths, ranks and probabilities. It knows nothing of models, caches or tensors, so any shape can be tested
with a list of numbers.
"""

# N nodes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

from selfspec.engine.protocols import ROOT
from selfspec.errors import InputError, unknown_name
from selfspec.targets import TARGET, find_class


@dataclass(frozen=True, slots=True)
class Node:
    """A drafted token that may become part of the tree.

    Attributes:
        parent: index of its parent in the list of nodes, or `ROOT`.
        depth: 1 for the children of the root.
        ranks: ranks among siblings by the draft's probability (0 is the likeliest), from the first node of the path to
            this one.
        path_probability: the draft's estimate that this node and all nodes before it are accepted.
    """

    parent: int
    depth: int
    ranks: tuple[int, ...]
    path_probability: float


class TreeShape(Protocol):
    """A rule for the growth of trees, with its settings."""

    @property
    def max_depth(self) -> int:
        """Length of the longest path."""
        ...

    @property
    def n_children(self) -> int:
        """Largest number of children of a node."""
        ...

    @property
    def is_fixed(self) -> bool:
        """Whether only ranks decide. Siblings may be drawn only then, since every drawn token must be kept."""
        ...

    def acceptance(self, confidence: float) -> float:
        """Probability that a token of this raw probability is accepted, given that its parent is."""
        ...

    def cost(self, *, n_forwards: int, n_nodes: int) -> float:
        """Cost of a draft beyond that of one plain token, in plain tokens; 0 if the shape knows no costs."""
        ...

    def expands(self, nodes: Sequence[Node], level: Sequence[int], *, rate: float) -> list[int]:
        """Nodes of the newest level to expand in one forward; an empty list ends the tree.

        Args:
            nodes: all nodes so far.
            level: indices of the newest level.
            rate: tokens committed so far for the cost of one plain token, at least 1.
        """
        ...

    def keeps(self, nodes: Sequence[Node], *, rate: float) -> list[int]:
        """Nodes to verify, in rising order; the parent of each kept node is kept."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name, or `_target_` for a shape from elsewhere, and settings; `shape_from` is the inverse."""
        ...


class Shape:
    """Base of a shape, which is a frozen dataclass; it uses confidences as probabilities and knows no costs."""

    __slots__ = ()

    def acceptance(self, confidence: float) -> float:
        """The confidence itself."""
        return confidence

    def cost(self, *, n_forwards: int, n_nodes: int) -> float:
        """0: the base knows no costs."""
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        """Name or `_target_`, and settings."""
        name = NAMES.get(type(self))
        place = {"name": name} if name else {TARGET: f"{type(self).__module__}.{type(self).__qualname__}"}
        return {**place, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class BestFirst(Shape):
    """Verifies a node iff its path probability exceeds the cost of its verification.

    The cost of a plain token gives `rate` tokens so far, so a node whose verification costs v plain tokens must be
    accepted with a probability above v · rate. A level is expanded iff the path probabilities of its worthwhile nodes
    sum to more than the cost of a forward of the draft and of one verification, times `rate`. For additive costs this
    is the best tree.

    Attributes:
        max_nodes, max_depth, n_children: upper bounds.
        draft_cost: cost of one forward of the draft, in plain tokens; None: not measured yet, see `priced`.
        verify_cost: cost of verifying one more token, in plain tokens; None: not measured yet.
        calibration: (confidence, acceptance) knots in rising order, as in the stop rule `Optimal`.
    """

    max_nodes: int
    max_depth: int
    n_children: int
    draft_cost: float | None
    verify_cost: float | None
    calibration: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 1.0))
    is_fixed = False

    def __post_init__(self) -> None:
        _check(max_nodes=self.max_nodes, max_depth=self.max_depth, n_children=self.n_children)
        if min(self.draft_cost or 0.0, self.verify_cost or 0.0) < 0:
            raise InputError(
                f"tree.draft_cost={self.draft_cost}, verify_cost={self.verify_cost}: costs are measured in plain "
                "tokens and not negative"
            )
        object.__setattr__(self, "calibration", tuple((float(x), float(y)) for x, y in self.calibration))

    def acceptance(self, confidence: float) -> float:
        """Linear interpolation between the knots of the calibration."""
        knots = self.calibration
        for (x0, y0), (x1, y1) in pairwise(knots):
            if confidence <= x1:
                return y0 + (y1 - y0) * max(0.0, confidence - x0) / (x1 - x0)
        return knots[-1][1]

    @property
    def is_priced(self) -> bool:
        """Whether its costs are known."""
        return self.draft_cost is not None and self.verify_cost is not None

    def priced(self, draft_cost: float, verify_cost: float) -> BestFirst:
        """The same shape with these costs in place of unknown ones."""
        return replace(
            self,
            draft_cost=draft_cost if self.draft_cost is None else self.draft_cost,
            verify_cost=verify_cost if self.verify_cost is None else self.verify_cost,
        )

    def expands(self, nodes: Sequence[Node], level: Sequence[int], *, rate: float) -> list[int]:
        """Nodes above the cost of their verification, if together they pay for a forward of the draft."""
        if not level or nodes[level[0]].depth >= self.max_depth:
            return []
        found = [i for i in level if nodes[i].path_probability > self._verify_cost * rate]
        pays = sum(nodes[i].path_probability for i in found) > (self._draft_cost + self._verify_cost) * rate
        return found if pays else []

    def keeps(self, nodes: Sequence[Node], *, rate: float) -> list[int]:
        """Nodes worth their verification; always the likeliest child of the root, whose draft is already paid for."""
        best = _likeliest(nodes, self.max_nodes)
        first = best[0] if best else ROOT
        return sorted(i for i in best if i == first or nodes[i].path_probability > self._verify_cost * rate)

    def cost(self, *, n_forwards: int, n_nodes: int) -> float:
        """Cost of the forwards and of the verification."""
        return n_forwards * self._draft_cost + n_nodes * self._verify_cost

    @property
    def _draft_cost(self) -> float:
        return self.draft_cost or 0.0

    @property
    def _verify_cost(self) -> float:
        return self.verify_cost or 0.0


@dataclass(frozen=True, slots=True)
class ExpandRerank(Shape):
    """Expands the likeliest nodes of each level, and verifies the likeliest nodes of all.

    Attributes:
        width: nodes of a level to expand, and children of each.
        max_depth: number of levels.
        max_nodes: number of nodes to verify.

    Source: Li et al. 2024, EAGLE-2 (arXiv:2406.16858), sections 4.1 and 4.2; there 10, 6 and 60.
    """

    width: int
    max_depth: int
    max_nodes: int
    is_fixed = False

    def __post_init__(self) -> None:
        _check(width=self.width, max_depth=self.max_depth, max_nodes=self.max_nodes)

    @property
    def n_children(self) -> int:
        """The width."""
        return self.width

    def expands(self, nodes: Sequence[Node], level: Sequence[int], *, rate: float) -> list[int]:
        """The `width` likeliest nodes of the level."""
        if not level or nodes[level[0]].depth >= self.max_depth:
            return []
        return sorted(sorted(level, key=lambda i: -nodes[i].path_probability)[: self.width])

    def keeps(self, nodes: Sequence[Node], *, rate: float) -> list[int]:
        """The `max_nodes` likeliest nodes."""
        return sorted(_likeliest(nodes, self.max_nodes))


@dataclass(frozen=True, slots=True)
class Static(Shape):
    """Always the same tree.

    Attributes:
        paths: ranks along the path to each node: ((0,), (1,), (0, 0)) is a chain of two with a sibling of its first.
    """

    paths: tuple[tuple[int, ...], ...]
    is_fixed = True

    def __post_init__(self) -> None:
        paths = tuple(sorted({tuple(int(rank) for rank in path) for path in self.paths}, key=lambda p: (len(p), p)))
        object.__setattr__(self, "paths", paths)
        known = {(), *paths}
        for path in paths:
            before = (*path[:-1], path[-1] - 1) if path and path[-1] else path[:-1]
            if not path or min(path) < 0 or path[:-1] not in known or before not in known:
                raise InputError(
                    f"tree.paths has {list(path)} without {list(before)}; each node needs its parent and its likelier "
                    "siblings"
                )
        if not paths:
            raise InputError("tree.paths is empty; name the ranks on the way to each node, as [[0], [0, 0], [1]]")

    @property
    def max_depth(self) -> int:
        """Length of the longest path."""
        return max(map(len, self.paths))

    @property
    def n_children(self) -> int:
        """One more than the largest rank."""
        return 1 + max(path[-1] for path in self.paths)

    def expands(self, nodes: Sequence[Node], level: Sequence[int], *, rate: float) -> list[int]:
        """Nodes that are a parent in the tree."""
        parents = {path[:-1] for path in self.paths}
        return [i for i in level if nodes[i].ranks in parents]

    def keeps(self, nodes: Sequence[Node], *, rate: float) -> list[int]:
        """Nodes of the tree."""
        known = set(self.paths)
        return [i for i, node in enumerate(nodes) if node.ranks in known]


def comb(widths: Sequence[int]) -> Static:
    """A chain whose siblings are not expanded: `widths[d]` nodes at depth d + 1.

    Source: Xia et al. 2024, SWIFT (arXiv:2410.06916), appendix A: candidates at each position of the draft.
    """
    return Static(tuple((*(0,) * depth, rank) for depth, width in enumerate(widths) for rank in range(width)))


def sequoia(acceptances: Sequence[float], *, draft_cost: float, verify_s: Sequence[float], max_depth: int) -> Static:
    """The tree with the most accepted tokens for its cost, if acceptance depends only on the rank of a sibling.

    Args:
        acceptances: probability that the target's token is the sibling of rank 0, 1, ..., given that the parent is
            accepted.
        draft_cost: cost of one forward of the draft, in plain tokens; each level needs one.
        verify_s: cost of a forward of 1, 2, 3, ... tokens, in plain tokens; its length bounds the size of the tree.
        max_depth: length of the longest path.

    Source: Chen et al. 2024, Sequoia (arXiv:2402.12374), section 3.1, with measured costs.
    """

    @cache
    def best(m: int, depth: int, b: int) -> tuple[float, tuple[tuple[int, ...], ...]]:
        """Expected tokens and paths of the best tree of m nodes with root, `depth` levels, b children of the root."""
        if b == 0:
            return (1.0, ()) if m == 1 else (float("-inf"), ())
        if depth == 0 or m <= b:
            return float("-inf"), ()
        found: tuple[float, tuple[tuple[int, ...], ...]] = (float("-inf"), ())
        for n_child in range(1, m - b + 1):
            rest, paths = best(m - n_child, depth, b - 1)
            if rest == float("-inf"):
                continue
            value, below = max((best(n_child, depth - 1, k) for k in range(min(n_child, n_ranks + 1))), default=(0, ()))
            total = rest + acceptances[b - 1] * value
            if total > found[0]:
                found = total, (*paths, (b - 1,), *((b - 1, *path) for path in below))
        return found

    n_ranks = len(acceptances)
    chosen, rate = Static(((0,),)), float("-inf")
    for m in range(2, len(verify_s) + 1):
        for depth in range(1, min(max_depth, m - 1) + 1):
            value, paths = max(best(m, depth, b) for b in range(1, min(m - 1, n_ranks) + 1))
            if value / (depth * draft_cost + verify_s[m - 1]) > rate:
                chosen, rate = Static(paths), value / (depth * draft_cost + verify_s[m - 1])
    return chosen


def _likeliest(nodes: Sequence[Node], n: int) -> list[int]:
    """The n likeliest nodes, best first; a parent is at least as likely as its child and comes before it."""
    return sorted(range(len(nodes)), key=lambda i: (-nodes[i].path_probability, i))[:n]


def _check(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"tree.{name}={value}; it is at least 1")


NAMES: Mapping[type, str] = {BestFirst: "best_first", ExpandRerank: "expand_rerank", Static: "static"}


def shape_from(body: Mapping[str, Any]) -> TreeShape:
    """The shape of `TreeShape.to_dict`.

    Raises:
        InputError: if there is no such shape, or it has other settings.
    """
    settings = {key: value for key, value in body.items() if key not in ("name", TARGET)}
    shapes = {known: shape for shape, known in NAMES.items()}
    name = str(body.get(TARGET, body.get("name")))
    if TARGET in body:
        shapes[name] = find_class(name, method="expands")
    elif name not in shapes:
        raise unknown_name("tree", name, list(shapes))
    for key in ("paths", "calibration"):
        if key in settings:
            settings[key] = tuple(tuple(entry) for entry in settings[key])
    try:
        shape: TreeShape = shapes[name](**settings)
    except TypeError as error:
        raise InputError(f"the tree {name!r} cannot be made of {settings} ({error})") from None
    return shape
