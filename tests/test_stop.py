"""Stop rules keep the contract; the paper's rule computes what its formula says; bad settings are refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from experiments.builders.build import stop, stop_by_name
from experiments.config.composing import options
from search.replay.rule_tuner import variants
from selfspec.drafters.chain import ModelDraft, evidence_of
from selfspec.engine.cache import ClockCache
from selfspec.engine.protocols import Row
from selfspec.engine.sampling import Chooser, Sampling
from selfspec.errors import InputError
from selfspec.stopping import (
    Adaptive,
    EntropyBound,
    Fixed,
    Heuristic,
    Optimal,
    PauseWhenUnprofitable,
    RuleState,
    Specdec,
    StopPolicy,
    StopRule,
    StopState,
    Svip,
    Threshold,
    predictor_of,
    without_predictor,
)
from selfspec.stopping.base import named_rules
from tests.contracts.stop import StopContract, draft_length, live

ADAPTIVE: dict[str, Any] = {
    "max_draft": 4,
    "threshold": 0.5,
    "target_acceptance": 0.5,
    "step": 0.1,
    "smooth_acceptance": 0.5,
    "smooth_threshold": 0.5,
    "carry_over": False,
}


def adaptive(**changes: Any) -> Adaptive:
    return Adaptive(**(ADAPTIVE | changes))


class TestFixed(StopContract):
    def make(self) -> StopPolicy:
        return Fixed(3)

    def test_always_drafts_max_draft(self) -> None:
        assert {n for n, _ in live(Fixed(5), Fixed(5).begin())} == {5}


class TestFixedOne(StopContract):
    def make(self) -> StopPolicy:
        return Fixed(1)


class TestThreshold(StopContract):
    def make(self) -> StopPolicy:
        return Threshold(5, threshold=0.4)

    @pytest.mark.parametrize(("confidence", "length"), [(0.39, 1), (0.4, 5), (0.41, 5)])
    def test_a_token_exactly_at_the_threshold_goes_on(self, confidence: float, length: int) -> None:
        rule = self.make()
        assert draft_length(rule, rule.begin(), [confidence]) == length

    def test_drafts_the_token_that_it_is_not_sure_of_and_no_more(self) -> None:
        rule = self.make()
        assert draft_length(rule, rule.begin(), [0.9, 0.8, 0.3, 0.9]) == 3


class TestAdaptive(StopContract):
    def make(self) -> StopPolicy:
        return adaptive()

    def test_threshold_follows_the_formula_in_each_of_its_three_cases(self) -> None:
        state = adaptive().begin()
        thresholds = []
        # AR: 0.5·0 + 0.5·1/4 = 0.125 < α, so γ̃ = 0.6, although drafted == max_draft;  γ = 0.5·0.5 + 0.5·0.6
        # AR: 0.5·0.125 + 0.5·4/4 = 0.5625 >= α and drafted == max_draft, so γ̃ = γ
        # AR: 0.5·0.5625 + 0.5·2/2 = 0.78125 >= α, so γ̃ = 0.45;                      γ = 0.5·0.55 + 0.5·0.45
        for n_drafted, n_accepted in ((4, 1), (4, 4), (2, 2)):
            state.observe(n_drafted, n_accepted)
            thresholds.append(state.threshold)
        assert thresholds == pytest.approx([0.55, 0.55, 0.5], abs=1e-12)

    def test_acceptance_right_at_the_target_lowers_the_threshold(self) -> None:
        state = adaptive(target_acceptance=0.25).begin()
        state.observe(2, 1)  # AR = 0.5·0 + 0.5·0.5 = α
        assert state.threshold == pytest.approx(0.5 * 0.5 + 0.5 * 0.4, abs=1e-12)

    def test_the_two_smoothings_are_not_mixed_up(self) -> None:
        state = adaptive(smooth_acceptance=0.0, smooth_threshold=0.9).begin()
        state.observe(2, 1)  # AR = 0.5 >= α: with β1 and β2 swapped AR would be 0.05 and the threshold rise
        assert state.threshold == pytest.approx(0.9 * 0.5 + 0.1 * 0.4, abs=1e-12)

    def test_a_round_without_a_draft_teaches_nothing(self) -> None:
        state = adaptive().begin()
        state.observe(4, 1)
        before = repr(state)
        state.observe(0, 0)
        assert repr(state) == before

    def test_the_moved_threshold_is_the_one_that_stops(self) -> None:
        rule = adaptive()
        state = rule.begin()
        assert draft_length(rule, state, [0.52]) == 4
        state.observe(4, 1)  # γ = 0.55
        assert draft_length(rule, state, [0.52]) == 1

    @pytest.mark.parametrize(("carry_over", "start"), [(True, 0.55), (False, 0.5)])
    def test_the_next_prompt_takes_the_last_threshold_only_if_carried_over(
        self, carry_over: bool, start: float
    ) -> None:
        rule = adaptive(carry_over=carry_over)
        last = rule.begin()
        last.observe(4, 1)
        assert rule.begin(last).threshold == pytest.approx(start, abs=1e-12)

    def test_acceptance_does_not_carry_over(self) -> None:
        rule = adaptive(carry_over=True)
        last = rule.begin()
        last.observe(4, 4)  # AR = 0.5 >= α and drafted == max_draft: γ stays 0.5
        state = rule.begin(last)
        state.observe(2, 1)  # from AR = 0: 0.25 < α, up; had 0.5 been carried over: 0.5 >= α, down
        assert state.threshold == pytest.approx(0.55, abs=1e-12)


class TestAdaptiveCarriesOver(StopContract):
    def make(self) -> StopPolicy:
        return adaptive(carry_over=True)


class TestSpecdec(StopContract):
    def make(self) -> StopPolicy:
        return Specdec(6, threshold=0.3)

    @pytest.mark.parametrize(
        ("confidences", "length"),
        [([0.9], 4), ([0.69, 1.0], 1), ([0.84, 0.8, 1.0], 2), ([0.7 + 1e-9, 1.0, 1.0, 1.0, 1.0, 1.0], 6)],
    )
    def test_stops_when_a_rejection_is_likelier_than_the_threshold(self, confidences: list[float], length: int) -> None:
        rule = self.make()  # 0.9³ = 0.729 goes on, 0.9⁴ = 0.656 does not
        assert draft_length(rule, rule.begin(), confidences) == length

    def test_a_rule_inside_another_loses_its_predictor_too(self) -> None:
        rule = PauseWhenUnprofitable(Specdec(4, 0.3, "RUN"), draft_cost=0.3, verify_cost=0.1)
        assert predictor_of(rule) == "RUN"
        assert without_predictor(rule) == replace(rule, rule=Specdec(4, 0.3))

    def test_the_product_begins_anew_with_each_draft(self) -> None:
        rule = self.make()
        state = rule.begin()
        lengths = [draft_length(rule, state, [0.9]) for _ in range(3)]
        assert lengths == [4, 4, 4]


class TestConfigured(StopContract):
    @pytest.fixture(params=[name for name in options("stop") if name != "searched"])  # that is another's
    def policy(self, request: pytest.FixtureRequest) -> StopPolicy:
        return stop_by_name(request.param)


@pytest.mark.parametrize("max_draft", [0, -1])
def test_a_round_drafts_at_least_one_token(max_draft: int) -> None:
    for make in (
        lambda: Fixed(max_draft),
        lambda: Threshold(max_draft, threshold=0.5),
        lambda: adaptive(max_draft=max_draft),
    ):
        with pytest.raises(InputError, match=rf"stop\.max_draft={max_draft}"):
            make()


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["threshold", "target_acceptance", "step", "smooth_acceptance", "smooth_threshold"])
def test_what_is_no_probability_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"stop\.{name}={value}"):
        adaptive(**{name: value})


def test_a_threshold_that_is_no_probability_is_refused() -> None:
    with pytest.raises(InputError, match=r"stop\.threshold=2"):
        Threshold(4, threshold=2)


def test_a_name_that_is_no_rule_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'adaptive'"):
        stop_by_name("adaptiv")


class TestEntropy:
    def test_it_is_that_of_the_whole_distribution(self) -> None:
        logits = torch.tensor([[0.0, 0, 0, 0], [0, -math.inf, -math.inf, -math.inf], [2.0, 1, 0, -1]]).double()
        found = evidence_of(logits, torch.tensor([0, 0, 0]), "entropy")
        p = logits[2].softmax(-1)
        assert found.tolist() == pytest.approx([0.25, 1, float((p * p.log()).sum().exp())])
        assert evidence_of(logits, torch.tensor([0, 0, 1]), "probability").tolist() == pytest.approx(
            [0.25, 1, float(p[1])]
        )

    def test_svip_stops_where_the_root_of_the_scaled_entropy_is_too_large(self) -> None:
        rule = Svip(9, threshold=0.3, scale=0.15)
        at = math.exp(-(0.3**2) / 0.15)  # the certainty of the entropy at the threshold
        assert rule.begin().more(1, at + 1e-9) and not rule.begin().more(1, at - 1e-9)

    def test_the_bound_moves_like_the_adaptive_rule(self) -> None:
        bound, plain = EntropyBound(**ADAPTIVE, gamma=0.2).begin(), adaptive().begin()
        for n_accepted in (0, 2, 1, 0, 2):
            for state in (bound, plain):
                state.observe(2, n_accepted)
            assert bound.threshold == plain.threshold is not None
            certainty = math.exp(-((1 - bound.threshold) ** 2) / 0.2)
            assert bound.more(1, certainty + 1e-9) and not bound.more(1, certainty - 1e-9)

    def test_a_drafter_passes_it_to_the_rule_that_reads_it(self) -> None:
        class Scripted:
            def text_rows(self, texts: object) -> None:
                return None

            def __call__(self, ids_BT: torch.Tensor, **where: Any) -> torch.Tensor:
                return torch.tensor([[[0.0, 0.0, -math.inf]]]).double()

        class Seen(RuleState):
            given: ClassVar[list[float]] = []

            def more(self, n_drafted: int, confidence: float) -> bool:
                self.given.append(confidence)
                return n_drafted < 2

        row = Row(0, [1], 3, Seen(), Chooser(Sampling()))
        forward: Any = Scripted()
        (draft,) = ModelDraft(forward, evidence="entropy").propose([row], cache=ClockCache(1, n_rows=1, capacity=9))
        assert Seen.given == pytest.approx([0.5, 0.5]) == list(draft.confidences)


class TestHeuristic(StopContract):
    def make(self) -> StopPolicy:
        return Heuristic(max_draft=6, start=3, up=2, down=1, carry_over=False)

    def test_grows_by_two_after_full_acceptance_and_shrinks_by_one_otherwise(self) -> None:
        state = self.make().begin()
        lengths = []
        for n_accepted in (3, 5, 2, 5, 0):
            n = length_of(state)
            lengths.append(n)
            state.observe(n, min(n, n_accepted))
        assert lengths == [3, 5, 6, 5, 6]

    def test_a_draft_cut_short_says_nothing_about_longer_ones(self) -> None:
        state = self.make().begin()
        state.observe(1, 1)
        assert length_of(state) == 3

    def test_carries_its_length_over_if_asked(self) -> None:
        rule = Heuristic(max_draft=6, start=3, up=2, down=1, carry_over=True)
        used = rule.begin()
        used.observe(3, 3)
        assert length_of(rule.begin(used)) == 5
        assert length_of(self.make().begin(used)) == 3


class TestOptimal(StopContract):
    def make(self) -> StopPolicy:
        return optimal()

    def test_drafts_on_while_the_next_token_is_worth_its_cost(self) -> None:
        # The prior expects 0.8 of the next token, at a rate of 1 and a cost of 0.5 + 0.1: 0.8 · P >= 0.6 iff P >= 0.75.
        state = optimal().begin()
        assert state.more(1, 0.76)
        assert not state.more(2, 0.98)  # 0.76 · 0.98 = 0.745
        assert not optimal().begin().more(1, 0.74)

    def test_confidence_is_read_through_its_calibration(self) -> None:
        rule = optimal(calibration=((0.0, 0.0), (0.5, 0.8), (1.0, 1.0)))
        assert rule.acceptance(0.25) == pytest.approx(0.4)
        assert rule.acceptance(0.75) == pytest.approx(0.9)
        assert rule.begin().more(1, 0.5)

    def test_drafts_less_after_rejections(self) -> None:
        state = optimal().begin()
        assert state.more(1, 0.9)
        for _ in range(8):
            state.observe(4, 0)
        assert not state.more(1, 0.9)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"draft_cost": 0.0},
            {"verify_cost": -1.0},
            {"prior_rounds": 0.0},
            {"calibration": ((0.5, 0.5),)},
            {"calibration": ((0.0, 0.9), (1.0, 0.1))},
            {"calibration": ((0.0, 0.0), (1.0, 2.0))},
        ],
    )
    def test_settings_without_meaning_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            optimal(**wrong)


def optimal(**settings: Any) -> Optimal:
    defaults: dict[str, Any] = {
        "max_draft": 6,
        "draft_cost": 0.5,
        "verify_cost": 0.1,
        "calibration": ((0.0, 0.0), (1.0, 1.0)),
        "prior_rounds": 4.0,
        "carry_over": False,
    }
    return Optimal(**{**defaults, **settings})


class TestPauseWhenUnprofitable(StopContract):
    def make(self) -> PauseWhenUnprofitable:
        return PauseWhenUnprofitable(Threshold(5, threshold=0.4), draft_cost=0.5, verify_cost=0.1)

    @pytest.mark.parametrize("n_accepted", [0, 1, 2, 4])
    def test_never_falls_far_below_plain_decoding_nor_gives_gains_away(self, n_accepted: int) -> None:
        always = (n_accepted + 1) / (1 + 4 * 0.6)
        assert max(0.95, 0.99 * always) <= speed(self.make(), [n_accepted] * 1000) <= max(1.0, always)

    def test_pauses_where_drafting_gives_less_than_it_must(self) -> None:
        gains = [2, 3] * 500  # 1.03 tokens for what a plain one costs
        always, default, never = (replace(self.make(), min_gain=gain) for gain in (0.0, 1.05, 2.0))
        assert speed(always, gains) == pytest.approx(3.5 / 3.4)
        assert 1 < speed(default, gains) < speed(always, gains)
        assert default == self.make() and abs(speed(never, gains) - 1) < 0.01

    def test_comes_back_when_drafting_pays_again(self) -> None:
        assert speed(self.make(), [0] * 200 + [4] * 1000) > 0.9 * speed(self.make(), [4] * 1000)

    def test_goes_on_from_prompt_to_prompt_with_what_it_knows(self) -> None:
        state = self.make().begin()
        while state.begins():
            state.observe(4, 0)
        assert not self.make().begin(state).begins() and self.make().begin().begins()

    def test_is_described_with_the_rule_it_drafts_by(self) -> None:
        body = self.make().to_dict()
        assert body["name"] == "pause_when_unprofitable" and body["rule"]["name"] == "threshold"
        assert StopRule.from_dict(body) == self.make()

    def test_tries_what_the_rule_inside_proposes(self) -> None:
        tried = self.make().variants()
        assert [rule.rule for rule in tried if isinstance(rule, PauseWhenUnprofitable)] == list(
            Threshold(5, 0.4).variants()
        )
        assert {(rule.draft_cost, rule.window) for rule in tried if isinstance(rule, PauseWhenUnprofitable)} == {
            (0.5, 16)
        }

    @pytest.mark.parametrize(
        "wrong", [{"draft_cost": -1.0}, {"window": 1}, {"pause": 0}, {"longest_pause": 4}, {"min_gain": -1}]
    )
    def test_refuses_what_it_cannot_be(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=r"stop\."):
            PauseWhenUnprofitable(**{"rule": Fixed(4), "draft_cost": 0.5, "verify_cost": 0.1, **wrong})

    def test_a_round_of_a_pause_calls_no_draft(self) -> None:
        def forward(*_: Any, **__: Any) -> Any:
            raise AssertionError("the draft was called")

        state = self.make().begin()
        while state.begins():
            state.observe(4, 0)
        row = Row(0, [1, 2], 4, state, Chooser(Sampling(), row=0))
        (proposal,) = ModelDraft(forward).propose([row], cache=ClockCache(1, n_rows=1, capacity=8))
        assert proposal.tokens == []


class TestWritten:
    """What earlier runs hold can be read, and mistakes in it are one line."""

    FORMS: ClassVar[dict[str, tuple[StopPolicy, dict[str, Any]]]] = {
        "fixed": (Fixed(3), {"name": "fixed", "max_draft": 3}),
        "threshold": (Threshold(5, 0.4), {"name": "threshold", "max_draft": 5, "threshold": 0.4}),
        "adaptive": (adaptive(), {"name": "adaptive", **ADAPTIVE}),
        "heuristic": (
            Heuristic(6, 3, 2, 1, carry_over=True),
            {"name": "heuristic", "max_draft": 6, "start": 3, "up": 2, "down": 1, "carry_over": True},
        ),
        "optimal": (
            optimal(),
            {
                **{"name": "optimal", "max_draft": 6, "draft_cost": 0.5, "verify_cost": 0.1},
                **{"calibration": ((0.0, 0.0), (1.0, 1.0)), "prior_rounds": 4.0, "carry_over": False},
            },
        ),
        "pause_when_unprofitable": (
            PauseWhenUnprofitable(Fixed(2), draft_cost=0.5, verify_cost=0.1),
            {
                **{"name": "pause_when_unprofitable", "rule": {"name": "fixed", "max_draft": 2}},
                **{"draft_cost": 0.5, "verify_cost": 0.1, "window": 16, "credit": 1.2, "pause": 8},
                **{"longest_pause": 256, "min_gain": 1.05},
            },
        ),
        "svip": (Svip(9), {"name": "svip", "max_draft": 9, "threshold": 0.3, "scale": 0.15}),
        "entropy_bound": (EntropyBound(**ADAPTIVE), {"name": "entropy_bound", **ADAPTIVE, "gamma": 0.2}),
        "specdec": (
            Specdec(20, 0.3, "RUN"),
            {"name": "specdec", "max_draft": 20, "threshold": 0.3, "predictor": "RUN"},
        ),
    }

    @pytest.mark.parametrize(("rule", "body"), FORMS.values(), ids=FORMS)
    def test_keeps_the_form_of_earlier_runs(self, rule: StopPolicy, body: dict[str, Any]) -> None:
        assert rule.to_dict() == body and list(rule.to_dict()) == list(body)
        assert StopRule.from_dict(json.loads(json.dumps(body))) == rule

    def test_a_file_with_earlier_names_is_read(self) -> None:
        body = {"name": "paying", "rule": {"name": "fixed", "max_draft": 2}, "draft_cost": 0.5, "verify_cost": 0.1}
        expected = PauseWhenUnprofitable(Fixed(2), draft_cost=0.5, verify_cost=0.1, min_gain=1.5)
        assert StopRule.from_dict({**body, "window": 16, "least": 1.5}) == expected
        with pytest.raises(InputError, match="paid"):
            StopRule.from_dict({**body, "name": "paid"})

    def test_every_rule_of_the_package_is_found_by_its_name(self) -> None:
        assert set(named_rules()) == set(self.FORMS)

    def test_a_rule_from_elsewhere_is_written_by_its_place(self) -> None:
        rule = PauseWhenUnprofitable(Patient(4, least=0.3), draft_cost=0.5, verify_cost=0.1)
        written = rule.to_dict()["rule"]
        assert written == {"_target_": "tests.test_stop.Patient", "max_draft": 4, "least": 0.3}
        assert StopRule.from_dict(rule.to_dict()) == rule

    def test_a_rule_that_borrows_a_name_is_not_taken_for_its_owner(self) -> None:
        borrowed = type("Fixed", (Patient,), {"__module__": "elsewhere"})
        assert borrowed(4, 0.3).to_dict()["_target_"] == "elsewhere.Fixed"

    @pytest.mark.parametrize(
        ("body", "piece"),
        [
            ({"name": "fixd", "max_draft": 2}, "did you mean 'fixed'"),
            ({"name": "fixed", "length": 2}, "cannot be made of"),
            ({"max_draft": 2}, "unknown stop rule"),
            ({"_target_": "nowhere_at_all.Rule"}, "cannot be imported (No module named 'nowhere_at_all')"),
            ({"_target_": "tests.test_stop.Nothing"}, "cannot be imported"),
            ({"_target_": "Rule"}, "cannot be imported"),
            ({"_target_": "os.getcwd"}, "not a stop rule"),
            ({"_target_": "tests.test_stop.Patient", "max_draft": 2}, "cannot be made of"),
        ],
        ids=str,
    )
    def test_what_cannot_be_read_is_one_line(self, body: dict[str, Any], piece: str) -> None:
        with pytest.raises(InputError, match=re.escape(piece)) as raised:
            StopRule.from_dict(body)
        assert "\n" not in str(raised.value)

    def test_lists_and_mappings_of_any_kind_become_plain_ones(self) -> None:
        rule = Patient(4, least=OmegaConf.create([1, {"a": [2]}]))  # type: ignore[arg-type]
        assert yaml.safe_dump(rule.to_dict()["least"]) == yaml.safe_dump([1, {"a": [2]}])


@dataclass(frozen=True)
class Patient(StopRule):
    max_draft: int
    least: float

    def begin(self, after: StopState | None = None) -> StopState:
        return Waiting(self)


@dataclass
class Waiting(RuleState):
    rule: Patient

    def more(self, n_drafted: int, confidence: float) -> bool:
        return n_drafted < self.rule.max_draft and confidence > self.rule.least


class TestOfTenLines(StopContract):
    """What a rule does not say it has from its base."""

    def make(self) -> StopPolicy:
        return Patient(4, least=0.3)

    def test_has_nothing_to_be_tuned(self) -> None:
        with pytest.raises(InputError, match="Patient proposes no other settings"):
            variants(self.make())


def test_what_is_no_rule_is_refused_before_anything_runs() -> None:
    for target, piece in (
        ("fractions.Fraction", "not a stop rule"),
        (f"{__name__}.Thawed", "unhashable"),
        (f"{__name__}.Undeclared", "dataclass"),
        (f"{__name__}.holding_an_object", "not JSON serializable"),
    ):
        with pytest.raises(InputError, match=piece) as raised:
            stop(DictConfig({"stop": {"_target_": target}}))
        assert "\n" not in str(raised.value)


def test_a_rule_is_run_as_it_is_written_down() -> None:
    settings = {"_target_": f"{__name__}.Patient", "max_draft": 4, "least": [0.1, [2, 3]]}
    rule = stop(DictConfig({"stop": settings}))
    assert rule == StopRule.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert rule == Patient(4, least=(0.1, (2, 3)))  # type: ignore[arg-type]


@dataclass
class Thawed(StopRule):
    max_draft: int = 2


class Undeclared(StopRule):
    max_draft = 2


def holding_an_object() -> StopPolicy:
    return Patient(2, least=object())  # type: ignore[arg-type]


def speed(policy: StopPolicy, accepted: Sequence[int]) -> float:
    """Tokens over cost, 0.6 a token that is drafted and 1 a round, if so many of four drafted ones are accepted."""
    state, tokens, cost = policy.begin(), 0.0, 0.0
    for n in accepted:
        drafted, right = (4, n) if state.begins() else (0, 0)
        state.observe(drafted, right)
        tokens, cost = tokens + right + 1, cost + 1 + 0.6 * drafted
    return tokens / cost


def length_of(state: StopState) -> int:
    """How many tokens a rule without confidence drafts."""
    n = 1
    while state.more(n, math.nan):
        n += 1
    return n
