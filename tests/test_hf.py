"""The door of Hugging Face users gives what `generate` gives, and honours what they ask of it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

import selfspec
from selfspec import Fixed, InputError, SkipSet, as_custom_generate, load_skip_set, save_skip_set
from selfspec.drafters.lookup import joined
from selfspec.errors import PromptError
from selfspec.skipping.bridges import Bridge
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set_files import published
from tests.toys import toy

IDS = torch.tensor([[1, 2, 3, 4, 5]])
SETTINGS: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return toy("llama")


def drafted(model: PreTrainedModel, ids: torch.Tensor = IDS, skip: str = "a1 m2", **settings: Any) -> Any:
    return model.generate(ids, custom_generate=as_custom_generate(skip, stop=Fixed(3)), **{**SETTINGS, **settings})


@pytest.mark.parametrize("skip", ["none", "a1 m2", "a0-2 m0-2"])
def test_custom_generate_gives_what_generate_gives(model: PreTrainedModel, skip: str) -> None:
    assert torch.equal(drafted(model, skip=skip), model.generate(IDS, **SETTINGS))


def test_lookup_looks_in_the_text_and_in_the_memory_of_a_plan(model: PreTrainedModel) -> None:
    answer = model.generate(IDS, **SETTINGS)
    plan = DraftPlan(SkipSet.parse("a1 m2", 3), memory=joined([answer[0].tolist()]))
    taken: list[int] = []

    class Lengths(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            taken.append(value.numel())

        def end(self) -> None: ...

    for skip in ("a1 m2", plan):
        taken.clear()
        output = selfspec.generate(model, IDS, draft=skip, stop=Fixed(1), lookup=True, streamer=Lengths(), **SETTINGS)
        assert torch.equal(output, answer)
    assert max(taken[1:]) == 7, "as many remembered tokens as the longest match has, six, and a bonus token"


def test_a_left_padded_batch_gives_each_row_what_it_gets_alone(model: PreTrainedModel) -> None:
    padded = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = drafted(model, padded, attention_mask=mask)
    for row, ids in enumerate((padded[:1, 2:], padded[1:])):
        assert both[row, 5:].tolist() == model.generate(ids, **SETTINGS)[0, ids.shape[1] :].tolist()


def test_rows_that_end_early_are_padded_as_generate_pads_them(model: PreTrainedModel) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    eos = int(model.generate(ids[:1], **SETTINGS)[0, 8])
    settings = {"eos_token_id": eos, "pad_token_id": 63}
    assert torch.equal(drafted(model, ids, **settings), model.generate(ids, **SETTINGS, **settings))


def test_logits_processors_are_applied_to_every_token(model: PreTrainedModel) -> None:
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, ::2] = -torch.inf
            return scores

    processors = LogitsProcessorList([Forbid()])
    expected = model.generate(IDS, logits_processor=processors, **SETTINGS)
    assert torch.equal(drafted(model, logits_processor=processors), expected)
    assert all(token % 2 for token in expected[0, 5:].tolist())


def test_a_processor_that_makes_nan_is_told_from_broken_weights(model: PreTrainedModel) -> None:
    class Spoil(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores * torch.nan

    with pytest.raises(PromptError, match="the logits processors of the call made nan"):
        drafted(model, logits_processor=[Spoil()])


def test_generation_config_and_penalty_are_honoured(model: PreTrainedModel) -> None:
    config = GenerationConfig(max_new_tokens=11, repetition_penalty=1.7, no_repeat_ngram_size=2, eos_token_id=None)
    fn = as_custom_generate("a1 m2", stop=Fixed(3))
    expected = model.generate(IDS, generation_config=config)
    assert torch.equal(model.generate(IDS, generation_config=config, custom_generate=fn), expected)


def test_stopping_criteria_end_where_generate_ends(model: PreTrainedModel) -> None:
    class AtLength(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 12)

    criteria = StoppingCriteriaList([AtLength()])
    assert drafted(model, stopping_criteria=criteria).shape[1] == 12


def test_return_dict_holds_the_same_sequences(model: PreTrainedModel) -> None:
    output = drafted(model, return_dict_in_generate=True)
    assert torch.equal(output.sequences, model.generate(IDS, **SETTINGS))


FILLED = DynamicCache()
FILLED.update(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8), 0)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"output_logits": True}, "output_logits"),
        ({"num_beams": 3}, "num_beams=3"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6"),
        ({"dola_layers": "low"}, "dola_layers='low'"),
        ({"force_words_ids": [[1]]}, "force_words_ids"),
        ({"prompt_lookup_num_tokens": 3}, "lookup=True"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2])}, "watermarking_config"),
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
        ({"past_key_values": FILLED}, "past_key_values"),
        ({"position_ids": 2 * torch.arange(5)[None]}, "position_ids"),
        ({"inputs_embeds": torch.zeros(1, 5, 32)}, "inputs_embeds"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}, "pad on the left"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_offered_is_refused_by_name(model: PreTrainedModel, asked: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        drafted(model, **asked)


def test_a_model_that_takes_more_than_ids_gets_them_or_a_refusal() -> None:
    gpt2 = toy("gpt2")
    with pytest.raises(InputError, match="does not offer token_type_ids: it reads token ids"):
        drafted(gpt2, token_type_ids=torch.zeros_like(IDS))
    counted = torch.arange(5)[None]  # what generate gives by itself is no wish
    assert torch.equal(drafted(gpt2, position_ids=counted), gpt2.generate(IDS, position_ids=counted, **SETTINGS))


def test_a_window_counts_masked_tokens_and_other_models_do_not(model: PreTrainedModel) -> None:
    asked = {**SETTINGS, "attention_mask": torch.tensor([[1, 1, 0, 1, 1]])}
    assert torch.equal(drafted(model, **asked), model.generate(IDS, **asked))
    with pytest.raises(InputError, match="row 0 behind its first, which a model with sliding_window counts"):
        drafted(toy("mistral-window"), **asked)


def test_padding_without_a_mask_is_found_as_generate_finds_it() -> None:
    model = toy("llama", "sdpa")  # transformers' eager kernel gives nan for padded rows in float64
    ids = torch.tensor([[0, 0, 0, 5, 6], [1, 2, 3, 4, 5]])
    expected = model.generate(ids, pad_token_id=0, **SETTINGS)
    assert torch.equal(selfspec.generate(model, ids, draft="a1", pad_token_id=0, **SETTINGS), expected)


@pytest.mark.parametrize("criterion", [MaxLengthCriteria(12), EosTokenCriteria([3, 17])], ids=["length", "end"])
def test_a_criterion_of_the_user_replaces_that_of_generate(model: PreTrainedModel, criterion: Any) -> None:
    asked = {"stopping_criteria": [criterion], "eos_token_id": 40, "pad_token_id": 63, **SETTINGS}
    ids = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    expected = model.generate(ids, **asked)
    assert expected.shape[1] < 5 + SETTINGS["max_new_tokens"]
    assert torch.equal(drafted(model, ids, **asked), expected)


def test_no_constraint_is_asked_what_comes_behind_an_end(model: PreTrainedModel) -> None:
    end = int(model.generate(IDS, **SETTINGS)[0, 9])
    heard: list[list[int]] = []

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        heard.append(ids.tolist()[5:])
        return list(range(64))

    asked: dict[str, Any] = {"prefix_allowed_tokens_fn": allowed, "eos_token_id": end}
    assert drafted(model, skip="none", **asked)[0, -1] == end
    assert [ids for ids in heard if end in ids] == []


def test_answers_that_the_context_ends_are_told(caplog: pytest.LogCaptureFixture) -> None:
    small = toy("llama", "sdpa", max_position_embeddings=11)
    ids = torch.tensor([[0, 0, 3, 4, 5], [9, 8, 7, 6, 5]])
    mask = (ids > 0).long()
    output = drafted(small, ids, attention_mask=mask)
    assert torch.equal(output, small.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False))
    assert "answers end before 24 new tokens where the model's context is full: it holds 11 tokens" in caplog.text
    assert "(max_position_embeddings)" in caplog.text


@pytest.mark.parametrize(("kind", "holds"), [("yarn", 64), ("linear", 16)])
def test_yarn_extends_a_context_and_other_scalings_are_named(kind: str, holds: int) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 16
    scaled = toy("llama", max_position_embeddings=16, rope_parameters=rope)
    assert selfspec.Decoder(scaled).context_length == holds
    ids = torch.arange(1, 31)[None]
    if kind == "yarn":
        assert torch.equal(drafted(scaled, ids), scaled.generate(ids, **SETTINGS))
    else:
        with pytest.raises(
            InputError, match=r"holds 16 .*linear scaling by 4 does not extend: raise it in config\.json"
        ):
            drafted(scaled, ids)


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.mark.parametrize("where", ["argument", "config", "model"])
def test_stop_strings_end_an_answer_wherever_they_stand(where: str, tokenizer: Any, model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64).eval()
    model.generation_config.eos_token_id = None
    plain = model.generate(IDS, **SETTINGS)
    letters = [text for token in plain[0, 7:-2] if (text := tokenizer.decode(token)).isascii() and text.isalnum()]
    asked: dict[str, Any] = {"stop_strings": letters[:1]}
    expected = model.generate(IDS, tokenizer=tokenizer, **asked, **SETTINGS)
    assert expected.shape[1] < plain.shape[1]
    if where == "model":
        model.generation_config.stop_strings = asked.pop("stop_strings")
    if where == "config":
        asked = {"generation_config": GenerationConfig(**asked)}
    with pytest.raises(InputError, match="need tokenizer="):
        selfspec.generate(model, IDS, draft="a1", **asked, **SETTINGS)
    found = selfspec.generate(model, IDS, draft="a1", tokenizer=tokenizer, **asked, **SETTINGS)
    assert torch.equal(found, expected)


def test_several_answers_to_a_text_are_a_list(tokenizer: Any, model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64).eval()
    asked: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 2, "eos_token_id": None}
    torch.manual_seed(0)
    texts = selfspec.generate(model, "ab", draft="a1", tokenizer=tokenizer, **asked)
    ids = tokenizer("ab", return_tensors="pt").input_ids
    torch.manual_seed(0)
    output = selfspec.generate(model, ids, draft="a1", **asked)
    assert ["ab" + text for text in texts] == tokenizer.batch_decode(output, skip_special_tokens=True)
    assert len({*texts}) == 2


@pytest.mark.parametrize("name", ["assistant_model", "custom_generate", "token_streamer"])
def test_arguments_that_would_be_lost_on_the_way_are_refused(model: PreTrainedModel, name: str) -> None:
    with pytest.raises(InputError, match=f"takes no {name}: "):
        selfspec.generate(model, IDS, draft="a1", **{name: model})


def test_a_streamer_hears_one_prompt(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="hears one prompt, not 2 at once"):
        drafted(model, IDS.repeat(2, 1), token_streamer=BaseStreamer())


def test_the_table_names_every_argument_of_generate() -> None:
    named = set(re.findall(r"`(\w+)`", (Path(__file__).parents[1] / "docs" / "generate.md").read_text()))
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    assert sorted((settings | arguments) - named) == []


def test_streamer_hears_the_prompt_and_every_token_once(model: PreTrainedModel) -> None:
    class Heard(BaseStreamer):
        ids: list[int]
        ended = 0

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended += 1

    streamer = Heard()
    streamer.ids = []
    output = selfspec.generate(model, IDS, draft="a1 m2", streamer=streamer, **SETTINGS)
    assert (streamer.ids, streamer.ended) == (output[0].tolist(), 1)


def test_a_manual_seed_reproduces_samples_and_another_gives_others(model: PreTrainedModel) -> None:
    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return drafted(model, do_sample=True, temperature=2.0)[0].tolist()  # type: ignore[no-any-return]

    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_a_text_needs_a_tokenizer(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        selfspec.generate(model, "some text", draft="a1")


def test_the_model_still_generates_by_itself_afterwards(model: PreTrainedModel) -> None:
    before = model.generate(IDS, **SETTINGS)
    drafted(model)
    assert torch.equal(model.generate(IDS, **SETTINGS), before)


def test_a_set_saved_beside_a_model_is_loaded_with_one_line(tmp_path: Any) -> None:
    skip = SkipSet.parse("a1,3 m0", 4)
    save_skip_set(tmp_path / "skip_set.yaml", skip, model="toy")
    assert load_skip_set(tmp_path) == skip


PUBLISHED = {  # sublayers skipped: attention, MLP
    "llama-2-13b/draft-and-verify": (40, 24, 10),
    "llama-2-13b-chat/draft-and-verify": (40, 24, 10),
    "codellama-13b/draft-and-verify": (40, 22, 12),
    "llama-2-70b/draft-and-verify": (80, 47, 37),
    "llama-2-13b/swift": (40, 20, 14),
    "llama-2-13b-chat/swift": (40, 18, 16),
    "codellama-13b/swift": (40, 14, 20),
    "codellama-34b/swift": (48, 22, 24),
    "llama-2-70b/swift": (80, 41, 37),
}


def test_the_published_sets_are_all_there() -> None:
    assert published() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_has_the_published_size(name: str) -> None:
    skip = load_skip_set(name)
    assert (skip.n_layers, len(skip.attn), len(skip.mlp)) == PUBLISHED[name]


def test_an_unknown_set_is_told_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'llama-2-13b/swift'"):
        load_skip_set("llama-2-13b/swif")


def test_a_plan_is_taken_as_a_value_or_from_its_folder(model: PreTrainedModel, tmp_path: Path) -> None:
    decoder = selfspec.Decoder(model)
    width = model.config.hidden_size
    bridge = Bridge(torch.zeros(width), (torch.eye(width, dtype=torch.float64),))
    plan = selfspec.DraftPlan(selfspec.SkipSet.parse("a1 m2", decoder.n_layers), {("attn", 1): bridge}, kind="linear")
    selfspec.save_plan(tmp_path, plan, model="toy", decoder=decoder, facts={})
    expected = model.generate(IDS, **SETTINGS)
    for skip in (plan, str(tmp_path), str(tmp_path / "plan.yaml")):
        assert torch.equal(selfspec.generate(model, IDS, draft=skip, **SETTINGS), expected)
