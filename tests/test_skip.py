"""Skip sets: written, read and stored without loss; what names no sublayer of the model is refused."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import yaml

from selfspec.errors import InputError
from selfspec.skipping.skip_set import SkipSet, deepest_attention, evenly_spaced
from selfspec.skipping.skip_set_files import NAME, load_skip_set, published, read_skip_set, save_skip_set

SIZES = (1, 2, 3, 4, 7, 30, 80, 126)


def random_skip(n_layers: int, rng: random.Random) -> SkipSet:
    """Any density, so that runs of layers and lone ones both occur."""
    density = rng.random()
    return SkipSet.from_bits([rng.random() < density for _ in range(2 * n_layers)])


@pytest.fixture(params=SIZES, ids=lambda n: f"{n}-layers")
def skips(request: pytest.FixtureRequest) -> list[SkipSet]:
    """Random sets of one size, nothing and everything among them."""
    n: int = request.param
    rng = random.Random(n)
    return [SkipSet(n), SkipSet.from_bits([True] * (2 * n)), *(random_skip(n, rng) for _ in range(60))]


class TestWriting:
    def test_parse_reads_back_what_str_wrote(self, skips: list[SkipSet]) -> None:
        assert [str(s) for s in skips if SkipSet.parse(str(s), s.n_layers) != s] == []

    def test_from_bits_reads_back_what_bits_wrote(self, skips: list[SkipSet]) -> None:
        assert [str(s) for s in skips if SkipSet.from_bits(s.bits()) != s] == []

    def test_length_and_fraction_count_the_bits(self, skips: list[SkipSet]) -> None:
        assert [str(s) for s in skips if (len(s), s.fraction) != (sum(s.bits()), sum(s.bits()) / len(s.bits()))] == []

    def test_attention_comes_before_mlp_in_the_bits(self) -> None:
        assert SkipSet(2, attn=frozenset({1}), mlp=frozenset({0})).bits() == (False, True, True, False)

    @pytest.mark.parametrize(
        ("text", "attn", "mlp"),
        [
            ("a3,5-7 m2", {3, 5, 6, 7}, {2}),
            ("  m2 a3 a5-7 ", {3, 5, 6, 7}, {2}),
            ("a3, 5-7, m2", {3, 5, 6, 7}, {2}),
            ("a3,3-3 m1", {3}, {1}),
            ("", set(), set()),
            ("none", set(), set()),
        ],
    )
    def test_a_letter_holds_until_the_next_one(self, text: str, attn: set[int], mlp: set[int]) -> None:
        assert SkipSet.parse(text, 8) == SkipSet(8, frozenset(attn), frozenset(mlp))

    def test_neighbours_are_written_as_a_range(self) -> None:
        assert str(SkipSet(9, frozenset({8, 3, 1, 2}), frozenset({5}))) == "a1-3,8 m5"

    def test_equal_sets_are_one_key_whatever_they_were_made_from(self) -> None:
        assert len({SkipSet(4, {1, 2}), SkipSet(4, [2, 1]), SkipSet.parse("a2 a1", 4)}) == 1  # type: ignore[arg-type]

    def test_a_skip_set_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            SkipSet(4).n_layers = 5  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("text", "piece"),
        [
            ("a99", "layer 99"),
            ("a3-8", "layer 8"),
            ("a5-3", "backwards"),
            ("3", "cannot read '3'"),
            ("3 a4", "cannot read '3'"),
            ("x3", "cannot read 'x3'"),
            ("a", "cannot read 'a'"),
            ("a-1", "cannot read 'a-1'"),
            ("a1-", "cannot read 'a1-'"),
            ("a1-2-3", "cannot read 'a1-2-3'"),
            ("a1;m2", "cannot read 'a1;m2'"),
            ("A1", "cannot read 'A1'"),
            ("a1.5", "cannot read 'a1.5'"),
        ],
    )
    def test_what_cannot_be_read_is_told_in_one_line(self, text: str, piece: str) -> None:
        with pytest.raises(InputError) as error:
            SkipSet.parse(text, 8)
        assert piece in str(error.value) and "\n" not in str(error.value), error.value

    @pytest.mark.parametrize("layer", [-1, 4])
    def test_a_layer_outside_the_model_is_refused(self, layer: int) -> None:
        with pytest.raises(InputError, match=r"layers 0\.\.3"):
            SkipSet(4, mlp=frozenset({layer}))

    def test_an_odd_number_of_bits_is_refused(self) -> None:
        with pytest.raises(InputError, match="two bits a layer"):
            SkipSet.from_bits([True, False, True])


class TestEvenlySpaced:
    @pytest.mark.parametrize("n_layers", SIZES)
    def test_skips_as_many_whole_inner_layers_as_asked(self, n_layers: int) -> None:
        for n in range(max(n_layers - 2, 0) + 1):
            skip = evenly_spaced(n_layers, n)
            assert skip.attn == skip.mlp and len(skip.attn) == n, skip
            assert not skip.attn & {0, n_layers - 1}, skip

    @pytest.mark.parametrize("n_layers", SIZES)
    def test_gaps_differ_by_one_layer_at_most(self, n_layers: int) -> None:
        for n in range(2, n_layers - 1):
            layers = sorted(evenly_spaced(n_layers, n).attn)
            gaps = {b - a for a, b in itertools.pairwise(layers)}
            assert max(gaps) - min(gaps) <= 1, evenly_spaced(n_layers, n)

    @pytest.mark.parametrize(("n_layers", "n_skipped"), [(4, 3), (4, -1), (1, 1), (2, 1)])
    def test_more_layers_than_lie_inside_are_refused(self, n_layers: int, n_skipped: int) -> None:
        with pytest.raises(InputError, match=f"cannot skip {n_skipped} inner layers"):
            evenly_spaced(n_layers, n_skipped)


class TestDeepestAttention:
    @pytest.mark.parametrize("n_layers", SIZES)
    def test_skips_the_attention_right_before_the_last_layer(self, n_layers: int) -> None:
        for n in range(n_layers + 1):
            skip = deepest_attention(n_layers, n)
            assert skip.mlp == frozenset()
            assert sorted(skip.attn) == list(range(n_layers))[:-1][max(n_layers - 1 - n, 0) :], skip


class TestSkipFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / NAME
        save_skip_set(path, SkipSet.parse("a1,3 m2", 4), model="toy", value=1.5, date="2030-01-01T00:00:00Z")
        return path

    def test_read_gives_back_what_was_saved(self, skips: list[SkipSet], tmp_path: Path) -> None:
        lost = []
        for skip in skips[:10]:  # each is written through to the disk
            save_skip_set(tmp_path / NAME, skip, model="toy")
            if read_skip_set(tmp_path / NAME, n_layers=skip.n_layers) != skip:
                lost.append(str(skip))
        assert lost == []

    def test_the_folder_of_a_search_stands_for_its_file(self, file: Path) -> None:
        assert read_skip_set(file.parent) == read_skip_set(file)

    def test_the_file_says_where_the_set_comes_from_and_how_to_type_it(self, file: Path) -> None:
        body = yaml.safe_load(file.read_text())
        assert body["model"] == "toy" and body["value"] == 1.5 and body["date"] == "2030-01-01T00:00:00Z"
        assert SkipSet.parse(body["skip"], body["n_layers"]) == read_skip_set(file)

    def test_another_number_of_layers_is_refused_with_both_numbers(self, file: Path) -> None:
        with pytest.raises(InputError, match=r"toy of 4 layers.* 6"):
            read_skip_set(file, n_layers=6)

    @pytest.mark.parametrize(
        ("content", "piece"),
        [
            (b"a: [1", "not YAML"),
            (b"\xff\xfe\x00binary", "not YAML"),
            (b"", "not a skip set"),
            (b"just text", "not a skip set"),
            (b"- 1\n- 2", "not a skip set"),
            (b"{n_layers: 4, attn: []}", "not a skip set"),
            (b"{n_layers: 4, attn: null, mlp: []}", "not a skip set"),
            (b"{n_layers: 4, attn: a3, mlp: []}", "not a skip set"),
            (b"{n_layers: 4, attn: [one], mlp: []}", "not a skip set"),
            (b"{n_layers: four, attn: [], mlp: []}", "not a skip set"),
            (b"{n_layers: 4, attn: [4], mlp: []}", "layer 4"),
        ],
    )
    def test_a_file_that_holds_no_skip_set_is_told_by_name(self, content: bytes, piece: str, tmp_path: Path) -> None:
        path = tmp_path / "found.yaml"
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            read_skip_set(path)
        assert "found.yaml" in str(error.value) and piece in str(error.value), error.value

    def test_a_file_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read the skip set .*none\.yaml"):
            read_skip_set(tmp_path / "none.yaml")

    def test_a_folder_without_one_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=NAME):
            read_skip_set(tmp_path)


class TestPublished:
    @pytest.mark.parametrize("name", published())
    def test_each_set_can_be_read_and_tells_its_model(self, name: str) -> None:
        skip = load_skip_set(name)
        assert 0 < len(skip) < 2 * skip.n_layers
        with pytest.raises(InputError, match=f"of {skip.n_layers} layers"):
            load_skip_set(name, n_layers=skip.n_layers + 1)

    def test_a_name_that_is_none_gets_the_nearest_one(self) -> None:
        name = published()[0]
        with pytest.raises(InputError, match=f"did you mean '{name}'"):
            load_skip_set(name[:-1])
