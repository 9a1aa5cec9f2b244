"""Kinds of settings: a word is read by the kind of its setting, and by nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest

from experiments.config.annotations import members, parameters, passed_on
from experiments.config.kinds import from_word, read
from experiments.config.schema_groups import Arm, Bounds, Built, Constraints
from experiments.config.words import choices
from selfspec.errors import InputError

if TYPE_CHECKING:
    from decimal import Decimal

Count = Annotated[int, Bounds(1, 9)]


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        (str, "1_0", "1_0"),
        (str, "[a", "[a"),
        (str | None, "null", None),
        (str | None, '"null"', "null"),
        (int, "1_000", 1000),
        (float, "1e-3", 0.001),
        (float, "2", 2.0),
        (int | float, "2", 2),
        (int | float, "2.0", 2.0),
        (bool, "TRUE", True),
        (Count | None, "9", 9),
        (Literal["front", "only"] | None, "only", "only"),
        (Literal["full"] | Count, "full", "full"),
        (list[str], '[1_0, 2e3, null, "\\n", \'\\n\', "a, b"]', ["1_0", "2e3", "null", "\n", "\\n", "a, b"]),
        (list[str] | None, "[]", []),
        (Sequence[float], "[1, .5]", [1.0, 0.5]),
        (tuple[tuple[float, float], ...], "[[0, 0], [1, 1]]", [[0.0, 0.0], [1.0, 1.0]]),
        (str | list[str], "a, b", "a, b"),
        (str | list[str], "[a, b]", ["a", "b"]),
        (dict[str, Arm], "{1_0: {skip: 1e3}, 2e3: {lookup: null}}", {"1_0": {"skip": "1e3"}, "2e3": {"lookup": None}}),
        (dict[str, Arm], "{a: {stop: {fixed: {max_draft: 2}}}}", {"a": {"stop": {"fixed": {"max_draft": 2}}}}),
        (Any, "[1_0, 1e3, true, null, x, '1']", [10, 1000.0, True, None, "x", "1"]),
        (Any, "a, b", "a, b"),
        (int, "${seed}", "${seed}"),
    ],
)
def test_a_word_is_read_by_the_kind_of_its_setting(kind: Any, word: str, value: Any) -> None:
    found = from_word(word, kind, "it")
    assert found == value and type(found).__name__ in (type(value).__name__, "Typed")


@pytest.mark.parametrize(
    ("kind", "word", "piece"),
    [
        (str, "null", "it must be a text"),
        (int, "3.0", "it must be a whole number"),
        (int, "9" * 5000, "it must be a whole number"),
        (int, "'3'", "it must be a whole number"),
        (int, "true", "it must be a whole number"),
        (float, "nan", "it must be a number"),
        (float, "1e999", "it must be a number"),
        (float | None, "1,2", "it must be a number, or null"),
        (Count | None, "10", "it must be a whole number from 1 to 9, or null"),
        (bool, "1", "it must be true or false"),
        (list[str], "abc", "it must be a list of texts: [A, B]"),
        (list[int] | None, "[1, x]", "it=x was asked for, but it must be a whole number"),
        (tuple[int, int], "[1]", "a list of whole numbers"),
        (list[str], "[a", "cannot read '[a' at its end"),
        (dict[str, int], "{a: 1, a: 2}", "has a name twice"),
        (str, '"C:\\q"', "single quotes"),
        (dict[str, Arm] | None, "5", "it must be settings: {NAME: VALUE}, or null"),
        (dict[str, Arm] | None, "{a: {skpi: x}}", "unknown setting 'it.a.skpi'; did you mean 'it.a.skip'?"),
        (dict[str, Arm] | None, "{a: {memory: 0}}", "it.a.memory=0 was asked for"),
        (
            dict[str, Arm] | None,
            "{a: {head: ful}}",
            "it.a.head=ful was asked for, but it must be a whole number from 1",
        ),
        (Constraints, "{only: mpl}", "unknown it.only 'mpl'; did you mean 'mlp'?"),
    ],
)
def test_a_word_of_another_kind_is_refused_in_one_line(kind: Any, word: str, piece: str) -> None:
    with pytest.raises(InputError) as caught:
        from_word(word, kind, "it")
    assert piece in str(caught.value) and "\n" not in str(caught.value)


class Mine:
    def __init__(
        self, depth: int, where: Path, free, sure: float | None = None, make: Callable[[int], int] | Decimal = int
    ) -> None: ...


def anything(**settings: Any) -> None: ...


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> str:
    module = ModuleType("of_a_user")
    module.Mine, module.anything = Mine, anything  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "of_a_user", module)
    return "of_a_user.Mine"


class TestAClass:
    def test_declares_the_kinds_of_its_settings(self, mine: str) -> None:
        found = parameters(mine)
        assert found == {"depth": int, "where": str, "free": Any, "sure": float | None, "make": Any}

    def test_refuses_what_it_does_not_take(self, mine: str) -> None:
        fits = {"_target_": mine, "depth": 1, "free": ["x"], "make": {"a": 1}}
        assert read(fits, Built, "it") == fits
        for wrong, piece in (({"depth": None}, "it.depth=null"), ({"dept": 1}, "did you mean 'it.depth'?")):
            with pytest.raises(InputError, match=piece.replace("?", r"\?")):
                read(fits | wrong, Built, "it")

    def test_that_is_not_known_or_takes_anything_is_free(self, mine: str) -> None:
        for target in ("no_such.Class", "of_a_user.anything"):
            assert read({"_target_": target, "x": 1}, Built, "it") == {"_target_": target, "x": 1}
            assert members(Built, {"_target_": target})[1] is Any

    def test_gives_its_kinds_to_the_settings_it_is_passed(self, mine: str) -> None:
        inner = {"_target_": mine, "depth": "${...n}", "where": "${..file}", "sure": "${paths.sure}", "free": "${.x}-"}
        tree = {"data": {"n": 1, "task": {"file": "a", "inner": inner}}}
        assert dict(passed_on(tree)) == {"data.n": int, "data.task.file": str, "paths.sure": float | None}


def test_the_values_of_a_sweep_keep_their_own_commas() -> None:
    assert choices("'a, b', c,[1,2],{a: [x, y]},f(1,2)") == ["'a, b'", "c", "[1,2]", "{a: [x, y]}", "f(1,2)"]
