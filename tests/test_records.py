"""Run folders: what is written is whole, what was killed is told apart, and provenance holds no secret."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from selfspec.errors import InputError
from selfspec.records import provenance
from selfspec.records.run_files import (
    SUMMARY,
    append_row,
    drop_partial_line,
    is_finished,
    make_writable,
    read_rows,
    write_json,
    write_text,
)

# Ends of lines to str.splitlines, though not to JSON, which leaves all but the first two unescaped.
SEPARATORS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


class TestWholeFiles:
    def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / SUMMARY
        write_text(path, "old")

        def interrupted(handle: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_text(path, "new and longer")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_write_that_never_succeeded_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UnicodeEncodeError):
            write_text(tmp_path / "a.txt", "half a pair: \ud800")
        assert list(tmp_path.iterdir()) == []

    def test_others_may_read_what_was_written(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a.txt", "text")
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_json_has_no_nan_and_none_is_written(self, value: float, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "a.json", {"value": value})
        with pytest.raises(ValueError, match="JSON"):
            append_row(tmp_path / "rows.jsonl", {"value": value})
        assert list(tmp_path.iterdir()) == []

    def test_a_run_is_finished_once_its_summary_is_there(self, tmp_path: Path) -> None:
        assert not is_finished(tmp_path)
        write_json(tmp_path / SUMMARY, {})
        assert is_finished(tmp_path)


class TestRows:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        for n in range(3):
            append_row(tmp_path / "rows.jsonl", {"n": n, "text": "é"})
        return tmp_path / "rows.jsonl"

    def test_rows_come_back_in_order_and_say_their_schema(self, file: Path) -> None:
        assert read_rows(file) == [{"schema": 1, "n": n, "text": "é"} for n in range(3)]

    @pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
    def test_text_of_any_kind_is_one_row(self, separator: str, tmp_path: Path) -> None:
        row = {"schema": 1, "text": f"before{separator}after"}
        append_row(tmp_path / "rows.jsonl", row)
        append_row(tmp_path / "rows.jsonl", row)
        assert read_rows(tmp_path / "rows.jsonl") == [row, row]

    def test_every_beginning_of_the_file_reads_as_its_whole_rows(self, file: Path) -> None:
        data = file.read_bytes()
        rows = read_rows(file)
        for n_bytes in range(len(data) + 1):  # among them half of the two bytes of é
            file.write_bytes(data[:n_bytes])
            assert read_rows(file) == rows[: data[:n_bytes].count(b"\n")], data[:n_bytes]

    def test_appending_goes_on_after_half_a_line_was_dropped(self, file: Path) -> None:
        rows = read_rows(file)
        data = file.read_bytes()
        file.write_bytes(data[:-7])
        assert drop_partial_line(file)
        append_row(file, {"n": 2, "text": "é"})
        assert read_rows(file) == rows

    def test_whole_lines_are_not_dropped(self, file: Path) -> None:
        data = file.read_bytes()
        assert not drop_partial_line(file)
        assert file.read_bytes() == data

    def test_there_is_nothing_to_drop_from_no_file(self, tmp_path: Path) -> None:
        assert not drop_partial_line(tmp_path / "none.jsonl")

    @pytest.mark.parametrize(
        ("line", "piece"),
        [
            (b"{broken", "not JSON"),
            (b"", "not JSON"),
            (b"\xff\xff", "not JSON"),
            (b"[1]", "schema"),
            (b'{"n": 1}', "schema"),
            (b'{"schema": 2}', "schema"),
        ],
    )
    def test_a_line_that_is_no_row_is_told_by_file_and_number(self, line: bytes, piece: str, file: Path) -> None:
        first, second, third = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(first + second + line + b"\n" + third)
        with pytest.raises(InputError) as error:
            read_rows(file)
        assert "rows.jsonl, line 3" in str(error.value) and piece in str(error.value), error.value

    def test_a_missing_file_is_told_with_its_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"is .* the folder of a run"):
            read_rows(tmp_path / "rows.jsonl")


class TestWritable:
    def test_creates_the_folder_and_leaves_nothing_in_it(self, tmp_path: Path) -> None:
        make_writable(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []

    @pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
    def test_what_cannot_be_a_folder_is_told_with_what_to_do(self, below: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"cannot write to .*paths\.outputs=FOLDER"):
            make_writable(tmp_path / "file" / below)


class TestProvenance:
    def test_environment_can_be_written_as_json(self, tmp_path: Path) -> None:
        environment = provenance.environment()
        write_json(tmp_path / "provenance.json", environment)
        assert json.loads((tmp_path / "provenance.json").read_text()) == environment

    def test_no_environment_variable_is_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SELFSPEC_TEST_TOKEN", "a-secret-of-nobody")
        assert not {"SELFSPEC_TEST_TOKEN", "a-secret-of-nobody"} & set(_leaves(provenance.environment()))

    def test_packages_are_recorded_with_their_versions(self) -> None:
        packages = provenance.environment()["packages"]
        assert packages["torch"] == metadata.version("torch")
        assert set(provenance.PACKAGES) == set(packages)

    @pytest.mark.parametrize(
        "error", [OSError("no disk"), subprocess.TimeoutExpired("git", 10), LookupError("no such line")]
    )
    def test_a_field_that_cannot_be_read_tells_why(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreadable() -> Any:
            raise error

        monkeypatch.setattr(provenance, "_cpu", unreadable)
        monkeypatch.setattr(provenance, "_code", unreadable)
        environment = provenance.environment()
        assert environment["cpu"] == environment["code"] == {"error": f"{type(error).__name__}: {error}"}
        assert environment["python"]

    def test_a_package_that_is_not_installed_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
        assert "PackageNotFoundError" in provenance.environment()["packages"]["no-such-package"]["error"]

    def test_without_git_the_rest_is_recorded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        provenance._code.cache_clear()
        monkeypatch.setenv("PATH", "")
        environment = provenance.environment()
        provenance._code.cache_clear()
        assert set(environment["code"]) == {"error"}
        assert environment["packages"]["torch"]

    def test_digest_is_the_same_everywhere_and_differs_by_text(self) -> None:
        assert provenance.digest("") == "e3b0c44298fc"  # of SHA-256, known
        assert provenance.digest("a") != provenance.digest("b")

    def test_now_is_utc_to_the_second(self) -> None:
        assert len(provenance.now()) == len("2030-01-01T00:00:00Z") and provenance.now().endswith("Z")


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in [k, *_leaves(v)]]
    if isinstance(value, list):
        return [leaf for v in value for leaf in _leaves(v)]
    return [value]
