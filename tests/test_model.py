"""The real model tells the truth: SmolLM2-135M in float32, whose outputs must be equal to the last token."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from experiments.config.registry_source import RegistrySource
from search.draft_of_point import Drafts
from search.objective import TokensPerSecond
from search.replay.chain_replay import replay
from search.replay.chains import Chains
from search.replay.references import decode_references
from search.samplers.optuna_samplers import random as random_sampler
from search.space import Space
from search.study.loop import run_search
from search.study.study import SearchStudy
from selfspec.data.mini import Mini
from selfspec.data.prompts import encode
from selfspec.drafters.chain import ModelDraft
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.trace import DecodeResult
from selfspec.measure.exactness import compare
from selfspec.measure.stopwatch import Stopwatch
from selfspec.models.load import Loaded, load, physical_cores
from selfspec.models.locate import locate
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Adaptive, Fixed, StopPolicy, Threshold

pytestmark = pytest.mark.model

CONF = Path(__file__).parents[1] / "conf" / "model" / "smollm2-135m.yaml"
N_PROMPTS, N_TOKENS = 4, 48  # eight of 64, and five sets instead of three, took four minutes on two cores
RULES = (Fixed(4), Threshold(6, 0.5), Adaptive(8, 0.6, 0.85, 0.01, 0.5, 0.9, False))


def load_smollm2(dtype: str, *, pack: bool | None = None) -> Loaded:
    settings = OmegaConf.load(CONF)
    located = locate(settings.hub_id, registry=RegistrySource(**settings.registry))
    return load(located, dtype=dtype, device="cpu", threads=physical_cores(), pack=pack)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_smollm2("float32")


@pytest.fixture(scope="module")
def prompts(loaded: Loaded) -> list[list[int]]:
    examples = Mini().examples("evaluation")[:N_PROMPTS]
    return [p.ids for p in encode(loaded.tokenizer, examples, chat=True, context_length=2048, max_new_tokens=N_TOKENS)]


@pytest.fixture(scope="module")
def plain(loaded: Loaded, prompts: list[list[int]]) -> list[DecodeResult]:
    return [autoregress(loaded.decoder, [ids], ending=Ending(N_TOKENS))[0] for ids in prompts]


def random_set(seed: int) -> SkipSet:
    """Four sublayers anywhere: enough to be rejected now and then, few enough to be accepted as well."""
    chosen = random.Random(seed).sample(range(60), 4)
    return SkipSet.from_bits([i in chosen for i in range(60)])


def searched_set(loaded: Loaded, prompts: list[list[int]], folder: Path) -> SkipSet:
    """What a search of a few trials finds."""
    objective = TokensPerSecond(loaded.decoder, prompts[:1], 8, Stopwatch(), Drafts(Fixed(4)))
    study = SearchStudy(Space(30), random_sampler, seed=0)
    starts = [SkipSet.parse("a12 m20", 30), SkipSet.parse("a20-24", 30)]
    return run_search(
        Space(30),
        objective,
        study,
        starts=starts,
        n_trials=3,
        seed=0,
        rows_path=folder / "trials.jsonl",
        stopwatch=Stopwatch(),
    ).skip


@pytest.mark.parametrize("which", ["nothing", "searched", 0, 1, 2])
def test_float32_output_equals_plain_decoding(
    which: str | int, loaded: Loaded, prompts: list[list[int]], plain: list[DecodeResult], tmp_path: Path
) -> None:
    if which == "nothing":
        skip = SkipSet(30)
    elif which == "searched":
        skip = searched_set(loaded, prompts, tmp_path)
    else:
        skip = random_set(int(which))
    rule = RULES[which % 3] if isinstance(which, int) else RULES[0]
    drafter = ModelDraft(loaded.decoder.bind(skip))
    # All but one decode all prompts at once: three times as fast, and a ragged batch must be lossless as well.
    groups = [[ids] for ids in prompts] if which == "searched" else [prompts]
    results = []
    for group in groups:
        stops = [rule.begin() for _ in group]
        results += speculate(loaded.decoder, group, drafter=drafter, stops=stops, ending=Ending(N_TOKENS))
    for got, expected in zip(results, plain, strict=True):
        assert got.tokens == expected.tokens, f"skip={skip}"
        if which == "nothing":
            assert got.accepted == got.drafted


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_replay_counts_what_the_real_decoder_counts(rule: StopPolicy, loaded: Loaded, prompts: list[list[int]]) -> None:
    ending = Ending(24)
    (batch,) = decode_references(loaded.decoder, prompts[:2], ending=ending)
    for skip in (SkipSet.parse("a6 m20", 30), random_set(RULES.index(rule))):
        forward = loaded.decoder.bind(skip)
        rounds = replay(Chains(forward, batch, max_draft=rule.max_draft), rule)
        for reference, rows in zip(batch.references, rounds, strict=True):
            (real,) = speculate(
                loaded.decoder, [reference.prompt], drafter=ModelDraft(forward), stops=[rule.begin()], ending=ending
            )
            expected = [(r.drafted, r.accepted, r.committed) for r in real.rounds]
            assert [(r.drafted, r.accepted, r.committed) for r in rows] == expected, f"skip={skip}"


def test_plain_decoding_equals_generate(loaded: Loaded, prompts: list[list[int]], plain: list[DecodeResult]) -> None:
    for ids, expected in zip(prompts[:3], plain[:3], strict=True):
        output = loaded.decoder.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=N_TOKENS)  # type: ignore[operator]
        assert output[0, len(ids) :].tolist() == expected.tokens


def test_bfloat16_differs_from_plain_decoding_in_ties_at_most() -> None:
    loaded = load_smollm2("bfloat16")
    examples = Mini().examples("evaluation")[:4]
    drafter = ModelDraft(loaded.decoder.bind(SkipSet.parse("a12,22 m20", 30)))
    for prompt in encode(loaded.tokenizer, examples, chat=True, context_length=2048, max_new_tokens=48):
        (expected,) = autoregress(loaded.decoder, [prompt.ids], ending=Ending(48))
        (got,) = speculate(loaded.decoder, [prompt.ids], drafter=drafter, stops=[Fixed(4).begin()], ending=Ending(48))
        assert compare(loaded.decoder, prompt.ids, expected.tokens, got.tokens).verdict != "mismatch"
