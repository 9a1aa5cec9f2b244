"""Refinement of blind heads: n-grams by their definition, paths by enumeration, drafts as trained, lossless."""

# K columns, M tokens of a column, V vocabulary

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import comb
from selfspec.engine.decode import Ending, speculate
from selfspec.engine.protocols import Drafter
from selfspec.errors import InputError
from selfspec.heads.modules import build_module, module_of, size_of
from selfspec.heads.refinement.lattice import Lattice, best_paths, local, merged
from selfspec.heads.refinement.ngrams import Ngrams
from selfspec.heads.refinement.refine import MODES, Refine
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from selfspec.training.collect import Collecting, collect
from selfspec.training.refining import Refined, refine
from selfspec.training.store import Store
from selfspec.training.trainer import Trainer, Training
from tests.contracts.drafter import DrafterContract
from tests.test_engine import decoder_of
from tests.test_heads import SIZE, noisy
from tests.test_training import COSTS, prompts

VOCAB = 9
TEXTS = [[1, 2, 3, 1, 2, 4, 1, 2, 3], [5, 1, 2, 3, 3, 3], [7], [0, 8, 1]]


def witten_bell(context: tuple[int, ...], token: int) -> float:
    """The definition, read from the texts anew."""
    n = len(context)
    grams = Counter(tuple(text[i : i + n + 1]) for text in TEXTS for i in range(len(text) - n))
    follow = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == context}
    lower = witten_bell(context[1:], token) if n else 1 / VOCAB
    if not follow:
        return lower
    return (follow.get(token, 0) + len(follow) * lower) / (sum(follow.values()) + len(follow))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngrams_are_those_of_witten_and_bell_and_sum_to_one(order: int) -> None:
    model = Ngrams(order)
    assert float(model.log_probs(torch.tensor([[1]]), torch.tensor([[3]]))) == 0  # no opinion before it has counted
    model.count(TEXTS, VOCAB)
    everything = torch.arange(VOCAB)
    for context in product(range(VOCAB), repeat=order - 1):
        if context and sum(context) % 3:  # a third of all contexts, seen and unseen
            continue
        found = model.log_probs(torch.tensor([context], dtype=torch.long), everything[None]).exp()[0]
        assert float(found.sum()) == pytest.approx(1, abs=1e-4)
        assert found.tolist() == pytest.approx([witten_bell(context, y) for y in range(VOCAB)], abs=1e-5)


def lattice_of(k: int = 3, m: int = 4) -> Lattice:
    rng = torch.Generator().manual_seed(0)
    return Lattice.of(torch.randn((2, k, VOCAB), generator=rng, dtype=torch.float64) * 2, m)


@pytest.mark.parametrize("order", [2, 3])
def test_the_best_paths_are_those_of_an_enumeration(order: int) -> None:
    model, lattice, weight, n_paths = Ngrams(order), lattice_of(), 0.4, 5
    model.count(TEXTS, VOCAB)
    context = torch.tensor([[5, 1], [3, 2]])[:, -order + 1 :]

    def score(row: int, path: tuple[int, ...]) -> float:
        history, total = context[row].tolist(), 0.0
        for column, place in enumerate(path):
            token = int(lattice.ids_BKM[row, column, place])
            second = float(model.log_probs(torch.tensor([history]), torch.tensor([[token]])))
            total += (1 - weight) * float(lattice.logs_BKM[row, column, place]) + weight * second
            history = [*history, token][-order + 1 :]
        return total

    # Viterbi's states are single tokens: for a trigram only a beam that drops nothing is exact
    n_kept = n_paths if order == 2 else 16
    found = best_paths(lattice, model.log_probs, context, weight=weight, n_paths=n_paths, n_kept=n_kept)
    first = local(lattice, model.log_probs, context, weight=weight)
    for row in range(2):
        ranked = sorted(product(range(4), repeat=3), key=lambda path: -score(row, path))
        wanted = [[int(lattice.ids_BKM[row, c, place]) for c, place in enumerate(path)] for path in ranked[:n_paths]]
        assert found.tokens_BPK[row].tolist() == wanted
        greedy: tuple[int, ...] = ()
        for _ in range(3):
            greedy = max(((*greedy, place) for place in range(4)), key=lambda path: score(row, path))
        assert first.tokens_BPK[row, 0].tolist() == [int(lattice.ids_BKM[row, c, p]) for c, p in enumerate(greedy)]


def test_paths_with_a_common_beginning_share_its_nodes() -> None:
    assert merged([[1, 2, 3], [1, 2, 4], [5, 2, 3]]) == ([1, 2, 3, 4, 5, 2, 3], [-1, 0, 1, 1, -1, 4, 5])


@torch.no_grad()
def test_the_rescorer_drafts_as_it_was_trained() -> None:
    module = noisy(build_module("refine", SIZE, {"k": 4, "m": VOCAB, "width": 6}))
    assert isinstance(module, Refine)
    rng = torch.Generator().manual_seed(4)
    feature, rows, table = (
        torch.randn(s, generator=rng, dtype=torch.float64) for s in ((1, 16), (VOCAB, 16), (VOCAB, 16))
    )
    lattice = Lattice.of(module.columns(feature) @ rows.T, VOCAB)
    last = 5
    paths = module.refined(lattice, torch.tensor([[last]]), feature, embed=lambda i: table[i], rows=lambda i: rows[i])
    drafted = paths.tokens_BPK[0, 0].tolist()
    # the same slot in training: after it come the tokens that were drafted
    features = torch.cat([feature[None], torch.randn((1, 4, 16), generator=rng, dtype=torch.float64)], 1)
    embeds = table[torch.tensor([[last, *drafted]])]
    for depth, one in enumerate(module.unroll([features], embeds, 4)):
        assert one.refined is not None
        chances = (one.refined[0, depth] @ rows.T).softmax(-1)
        assert int(chances.argmax()) == drafted[depth]
        assert float(paths.sure_BPK[0, 0, depth]) == pytest.approx(float(chances.max()))


