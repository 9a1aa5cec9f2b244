"""A ladder of drafts that skip nothing: parts are added one after another, and each stays only if it pays.

It comes before a search of skip sets, so that these are searched for the draft that they would really belong to, and it
says what each part gave, by prediction and in the race of the finals. It sees points and their values alone: what comes
next follows from what was scored, so that a ladder goes on after an interruption as if there had been none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from search.point import TRAINED, Point, Value, settings_text, value_text
from search.space import Space
from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet

MIN_GAIN = 1.005  # times the best so far: what gives less is left out, since it costs memory; chosen, not tuned
LOOKUP = "lookup"


@dataclass(frozen=True, slots=True)
class Rung:
    """One part on trial.

    Attributes:
        point: the best draft below it, with the part.
        added: the part: values of dimensions.
        value: of the point; None: it could not be scored.
        stays: whether it is better than what is below it, and was not taken back after the race.
        raced: speedup by the clock of all parts that stay over the same without this one; None: that was not raced.
    """

    point: Point
    added: Mapping[str, Value]
    value: float | None
    stays: bool
    raced: float | None = None

    def __str__(self) -> str:
        value = "cannot be scored" if self.value is None else f"{self.value:.3f}"
        least = f"skip={self.point.skip}" if len(self.point.skip) else "nothing skipped"
        return f"{settings_text(self.added) or least}: {value}{'' if self.stays else ', left out'}"


@dataclass(frozen=True, slots=True)
class Ladder:
    """The parts to try, in order.

    Attributes:
        space: has the dimensions that the parts are values of.
        parts: each is added to the best draft so far; several values of one part come and go together.

    Raises:
        InputError: if a part is no value of a dimension.
    """

    space: Space
    parts: Sequence[Mapping[str, Value]] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        dimensions = {d.name: d for d in self.space.dimensions}
        for part in self.parts:
            for name, value in part.items():
                if name not in dimensions:
                    raise InputError(f"ladder: {name}={value} is no value of a dimension; add {name} to the space")
                if not dimensions[name].domain.holds(value):
                    raise InputError(
                        f"ladder: {name}={value_text(value)} is none of the values of space.{name}; change one of them "
                        "(draft=linear and draft=skip have no ladder)"
                    )

    def climb(self, values: Mapping[Point, float | None]) -> tuple[list[Rung], Point | None]:
        """The rungs so far, and the point to score next; None at the top.

        Args:
            values: of all points that were scored; None: the point failed.
        """
        best = self._point({})
        if best not in values:
            return [], best
        rungs = [Rung(best, {}, values[best], stays=True)]
        for part in self.parts:
            point = self._point({**best.settings, **part})
            if point == best:
                continue
            if point not in values:
                return rungs, point
            value, before = values[point], values[best]
            stays = value is not None and (before is None or value > MIN_GAIN * before)
            rungs.append(Rung(point, part, value, stays))
            best = point if stays else best
        return rungs, None

    def top(self, rungs: Sequence[Rung]) -> Point:
        """The draft of all parts that stay."""
        return self._made(rungs, range(len(rungs)))

    def without_each(self, rungs: Sequence[Rung]) -> dict[int, Point]:
        """For each part that stays, by its place, the draft of all others: its rival in a race.

        A part whose values others have replaced is not among them, since it makes no difference.
        """
        points = {i: self._made(rungs, [j for j in range(len(rungs)) if j != i]) for i in range(len(rungs))}
        return {i: point for i, point in points.items() if point != self.top(rungs)}

    def raced(self, rungs: Sequence[Rung], speedups: Mapping[Point, float], winner: Point) -> list[Rung]:
        """The rungs with what each part gave in a race; a part is taken back if it lost, and the winner lacks it.

        Args:
            rungs: of `climb`.
            speedups: of the drafts that raced.
            winner: the point that won.
        """
        found, whole = list(rungs), speedups.get(self.top(rungs))
        for i, point in self.without_each(rungs).items():
            if whole is None or not speedups.get(point):
                continue
            gain = whole / speedups[point]
            is_in = all(winner.settings.get(name) == value for name, value in rungs[i].added.items())
            found[i] = replace(rungs[i], raced=gain, stays=is_in or gain >= 1)
        return found

    def _made(self, rungs: Sequence[Rung], places: Iterable[int]) -> Point:
        settings: dict[str, Value] = {}
        for i in places:
            settings |= rungs[i].added if rungs[i].stays else {}
        return self._point(settings)

    def _point(self, settings: Mapping[str, Value]) -> Point:
        """The draft that skips nothing; where the space does not allow that, the nearest one."""
        return self.space.allowed(self.space.point(SkipSet(self.space.n_layers), settings))


def best_settings(rungs: Sequence[Rung]) -> Mapping[str, Value]:
    """What skip sets are searched with: the settings of the best draft by the model itself, none before it is known.

    Where prompt lookup stands alone or a trained head drafts, no skip set is used; the best rival with one counts then.
    """
    drafting = [r for r in rungs if r.value is not None and _has_layers(r.point.settings)]
    return max(drafting, key=lambda r: r.value or 0.0).point.settings if drafting else {}


def _has_layers(settings: Mapping[str, Value]) -> bool:
    """Whether the model's own layers draft."""
    return settings.get(LOOKUP) != "only" and not settings.get(TRAINED)
