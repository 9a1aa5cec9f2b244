"""Training of draft heads on a toy: the store, exact resume, and heads of every kind that learn a text by heart."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.errors import InputError
from selfspec.heads.modules import DraftModule, build_module, size_of
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from selfspec.training.collect import Collecting, collect
from selfspec.training.heldout import HeldOut, RoundCosts
from selfspec.training.overfit import ENOUGH, check_overfit
from selfspec.training.store import Store
from selfspec.training.trainer import Learner, Trainer, Training
from tests.test_engine import decoder_of
from tests.test_heads import HEADS

HOW = Collecting(layers=(0, 1, 2, -1), temperatures=(0.0, 1.0), samples=2, max_new_tokens=12, batch=4, top_k=4)
COSTS = RoundCosts(0.1, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of("llama")


@pytest.fixture(scope="module")
def store(decoder: Decoder, tmp_path_factory: Any) -> Store:
    found = Store.create(tmp_path_factory.mktemp("stores"), "toy", {"layers": list(HOW.layers)})
    collect(decoder, found, prompts(), HOW)
    return found


def prompts() -> list[list[int]]:
    rng = torch.Generator().manual_seed(3)
    return [torch.randint(0, 64, (4 + i % 3,), generator=rng).tolist() for i in range(24)]


def new(decoder: Decoder, name: str = "eagle") -> DraftModule:
    kind, settings = HEADS[name]
    torch.manual_seed(0)
    return build_module(kind, size_of(decoder), settings)


def test_a_store_holds_what_the_model_says_and_sees(decoder: Decoder, store: Store) -> None:
    assert len(store) == 48 and len(store.shards) == 12
    greedy = autoregress(decoder, prompts()[:2], ending=Ending(HOW.max_new_tokens))
    for i in (0, 1):
        text = store.text(i)
        assert text.prompt == prompts()[i] and text.tokens == greedy[i].tokens
        # row r of the top tokens is the choice after token n_prompt - 1 + r
        assert text.top_ids[: len(text.tokens), 0].tolist() == text.tokens
        cache = decoder.new_cache(n_rows=1, capacity=len(text.ids))
        output = decoder.full.output(text.ids[None], starts=[0], cache=cache, hidden=(1, -1))
        for layer in (1, -1):  # float32, and the store was written in a batch, which rounds otherwise
            torch.testing.assert_close(text.hidden[layer], output.hidden[layer][0], rtol=1e-4, atol=1e-4)


def test_a_stopped_collection_goes_on_and_half_shards_do_not_count(
    decoder: Decoder, store: Store, tmp_path: Path
) -> None:
    other = Store.create(tmp_path, "toy", {"layers": list(HOW.layers)})
    for number in (0, 3):
        (other.path / f"{number:05d}.safetensors").write_bytes((store.path / f"{number:05d}.safetensors").read_bytes())
    (other.path / ".00001.safetensors.x").write_bytes(b"half")
    told: list[int] = []
    collect(decoder, other, prompts(), HOW, told.append)
    assert len(told) == 10 and [f.read_bytes() for f in other.shards] == [f.read_bytes() for f in store.shards]


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_one_text_by_heart(decoder: Decoder, store: Store, name: str) -> None:
    found = check_overfit(decoder, new(decoder, name), store, Training(bf16=False, depths=1))
    assert found.acceptance >= ENOUGH and found.lr == Training().lr


def test_a_head_that_diverges_is_trained_with_a_smaller_learning_rate(
    decoder: Decoder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an EAGLE-1 layer does on Qwen2.5's hidden states, which are large and meet no norm."""
    tried: list[float] = []

    def learnt(*args: Any) -> float:
        tried.append(args[-1])
        return float(args[-1] < 1e-3)

    monkeypatch.setattr("selfspec.training.overfit._learnt", learnt)
    found = check_overfit(decoder, new(decoder), store, Training(lr=1e-3))
    assert tried == [2e-3, 5e-4] and found.lr == 2.5e-4, "what diverges at twice the learning rate is too near to it"