def plan_of(decoder: Decoder, **settings: Any) -> DraftPlan:
    """The plan of refined heads of random weights, with n-grams of its prompts."""
    module = build_module("refine", size_of(decoder), {"k": 4, "weight": 0.5, "order": 3, **settings})
    assert isinstance(module, Refine)
    module.ngrams.count(prompts(), decoder.n_vocab)
    return DraftPlan(SkipSet.from_bits([True] * (2 * decoder.n_layers)), trained=noisy(module).value())


class RefineContract(DrafterContract):
    mode: str
    is_sometimes_right = False
    structures = ("llama",)

    def make(self, decoder: Decoder, *, sample: bool) -> Drafter:
        return build_drafter(DraftSpec(plan_of(decoder, mode=self.mode), self.rule(), sample_draft=sample), decoder)


class TestNeural(RefineContract):
    mode, structures = "neural", ("llama", "gpt2")


class TestBestPaths(RefineContract):
    mode = "p_best"


def test_a_plan_with_ngrams_survives_its_files(tmp_path: Any) -> None:
    from selfspec.drafters.spec_files import load_spec, save_spec

    decoder, facts = decoder_of(), {"weights": {"revision": None, "sha256": "0"}}
    spec = DraftSpec(plan_of(decoder), Fixed(3))
    save_spec(tmp_path, spec, model="toy", decoder=decoder, facts=facts)
    again = load_spec(tmp_path, decoder, facts)
    assert again == spec and again.plan.trained is not None
    module = module_of(again.plan.trained, decoder)
    assert isinstance(module, Refine) and len(module.ngrams.logs_3) > 9


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: Any) -> Trainer:
    """Refined heads that know a store of a toy by heart."""
    decoder = decoder_of("llama")
    how = Collecting(layers=(-1,), temperatures=(0.0,), samples=1, max_new_tokens=12, batch=4, top_k=4)
    store = Store.create(tmp_path_factory.mktemp("stores"), "toy", {"layers": [-1]})
    collect(decoder, store, prompts()[:8], how)
    torch.manual_seed(0)
    module = build_module("refine", size_of(decoder), {"k": 3, "width": 24, "m": 8})
    assert isinstance(module, Refine)
    module.ngrams.count([text.tokens for text in store.texts()], decoder.n_vocab)
    settings = Training(bf16=False, depths=3, epochs=70, slots=256, check_every=1000, patience=None, lr=3e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfspec.training.trainer.split", lambda stores: ([(0, i) for i in range(8)],) * 2)
        found = Trainer(decoder, module, [store], torch.arange(64), settings, COSTS)
    found.run()
    return found


def test_held_out_counts_are_those_of_decoding(trainer: Trainer) -> None:
    module = trainer.module
    assert isinstance(module, Refine)
    found = refine(trainer, module)
    assert module.settings["weight"] == found.weight
    by_mode = {mode: found.held_out(mode).tokens_per_round(3) for mode in MODES}
    best = max(found.to_dict()["oracle"].values())
    assert best >= max(by_mode.values()) and by_mode["neural"] > by_mode["none"] + 0.1, by_mode
    assert by_mode["p_best"] >= by_mode["global"]
    decoder, store = trainer.decoder, trainer.stores[0]
    for mode in ("neural", "global"):
        settings = {**module.settings, "mode": mode}
        head = replace(module.value(), settings=settings)
        plan = DraftPlan(SkipSet.from_bits([True] * 2 * decoder.n_layers), trained=head)
        drafter = build_drafter(DraftSpec(plan, Fixed(3)), decoder)
        n_tokens = n_rounds = 0
        for text in store.texts():
            stops, ending = [Fixed(3).begin()], Ending(12)
            (result,) = speculate(decoder, [text.prompt], drafter=drafter, stops=stops, ending=ending)
            assert result.tokens == text.tokens
            whole = [r for r in result.rounds if r.drafted == 3]
            n_tokens, n_rounds = n_tokens + sum(r.committed for r in whole), n_rounds + len(whole)
        assert n_tokens / n_rounds == pytest.approx(by_mode[mode], abs=0.35), mode


def test_block_sizes_and_acceptance_are_of_counts() -> None:
    found = Refined(
        10, 0.3, {"none": [5, 3, 2], "local": [2, 4, 4]}, {"none": 4, "local": 0, "target": 1}, {1: [5, 3, 2]}
    )
    assert found.held_out("none").conditional == (0.5, 0.4)
    assert found.to_dict()["modes"]["local"] == {"block_size": 2.2, "accepted": [2, 4, 4], "repeats": 0}
    assert "none 1.70 (40% repeat a token), local 2.20 (0%" in str(found)


def test_impossible_settings_of_a_refinement_are_one_line() -> None:
    for settings in ({"mode": "hopeful"}, {"order": 5}, {"weight": 2.0}, {"m": 0}):
        with pytest.raises(InputError, match=r"mode=|order=5"):
            build_module("refine", SIZE, settings)
    decoder = decoder_of()
    with pytest.raises(InputError, match="leave out the tree"):
        build_drafter(DraftSpec(plan_of(decoder), Fixed(3), tree=comb((2, 1))), decoder)
