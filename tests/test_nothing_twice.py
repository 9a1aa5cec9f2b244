"""What was computed for a search is found again by the next one, and by one that goes on after a kill."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.builders import build_search
from search.fitting.bridge_fitting import BridgeFitter
from search.fitting.continuations import continued
from search.fitting.kept_fits import bridge_fitter
from search.replay.references import decode_references
from selfspec.engine.decode import Ending
from selfspec.models.decoder import Decoder
from selfspec.records import run_files
from selfspec.records.content_cache import ContentCache
from selfspec.skipping.skip_set import SkipSet
from tests.commands import Ran, command
from tests.toys import slow_unless, toy

PROMPTS = [[1, 2, 3], [9, 8, 7, 6], [5] * 9, [11, 3], [4, 4, 2], [7, 1], [30, 31], [2, 9], [8, 8, 8], [40, 2, 6]]
N_NEW = 9
SMALL = [
    *("objective.n_prompts=2", "objective.max_new_tokens=6", "finals.n_prompts=1", "finals.top=1", "finals.race=1"),
    *("costs.contexts=[8]", "costs.max_tokens=4", "costs.repeats=1", "searcher=random", "starts=[nothing]"),
    *("searcher.n_trials=3", "calibration.max_new_tokens=6", "draft=linear", "force=true"),
]
REPLAYED = "value", "acceptance", "drafted", "accepted", "n_rounds", "skip", "origin", "state"


class Counted:
    """A toy, and the number of tokens that its head has scored."""

    def __init__(self, family: str = "llama") -> None:
        self.decoder, self.n_tokens = Decoder(toy(family)), 0
        self.decoder.model.lm_head.register_forward_hook(self._count)

    def _count(self, module: object, args: tuple[torch.Tensor], output: object) -> None:
        self.n_tokens += args[0].shape[:2].numel()


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "cache", {"weights": "a"})


@pytest.mark.parametrize("family", [slow_unless(f) for f in ("llama", "gemma3", "qwen3")])
def test_references_found_again_are_those_that_were_decoded(family: str, cache: ContentCache) -> None:
    model, ending = Counted(family), Ending(N_NEW)
    plain = decode_references(model.decoder, PROMPTS, ending=ending, batch_starts=30)
    decode_references(model.decoder, PROMPTS, ending=ending, batch_starts=30, cache=cache)
    model.n_tokens = 0
    again = decode_references(model.decoder, PROMPTS, ending=ending, batch_starts=30, cache=cache)
    assert model.n_tokens == 0
    for one, other in zip(plain, again, strict=True):
        assert one.references == other.references
        for ours, theirs in zip(one.cache.layers, other.cache.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)


def test_only_what_is_missing_is_decoded(cache: ContentCache, caplog: pytest.LogCaptureFixture) -> None:
    model = Counted()
    caplog.set_level("INFO")
    how: dict[str, Any] = {"max_new_tokens": N_NEW, "n_tokens": 1000}
    first = continued(model.decoder, PROMPTS, **how)
    continued(model.decoder, PROMPTS[:3], **how, cache=cache)
    decode_references(model.decoder, PROMPTS[:4], ending=Ending(N_NEW), cache=cache)
    model.n_tokens = 0
    assert continued(model.decoder, PROMPTS, **how, cache=cache) == first
    assert model.n_tokens <= N_NEW * 7 and "3 of 10 continuations found again" in caplog.messages
    model.n_tokens = 0
    decode_references(model.decoder, PROMPTS[:5], ending=Ending(N_NEW), cache=cache)
    assert 0 < model.n_tokens <= N_NEW + 1 and "4 of 5 references found again" in caplog.messages


def test_a_text_is_kept_before_the_next_batch_begins(cache: ContentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counted()
    put, n_kept = ContentCache.put, 0

    def counted(self: ContentCache, *args: Any, **kwargs: Any) -> None:
        nonlocal n_kept
        if n_kept == 8:
            raise KeyboardInterrupt
        n_kept += 1
        put(self, *args, **kwargs)

    monkeypatch.setattr(ContentCache, "put", counted)
    with pytest.raises(KeyboardInterrupt):
        continued(model.decoder, PROMPTS, max_new_tokens=N_NEW, n_tokens=1000, cache=cache)
    monkeypatch.undo()
    model.n_tokens = 0
    continued(model.decoder, PROMPTS, max_new_tokens=N_NEW, n_tokens=1000, cache=cache)
    assert model.n_tokens <= 2 * N_NEW


@pytest.mark.parametrize("family", [slow_unless(f) for f in ("llama", "gemma3", "opt")])
def test_bridges_found_again_are_those_that_were_fitted(
    family: str, cache: ContentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(toy(family))
    texts = continued(decoder, PROMPTS, max_new_tokens=N_NEW, n_tokens=1000)
    sets = [SkipSet.parse("a1,2 m1", 3), SkipSet.parse("m0", 3)]

    def plans(kept: ContentCache | None) -> list[Any]:
        fitter = bridge_fitter(decoder, texts, n_tokens=40, cache=kept)
        blanks = [fitter.blanks(skip, kind="linear", merge=True, rank=None) for skip in sets]
        shapes = [{at: [t.shape for t in b.tensors] for at, b in each.items()} for each in blanks]
        ways = ({"kind": "linear"}, {"kind": "mean"}, {"kind": "lowrank", "rank": 2})
        return [shapes, [fitter.plan(skip, **way) for skip in sets for way in ways]]  # type: ignore[arg-type]

    fitted = plans(None)
    assert plans(cache) == fitted
    monkeypatch.setattr(BridgeFitter, "_fit", lambda *a: pytest.fail("fitted twice"))
    monkeypatch.setattr("search.fitting.kept_fits.observe", lambda *a, **k: pytest.fail("observed twice"))
    assert plans(cache) == fitted
    monkeypatch.undo()
    other = bridge_fitter(decoder, texts, n_tokens=40, cache=cache).plan(SkipSet.parse("m2", 3))
    assert other == BridgeFitter(bridge_fitter(decoder, texts, n_tokens=40).observed).plan(SkipSet.parse("m2", 3))


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often a search computes what it could find."""
    counts = Counter[str]()
    for place in (
        "search.replay.references.autoregress",
        "search.fitting.continuations.autoregress",
        "search.fitting.kept_fits.observe",
        "experiments.builders.build_costs.measure",
        "experiments.builders.build_costs.measure_drafts",
    ):
        module, _, name = place.rpartition(".")
        whole = getattr(__import__(module, fromlist=[name]), name)

        def call(*args: Any, whole: Any = whole, place: str = place, **kwargs: Any) -> Any:
            counts[place] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(place, call)
    yield counts


