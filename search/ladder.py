"""A ladder of drafts that skip nothing: parts are added one after another, and each stays only if it pays.

It comes before a search of skip sets, so that these are searched for the draft that they would really belong to, and it
says what each part gave. It sees points and their values alone: what comes next follows from what was scored, so that a
ladder goes on after an interruption as if there had been none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search.point import Point, Value, settings_text, value_text
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
        stays: whether it is better than what is below it.
    """

    point: Point
    added: Mapping[str, Value]
    value: float | None
    stays: bool

    def __str__(self) -> str:
        value = "cannot be scored" if self.value is None else f"{self.value:.3f}"
        return f"{settings_text(self.added) or 'nothing skipped'}: {value}{'' if self.stays else ', left out'}"


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
                    raise InputError(f"ladder: {name}={value_text(value)} is none of the values of space.{name}")

    def climb(self, values: Mapping[Point, float | None]) -> tuple[list[Rung], Point | None]:
        """The rungs so far, and the point to score next; None at the top.

        Args:
            values: of all points that were scored; None: the point failed.
        """
        best = self.space.point(SkipSet(self.space.n_layers))
        if best not in values:
            return [], best
        rungs = [Rung(best, {}, values[best], stays=True)]
        for part in self.parts:
            point = self.space.point(best.skip, {**best.settings, **part})
            if point == best:
                continue
            if point not in values:
                return rungs, point
            value, before = values[point], values[best]
            stays = value is not None and (before is None or value > MIN_GAIN * before)
            rungs.append(Rung(point, part, value, stays))
            best = point if stays else best
        return rungs, None


def best_settings(rungs: Sequence[Rung]) -> Mapping[str, Value]:
    """What skip sets are searched with: the settings of the best draft by the model itself, none before it is known.

    Where prompt lookup stands alone nothing is drafted with a skip set; its best rival with a draft counts then.
    """
    drafting = [r for r in rungs if r.value is not None and r.point.settings.get(LOOKUP) != "only"]
    return max(drafting, key=lambda r: r.value or 0.0).point.settings if drafting else {}
