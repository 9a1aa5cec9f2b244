"""Predictors of acceptance learn what is planted, survive their files, and change a draft, never the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.predictors import comparing
from search.fitting import acceptance_fitting as fitting
from search.fitting.acceptance_fitting import HeadTraining, Reliability, fit_head, predicted
from search.fitting.draft_examples import Examples, by_chain, drafted_examples, target_logits, teacher_forced
from search.replay.references import batches_of
from search.replay.simulator import simulate
from search.replay.stop_study import round_cost, run_oracle, run_rule
from selfspec.acceptance.features import SCALARS, Before, scalars
from selfspec.acceptance.files import Predictors, fingerprint, load_predictors, save_predictors
from selfspec.acceptance.predictors import Predictor, ResidualHead, Table, made
from selfspec.acceptance.scorer import PredictorScorer
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.drafters.tree_shapes import BestFirst, Static, TreeShape
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.protocols import Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.errors import InputError
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed, Optimal, PauseWhenUnprofitable, Specdec, StopPolicy, Threshold
from selfspec.training.collect import Collecting, read_text
from selfspec.training.heldout import RoundCosts
from selfspec.training.store import StoredText
from tests.commands import command
from tests.test_heads import copying
from tests.toys import toy

N_NEW, MAX_DRAFT = 16, 4
PROMPTS = [[i, 2, 3, i, 2, 3, i, 2] for i in range(1, 6)]
COSTS = RoundCosts(0.3, (1.0, 1.05, 1.1, 1.15, 1.2), overhead=0.02)
QUICK = HeadTraining(epochs=12, lr=4e-2, batch=500)
PLAN = DraftPlan.from_skip_set(SkipSet.parse("m2", 3))
SHORT_COSTS = ("costs.repeats=2", "costs.contexts=[8]", "costs.max_tokens=6")
SHAPE = Static(((0,), (1,), (0, 0), (0, 0, 0)))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(toy("llama-tied"))  # a tied head repeats its input: there is something to look up


@pytest.fixture(scope="module")
def texts(decoder: Decoder) -> list[StoredText]:
    answers = autoregress(decoder, PROMPTS, ending=Ending(N_NEW))
    pairs = zip(PROMPTS, answers, strict=True)
    return [read_text(decoder, prompt, answer.tokens, Collecting(top_k=2)) for prompt, answer in pairs]


@pytest.fixture(scope="module")
def found(decoder: Decoder, texts: list[StoredText]) -> dict[str, Examples]:
    """The examples of a chain behind a lookup, from every start."""
    spec = DraftSpec(PLAN, Fixed(MAX_DRAFT), "front")
    return drafted_examples(decoder, spec, texts, max_draft=MAX_DRAFT, every_start=True)


@pytest.fixture(scope="module")
def fits(decoder: Decoder, texts: list[StoredText], found: dict[str, Examples]) -> dict[str, dict[str, Predictor]]:
    """Predictors by name and source."""
    layers, looked_up = found["layer_skip"].judged, found["lookup"].judged
    own = teacher_forced(decoder, decoder.bind(PLAN), texts, share=0.15, seed=0)
    late = fit_head(ResidualHead(32, form="published"), own, fitting.published(QUICK))
    regression = fitting.fit_logistic(looked_up)
    return {
        "table": {"layer_skip": fitting.fit_table(layers), "lookup": fitting.fit_table(looked_up)},
        "logistic": {"layer_skip": fitting.fit_logistic(layers), "lookup": regression},
        "specdec": {"layer_skip": fit_head(ResidualHead(32), layers, QUICK), "lookup": regression},
        "published": {"layer_skip": late},
    }


def saved(folder: Path, decoder: Decoder, of: Mapping[str, Predictor], plan: DraftPlan, *, tree: bool = False) -> str:
    save_predictors(folder, Predictors(of, plan.digest(), fingerprint(decoder), tree, {"model": "toy", "skip": "m2"}))
    return str(folder)


def planted(n: int = 2000) -> tuple[Examples, Tensor]:
    """Examples whose acceptance depends on the hidden state and on the confidence, and their true probabilities."""
    rng = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(n, 8, generator=rng)
    scalars_N5 = torch.rand(n, len(SCALARS), generator=rng) * 0.98 + 0.01
    odds_N = scalars_N5[:, 0].logit()
    true_N = (odds_N + 2 * hidden_ND[:, 0]).sigmoid()
    label_N = (torch.rand(n, generator=rng) < true_N).float()
    everything, at = torch.ones(n, dtype=torch.bool), torch.arange(n)
    return Examples(at, torch.ones_like(at), scalars_N5, hidden_ND, label_N, everything, label_N > 0), true_N


def loss(chances_N: Tensor, labels_N: Tensor) -> float:
    return Reliability.of(chances_N.tolist(), labels_N.tolist()).log_loss


class TestFitting:
    def test_the_head_learns_a_rule_of_the_hidden_state(self) -> None:
        examples, true_N = planted()
        train, held = examples.only(torch.arange(1500)), examples.only(torch.arange(1500, 2000))
        head = fit_head(ResidualHead(8), train, QUICK)
        best, blind = loss(true_N[1500:], held.label_N), predicted(fitting.fit_logistic(train), held)
        assert loss(predicted(head, held), held.label_N) < best + 0.06 < loss(blind, held.label_N) - 0.1

    def test_probabilities_are_those_of_what_happened(self) -> None:
        examples, _ = planted()
        train, held = examples.only(torch.arange(1000)), examples.only(torch.arange(1000, 2000))
        for predictor in (fitting.fit_table(train), fitting.fit_logistic(train)):
            assert Reliability.of(predicted(predictor, held).tolist(), held.label_N.tolist()).error < 0.06

    def test_the_published_weight_lifts_the_probability_of_a_rejection(self) -> None:
        examples, true_N = planted()
        plain, published = (fit_head(ResidualHead(8), examples, how) for how in (QUICK, fitting.published(QUICK)))
        assert predicted(published, examples).mean() < predicted(plain, examples).mean() - 0.1
        assert predicted(plain, examples).mean() == pytest.approx(float(true_N.mean()), abs=0.05)

    def test_a_table_interpolates_between_its_knots(self) -> None:
        table = Table(3)
        table.get_buffer("x_K").copy_(torch.tensor([0.0, 0.5, 1.0]))
        table.get_buffer("y_K").copy_(torch.tensor([0.1, 0.2, 0.8]))
        numbers_N5 = torch.zeros(5, len(SCALARS))
        numbers_N5[:, 0] = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
        assert table(numbers_N5).tolist() == pytest.approx([0.1, 0.15, 0.2, 0.5, 0.8])

    def test_the_blocks_of_the_head_share_their_weights(self) -> None:
        assert sum(p.numel() for p in ResidualHead(8, depth=3, form="published").parameters()) == 8 * 8 + 8 + 2 * 9

    def test_too_few_examples_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"give 50 judged tokens of eagle, and a predictor needs 100: collect"):
            fitting.check_enough(planted(50)[0], "eagle")


class TestExamples:
    def test_the_five_numbers_are_those_of_their_definitions(self) -> None:
        logits_1V = torch.tensor([[3.0, 2.0, 1.0]]).double()
        p = logits_1V.softmax(-1)[0].numpy()
        row = Row(0, [1], 4, Fixed(1).begin(), Chooser(Sampling()))
        best, other = scalars([Before(row, (5, 6), 0.5)], logits_1V, torch.tensor([[0, 2]]))[0].tolist()
        entropy = float(-(p * np.log(p)).sum())
        assert best == pytest.approx([p[0], entropy, p[0] - p[1], 3, 0.5 * p[0]])
        assert other == pytest.approx([p[2], entropy, p[2] - p[0], 3, 0.5 * p[2]])

    def test_the_product_is_that_of_the_chain_so_far(self, found: dict[str, Examples]) -> None:
        for at in by_chain(found["layer_skip"]).values():
            sure, depths, products = found["layer_skip"].scalars_N5[at][:, [0, 3, 4]].unbind(-1)
            assert depths.tolist() == [*range(1, len(at) + 1)]
            assert products.tolist() == pytest.approx(sure.cumprod(0).tolist(), rel=1e-5)

    def test_greedy_labels_are_the_verdicts_of_the_decoder(self, decoder: Decoder, texts: list[StoredText]) -> None:
        spec = DraftSpec(PLAN, Fixed(MAX_DRAFT))
        found = drafted_examples(decoder, spec, texts, max_draft=MAX_DRAFT)["layer_skip"].judged
        results = [
            speculate(decoder, [t.prompt], drafter=build_drafter(spec, decoder), stops=[Fixed(MAX_DRAFT).begin()],
                      ending=Ending(N_NEW))[0]
            for t in texts
        ]  # fmt: skip
        rounds = [r for result in results for r in result.rounds]
        assert float(found.label_N.sum()) == sum(r.accepted for r in rounds)
        assert len(found) == sum(min(r.drafted, r.accepted + 1) for r in rounds)

    @torch.inference_mode()
    def test_sampled_labels_are_ratios_under_the_warpers(self, decoder: Decoder, texts: list[StoredText]) -> None:
        sampling = Sampling(do_sample=True, temperature=0.6, top_k=8, seed=3)
        found = drafted_examples(
            decoder, DraftSpec(PLAN, Fixed(1)), texts, max_draft=1, sampling=sampling, every_start=True
        )["layer_skip"]
        chooser = Chooser(sampling)
        text, start = texts[int(found.text_N[3])], int(found.start_N[3])
        ids = text.ids[: text.n_prompt + start].tolist()
        cache = decoder.new_cache(n_rows=1, capacity=len(ids))
        decoder.full(torch.tensor([ids[:-1]]), starts=[0], cache=cache, n_logits=1)
        draft_V = chooser.probabilities(
            ids, decoder.bind(PLAN)(torch.tensor([ids[-1:]]), starts=[len(ids) - 1], cache=cache)[0, -1]
        )
        target_V = chooser.probabilities(ids, target_logits(decoder, text)[start])
        ratios_V = (target_V / draft_V).clamp(max=1.0)[draft_V > 0]
        assert bool((ratios_V - found.label_N[3]).abs().min() < 1e-5)
        assert 0 < float(found.label_N.mean()) < 1

    def test_the_published_share_of_own_tokens_is_kept_out(self, decoder: Decoder, texts: list[StoredText]) -> None:
        forward = decoder.bind(PLAN)
        all_kept, none_kept = (teacher_forced(decoder, forward, texts, share=s, seed=1) for s in (1.0, 0.0))
        assert len(none_kept) == sum(len(text.tokens) for text in texts)
        assert bool(all_kept.right_N.all()) and len(all_kept) < len(none_kept)  # where the draft draws the text's own
        assert bool(((none_kept.label_N >= 0) & (none_kept.label_N <= 1)).all())


class TestFiles:
    def test_predictors_survive_their_files(
        self, decoder: Decoder, fits: dict[str, dict[str, Predictor]], found: dict[str, Examples], tmp_path: Path
    ) -> None:
        for name, of in fits.items():
            again = load_predictors(saved(tmp_path / name, decoder, of, PLAN))
            for source, predictor in of.items():
                other = again.of(source)
                assert other is not None and other.is_late == predictor.is_late
                assert torch.equal(predicted(other, found[source]), predicted(predictor, found[source]))
        with pytest.raises(InputError, match=r"holds 4 predictors; name one of .*logistic"):
            load_predictors(tmp_path)

    def test_the_fingerprint_sees_weights_and_not_their_dtype(self, decoder: Decoder) -> None:
        narrow = Decoder(toy("llama-tied").to(torch.float32))
        assert fingerprint(narrow) == fingerprint(decoder) != fingerprint(Decoder(toy("llama-tied", seed=1)))

    def test_another_draft_or_model_or_shape_is_refused_in_one_line(
        self, decoder: Decoder, fits: dict[str, dict[str, Predictor]], tmp_path: Path
    ) -> None:
        path = saved(tmp_path / "logistic", decoder, fits["logistic"], PLAN)
        stop = Specdec(4, 0.3, path)
        other = DraftPlan.from_skip_set(SkipSet.parse("a1", 3))
        cases: list[tuple[DraftSpec, Decoder, str]] = [
            (DraftSpec(other, stop), decoder, "is for another draft (m2); choose that draft"),
            (DraftSpec(PLAN, stop, tree=SHAPE), decoder, "was trained on chains, and this draft is of trees"),
            (DraftSpec(PLAN, stop), Decoder(toy("llama-tied", seed=1)), "is for other weights of the target (toy)"),
            (DraftSpec(PLAN, Specdec(4, 0.3, str(tmp_path / "no"))), decoder, "there is no predictor.yaml"),
            (DraftSpec(PLAN, stop, drafter={"_target_": "tests.plugins.Any"}), decoder, "not those of drafter"),
        ]
        for spec, model, message in cases:
            with pytest.raises(InputError) as raised:
                build_drafter(spec, model)
            assert message in str(raised.value) and "\n" not in str(raised.value)

    def test_a_damaged_file_is_told_in_one_line(
        self, decoder: Decoder, fits: dict[str, dict[str, Predictor]], tmp_path: Path
    ) -> None:
        path = Path(saved(tmp_path, decoder, fits["table"], PLAN))
        for file, text in (("predictor.safetensors", b"{"), ("predictor.yaml", b"a: ["), ("predictor.yaml", b"a: 1")):
            whole = (path / file).read_bytes()
            (path / file).write_bytes(text)
            with pytest.raises(InputError, match="train it again") as raised:
                load_predictors(path)
            assert "\n" not in str(raised.value)
            (path / file).write_bytes(whole)
        with pytest.raises(InputError, match="did you mean 'logistic'"):
            made("logistc", {})


RULES = {
    "specdec": lambda path: Specdec(MAX_DRAFT, 0.45, path),
    "threshold": lambda path: Threshold(MAX_DRAFT, 0.6, path),
    "optimal": lambda path: Optimal(MAX_DRAFT, 0.3, 0.05, ((0.0, 0.0), (1.0, 1.0)), 8.0, False, path),
    "paying": lambda path: PauseWhenUnprofitable(Specdec(MAX_DRAFT, 0.3, path), draft_cost=0.3, verify_cost=0.05),
}


class TestDrafting:
    @pytest.mark.parametrize("kind", ["logistic", "specdec", "published"])
    def test_the_comparison_counts_what_the_simulation_counts(
        self,
        decoder: Decoder,
        texts: list[StoredText],
        found: dict[str, Examples],
        fits: dict[str, dict[str, Predictor]],
        tmp_path: Path,
        kind: str,
    ) -> None:
        """Chains and looked-up drafts, each source with its own predictor."""
        path = saved(tmp_path, decoder, fits[kind], PLAN)
        chains = comparing.chains_of(found, {kind: fits[kind]}, fits["table"]["layer_skip"])
        lengths = [len(text.tokens) for text in texts]
        batches = batches_of(decoder, [(text.prompt, text.tokens) for text in texts])
        for name in ("specdec", "threshold", "optimal"):
            rule: StopPolicy = RULES[name](path)
            spec = DraftSpec(PLAN, rule, "front")
            rounds = [
                r for b in batches for rs in simulate(decoder, build_drafter(spec, decoder), b, rule)[0] for r in rs
            ]
            studied = run_rule(chains, lengths, rule, kind, COSTS)
            counts = [sum(getattr(r, part) for r in rounds) for part in ("committed", "drafted", "accepted")]
            assert [studied.tokens, studied.drafted, studied.accepted] == counts, name
            assert studied.rounds == len(rounds)
            assert studied.cost == pytest.approx(
                sum(round_cost(COSTS, r.drafted, is_free=r.source == "lookup") for r in rounds)
            )

    @pytest.mark.parametrize("rule", ["specdec", "paying"])
    def test_the_output_is_the_targets_whatever_is_predicted(
        self, decoder: Decoder, fits: dict[str, dict[str, Predictor]], tmp_path: Path, rule: str
    ) -> None:
        stop: StopPolicy = RULES[rule](saved(tmp_path, decoder, fits["specdec"], PLAN))
        drafter = build_drafter(DraftSpec(PLAN, stop, "front"), decoder)
        prompts = [*PROMPTS[:2], [9, 8, 7]]
        plain = autoregress(decoder, prompts, ending=Ending(N_NEW))
        found = speculate(
            decoder, prompts, drafter=drafter, stops=[stop.begin() for _ in prompts], ending=Ending(N_NEW)
        )
        assert [r.tokens for r in found] == [r.tokens for r in plain]
        alone = speculate(decoder, prompts[2:], drafter=drafter, stops=[stop.begin()], ending=Ending(N_NEW))
        assert [r.drafted for r in alone[0].rounds] == [r.drafted for r in found[2].rounds]
        assert sum(r.accepted for result in found for r in result.rounds) > 0

    def test_a_head_is_scored_from_its_own_hidden_states(self, decoder: Decoder, tmp_path: Path) -> None:
        plan = copying(decoder)
        texts = [
            read_text(decoder, prompt, answer.tokens, Collecting(top_k=2))
            for prompt, answer in zip(PROMPTS, autoregress(decoder, PROMPTS, ending=Ending(N_NEW)), strict=True)
        ]
        found = drafted_examples(decoder, DraftSpec(plan, Fixed(3)), texts, max_draft=3)
        examples = found["eagle"].judged
        assert list(found) == ["eagle"] and 0 < float(examples.label_N.mean()) < 1
        head = fit_head(ResidualHead(32), examples, QUICK)
        stop = Specdec(3, 0.5, saved(tmp_path, decoder, {"eagle": head}, plan))
        drafter = build_drafter(DraftSpec(plan, stop), decoder)
        for text in texts[:2]:
            (result,) = speculate(decoder, [text.prompt], drafter=drafter, stops=[stop.begin()], ending=Ending(N_NEW))
            assert result.tokens == text.tokens
        rounds = [(r.drafted, r.confidences) for r in result.rounds if r.confidences]
        assert rounds and all(0 <= c <= 1 for _, sure in rounds for c in sure)

    @pytest.mark.parametrize("shape", [SHAPE, BestFirst(6, 3, 2, 0.2, 0.03)], ids=["static", "best first"])
    def test_trees_have_predictors_of_their_own(
        self, decoder: Decoder, texts: list[StoredText], tmp_path: Path, shape: TreeShape
    ) -> None:
        found = drafted_examples(decoder, DraftSpec(PLAN, Fixed(3), tree=shape), texts, max_draft=3)["layer_skip"]
        assert float(found.judged.right_N.float().mean()) < 0.6  # siblings are judged too, and one of them is right
        sure, depths, products = found.scalars_N5[:, [0, 3, 4]].unbind(-1)
        assert torch.equal(sure[depths == 1], products[depths == 1])
        assert bool((products < sure)[depths > 1].all()) and set(depths.tolist()) == {1, 2, 3}
        of = {"layer_skip": fitting.fit_logistic(found.judged)}
        path = saved(tmp_path, decoder, of, PLAN, tree=True)
        depths = {}
        for threshold in (0.0, 1.0):
            stop = Specdec(3, threshold, path)
            drafter = build_drafter(DraftSpec(PLAN, stop, tree=shape), decoder)
            results = speculate(decoder, PROMPTS, drafter=drafter, stops=[stop.begin() for _ in PROMPTS],
                                ending=Ending(N_NEW))  # fmt: skip
            assert [r.tokens for r in results] == [text.tokens for text in texts]
            depths[threshold] = sum(r.n_forwards for result in results for r in result.rounds[:1])
        if isinstance(shape, Static):  # a shape that weighs costs ends its trees itself
            assert depths[0.0] == len(PROMPTS) < depths[1.0]
        else:
            assert depths[0.0] == depths[1.0]

    def test_a_tree_takes_no_score_that_comes_late(self, decoder: Decoder) -> None:
        late = PredictorScorer(ResidualHead(32, form="published"), decoder.device)
        with pytest.raises(InputError, match="form=published gives it after"):
            build_drafter(DraftSpec(PLAN, Fixed(3), tree=SHAPE), decoder, scorer=late)

    def test_the_oracle_wastes_nothing_and_no_rule_beats_it(
        self, found: dict[str, Examples], fits: dict[str, dict[str, Predictor]], texts: list[StoredText]
    ) -> None:
        chains = comparing.chains_of(found, fits, fits["table"]["layer_skip"])
        lengths = [len(text.tokens) for text in texts]
        compared, oracle = comparing.compare(chains, lengths, list(fits), COSTS, max_draft=MAX_DRAFT)
        assert oracle.drafted == oracle.accepted and oracle == run_oracle(
            chains, [n if i % 2 else 1 for i, n in enumerate(lengths)], COSTS
        )
        assert all(one.found.tokens == oracle.tokens and one.gap > -1e-9 for one in compared)
        read = {(one.rule.split()[0], one.signal) for one in compared}
        assert {(rule, kind) for rule in ("specdec", "optimal") for kind in fits} <= read


class TestCommands:
    """`selfspec train predictor=...` on a toy, and decoding with what it wrote."""

    @pytest.fixture(scope="class")
    @staticmethod
    def outputs(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
        found = tmp_path_factory.mktemp("outputs")
        words = ("samples=2", "temperatures=[0.0,1.0]", "max_new_tokens=32", "batch=4", f"paths.outputs={found}")
        assert command("collect", *toy, *words).status == 0
        return found

    def test_a_run_compares_stop_rules_and_its_predictors_are_used(self, toy: list[str], outputs: Path) -> None:
        words = ("predictor=all", "predictor.kinds=[logistic,published]", "predictor.max_draft=4", *SHORT_COSTS)
        ran = command("train", *toy, *words, "skip=m2", f"paths.outputs={outputs}")
        assert ran.status == 0, ran.err
        rules = [json.loads(line) for line in (ran.run / "rules.jsonl").read_text().splitlines()]
        assert {"oracle", "specdec", "optimal", "fixed", "adaptive"} <= {row["rule"].split()[0] for row in rules}
        assert (ran.run / "stops.md").is_file() and "| oracle |" in ran.out
        found = [json.loads(line) for line in (ran.run / "reliability.jsonl").read_text().splitlines()]
        assert {row["predictor"] for row in found} == {"confidence", "logistic", "published"}
        short = ("max_new_tokens=6", "generate=false", "n=2", f"paths.outputs={outputs}")
        by_id = f"stop.predictor={ran.run.name}/published"
        used = command("evaluate", *toy, "skip=m2", "stop=specdec", by_id, *short)
        assert used.status == 0, used.err
        assert "nothing skipped: its stop rule reads the confidence" in used.err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("predictor=specdec",), "name it by skip=DRAFT"),
            (("predictor=specdec", "predictor.kinds=[tables]", "skip=m2"), "they are any of table, logistic"),
            (("predictor=published", "skip=m2", "tree=static"), "take predictor=specdec"),
            (("predictor=table", "skip=m2", "tree=static", "sampling=sample"), "sampling.sample_draft=false"),
        ],
    )
    def test_what_cannot_be_trained_is_told_in_one_line(
        self, toy: list[str], outputs: Path, words: tuple[str, ...], message: str
    ) -> None:
        ran = command("train", *toy, *words, f"paths.outputs={outputs}")
        assert ran.status == 2 and message in ran.error_lines[-1], ran.err