def scored(ran: Ran) -> list[dict[str, Any]]:
    return [{k: row[k] for k in REPLAYED} for row in run_files.read_rows(ran.run / run_files.TRIALS)]


def test_a_second_search_computes_nothing_again(toy: list[str], empty_folder: Path, forwards: Counter[str]) -> None:
    first = command("search", *toy, *SMALL)
    assert first.status == 0 and len(forwards) == 5, first.err
    forwards.clear()
    second = command("search", *toy, *SMALL)
    assert second.status == 0 and not forwards, forwards
    assert scored(second) == scored(first)
    assert "continuations found again" in second.err and "references found again" in second.err
    without = command("search", *toy, *SMALL, "paths.cache=null")
    assert without.status == 0 and len(forwards) == 5
    values = [[{**row, "value": None} for row in scored(ran)] for ran in (first, without)]  # seconds differ
    assert values[0] == values[1]


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_search_goes_on_that_was_cut_off_before_its_first_trial(
    is_killed: bool, toy: list[str], empty_folder: Path, forwards: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = command("search", *toy, *SMALL, "paths.outputs=whole")
    if is_killed:
        kill_in_calibration(toy)
    else:
        place = "experiments.builders.build_search.draft_costs"
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
            cut = command("search", *toy, *SMALL)
        assert cut.status == 130 and "resume=outputs/search" in cut.out
    (folder,) = Path("outputs/search").glob("*/*")
    assert "search" in command("runs", "list").out
    forwards.clear()
    resumed = command("search", f"resume={folder}")
    assert resumed.status == 0, resumed.err
    assert "continuations found again" in resumed.err and not forwards["search.fitting.continuations.autoregress"]
    same = [{k: r[k] for k in ("skip", "origin", "state")} for r in scored(whole)]
    assert [{k: r[k] for k in ("skip", "origin", "state")} for r in scored(resumed)] == same
    assert json.loads((folder / run_files.PROVENANCE).read_text())["run"]["calibration_tokens"] > 0


def kill_in_calibration(toy: list[str]) -> None:
    """Run the search in a process of its own, and kill it when its drafts are fitted."""

    def search() -> None:
        build_search.draft_costs = lambda *args, **kwargs: time.sleep(600)  # type: ignore[assignment]
        command("search", *toy, *SMALL)

    process = multiprocessing.get_context("fork").Process(target=search)
    process.start()
    deadline = time.monotonic() + 120
    while not [*Path("outputs/cache/outlines").glob("*.json")]:
        assert process.is_alive() and time.monotonic() < deadline, "the search ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.join()