def test_a_misaligned_store_is_named(decoder: Decoder, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfspec.training.overfit._learnt", lambda *args: {0: 0.4, 1: 0.99, -1: 0.3}[_shift(args[2])])
    monkeypatch.setattr(
        "selfspec.training.overfit._shifted", lambda batch, shift: replace(batch, first_B=torch.tensor([shift]))
    )
    with pytest.raises(InputError, match=r"0\.40 .* shifted by 1 it reaches 0\.99"):
        check_overfit(decoder, new(decoder), store, Training())


def _shift(batch: Any) -> int:
    return int(batch.first_B)


def run(decoder: Decoder, store: Store, folder: Path | None, *, stop_at: int | None = None, **more: Any) -> Trainer:
    how = Training(bf16=False, depths=2, epochs=2, slots=64, check_every=3, patience=None, lr=3e-3, **more)
    trainer = Trainer(decoder, new(decoder), [store], torch.arange(64), how, COSTS, folder)

    def told(row: Any) -> None:
        if row["step"] == stop_at:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        trainer.run(told)
    return trainer


def test_a_stopped_training_ends_with_the_same_weights(decoder: Decoder, store: Store, tmp_path: Path) -> None:
    whole = run(decoder, store, None)
    run(decoder, store, tmp_path, stop_at=5)
    again = run(decoder, store, tmp_path)
    assert again.progress.step == whole.progress.step == whole.n_steps > 6
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name


def test_a_loss_that_is_nan_stops_training_and_names_the_step(decoder: Decoder, store: Store, tmp_path: Path) -> None:
    trainer = run(decoder, store, tmp_path, stop_at=4)
    with torch.no_grad():
        next(trainer.module.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"the loss of step 5 is nan"):
        trainer.learner.step(trainer._read(trainer._groups(trainer.texts)[0]), 1e-3, 5)
    assert (tmp_path / "checkpoint.pt").is_file()


def test_a_training_that_breaks_keeps_its_best_draft(
    decoder: Decoder, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = Learner.step

    def broken(learner: Learner, batch: Any, lr: float, number: int) -> Any:
        return learner._check(number, "loss", float("nan")) if number == breaks_at else step(learner, batch, lr, number)

    monkeypatch.setattr(Learner, "step", broken)
    breaks_at = 5  # behind the look of step 3
    trainer = run(decoder, store, None)
    assert trainer.progress.step == 4 and "the loss of step 5 is nan" in caplog.text
    assert "the draft is that of step 3" in caplog.text and len(caplog.records) == 1
    for name, weight in trainer.module.state_dict().items():
        assert torch.equal(weight, trainer.best_weights[name])
    breaks_at = 2
    with pytest.raises(InputError, match="the loss of step 2 is nan; train again with a smaller lr"):
        run(decoder, store, None)


def test_a_gradient_that_is_nan_leaves_the_weights(decoder: Decoder, store: Store) -> None:
    trainer = run(decoder, store, None, stop_at=2)
    before = [weight.clone() for weight in trainer.module.parameters()]
    next(trainer.module.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(InputError, match=r"the gradient of step 3 is nan"):
        trainer.learner.step(trainer._read(trainer._groups(trainer.texts)[0]), 1e-3, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.module.parameters(), strict=True))


def test_what_is_trained_drafts_as_held_out_says(
    decoder: Decoder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acceptance counted while decoding is that of the held-out judgement, on the same texts."""
    chosen = [(0, i) for i in range(8)]
    monkeypatch.setattr("selfspec.training.trainer.split", lambda stores: (chosen, chosen))
    how = Training(bf16=False, depths=2, epochs=60, slots=256, check_every=1000, patience=None, lr=3e-3)
    trainer = Trainer(decoder, new(decoder), [store], torch.arange(64), how, COSTS)
    found = trainer.run()
    plan = DraftPlan(SkipSet.from_bits([True] * 2 * decoder.n_layers), trained=trainer.module.value())
    drafter = build_drafter(DraftSpec(plan, Fixed(1)), decoder)
    drafted = accepted = 0
    for i in range(8):
        text = store.text(i, ())
        (result,) = speculate(
            decoder, [text.prompt], drafter=drafter, stops=[Fixed(1).begin()], ending=Ending(HOW.max_new_tokens)
        )
        assert result.tokens == text.tokens
        drafted, accepted = drafted + result.drafted, accepted + result.accepted
    assert found.conditional[0] > 0.5 and accepted / drafted == pytest.approx(found.conditional[0], abs=0.15)


def test_the_best_length_weighs_acceptance_against_costs() -> None:
    held = HeldOut(10, (0.8, 0.5, 0.1))
    assert held.tokens_per_round(3) == pytest.approx(1 + 0.8 + 0.4 + 0.04)
    speedup, length = RoundCosts(0.05, (1.0, 1.1, 1.2, 1.3)).best(held)
    assert (length, speedup) == (2, pytest.approx(2.2 / 1.3))


def test_impossible_settings_are_one_line(decoder: Decoder, store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="continue a prompt greedily 2 times"):
        Collecting(temperatures=(0.0,), samples=2)
    with pytest.raises(InputError, match="holds"):
        Trainer(
            decoder,
            build_module("eagle", size_of(decoder), {"layers": [7]}),
            [store],
            torch.arange(64),
            Training(),
            COSTS,
        )
    short = Store.create(tmp_path, "short", {"layers": [-1]})
    with pytest.raises(InputError, match="longer than 3 tokens"):
        check_overfit(decoder, new(decoder), short, Training())
    with pytest.raises(InputError, match="0 prompts; training needs 2"):
        Trainer(decoder, new(decoder), [short], torch.arange(64), Training(), COSTS)
    with pytest.raises(InputError, match="no store"):
        Store(tmp_path)
    with pytest.raises(InputError, match="hopeful"):
        Training(losses={"hopeful": 1.0})
