"""The cache of what was computed: found again by content alone, whole or not at all."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest
import torch

from selfspec.records.content_cache import ContentCache

OF = {"prompt": [1, 2, 3], "n": 4}
TENSORS = {"keys": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "one": torch.tensor(7.5)}


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "cache", {"weights": "a"})


def test_an_entry_is_found_again_by_its_content(cache: ContentCache) -> None:
    cache.put("texts", OF, {"tokens": [5, 6]})
    cache.put("states", OF, {"n": 1}, TENSORS)
    found = ContentCache(cache.folder, {"weights": "a"}).get("texts", dict(reversed(OF.items())))
    assert found is not None and found.body == {"tokens": [5, 6]}
    states = cache.get("states", OF, has_tensors=True)
    assert states is not None and states.body == {"n": 1} and states.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(states.tensors[name], tensor) and states.tensors[name].dtype == tensor.dtype


def test_other_content_is_not_found(cache: ContentCache) -> None:
    cache.put("texts", OF, {"tokens": [5, 6]})
    assert cache.get("texts", {**OF, "n": 5}) is None
    assert cache.get("other texts", OF) is None
    assert ContentCache(cache.folder, {"weights": "b"}).get("texts", OF) is None


@pytest.mark.parametrize("has_tensors", [False, True])
@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: b"", lambda d: d[:-4] + bytes([d[-4] ^ 1]) + d[-3:]])
def test_a_damaged_entry_is_told_and_not_used(
    cache: ContentCache, has_tensors: bool, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put("texts", OF, {"tokens": [5, 6]}, TENSORS if has_tensors else None)
    file = cache.path("texts", OF, has_tensors=has_tensors)
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    assert cache.get("texts", OF, has_tensors=has_tensors) is None
    assert [f"{file} is damaged" in line for line in caplog.messages] == [True]
    cache.put("texts", OF, {"tokens": [5, 6]}, TENSORS if has_tensors else None)
    assert cache.get("texts", OF, has_tensors=has_tensors) is not None


def test_a_killed_writer_leaves_no_entry(cache: ContentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.put("texts", OF, {"tokens": [5, 6]})
    assert cache.get("texts", OF) is None and [*cache.path("texts", OF).parent.iterdir()] == []


def write_often(folder: Path) -> None:
    for _ in range(30):
        ContentCache(folder, {}).put("states", OF, {}, {"x": torch.ones(5000)})


def test_two_writers_leave_a_whole_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    cache = ContentCache(tmp_path, {})
    while any(writer.is_alive() for writer in writers):
        cache.get("states", OF, has_tensors=True)
    assert cache.get("states", OF, has_tensors=True) is not None and not caplog.messages
    assert [writer.exitcode for writer in writers] == [0, 0]


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = ContentCache(tmp_path / "file", {})
    with caplog.at_level(logging.WARNING):
        for n in range(3):
            cache.put("texts", {"n": n}, {})
    assert len(caplog.messages) == 1 and "cannot keep texts" in caplog.messages[0]
    assert cache.get("texts", {"n": 0}) is None
