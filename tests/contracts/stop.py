"""What every stop rule promises. A new one inherits this class and says how it is made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from itertools import cycle, islice
from typing import Any

import pytest
import yaml

from selfspec.stopping import StopPolicy, StopRule, StopState, predictor_of, without_predictor

SURE, LOST, MIXED = [1.0], [0.0], [0.9, 0.1, 1.0, 0.5, 0.0, 0.7]
CONFIDENCES = {"sure": SURE, "lost": LOST, "mixed": MIXED}
# (drafted, accepted) as fractions of max_draft: what verification may find, the worst for a threshold included
VERDICTS = {"all accepted": [(1.0, 1.0)], "none accepted": [(1.0, 0.0)], "short": [(0.5, 0.5), (0.5, 0.0), (0.0, 0.0)]}


def draft_length(policy: StopPolicy, state: StopState, confidences: list[float]) -> int:
    """Tokens that a drafter drafts under the rule, as `ModelDraft` asks it; given up on far beyond the bound."""
    if not state.begins():
        return 0
    n = 1
    for confidence in islice(cycle(confidences), policy.max_draft + 10):
        if not state.more(n, confidence):
            return n
        n += 1
    return n


def live(policy: StopPolicy, state: StopState, n_rounds: int = 12) -> Iterator[tuple[int, float | None]]:
    """A life of rounds with changing confidences and verdicts: each round's length and threshold."""
    confidences = cycle(MIXED)
    for i in range(n_rounds):
        n = draft_length(policy, state, [next(confidences), next(confidences)])
        yield n, state.threshold
        state.observe(n, (i * 7) % (n + 1))


class StopContract:
    """Inherit, name the subclass Test..., and implement `make`; or give several rules by a fixture `policy`."""

    def make(self) -> StopPolicy:
        """The rule with its settings."""
        raise NotImplementedError

    @pytest.fixture
    def policy(self) -> StopPolicy:
        return self.make()

    def test_a_fresh_state_begins_to_draft(self, policy: StopPolicy) -> None:
        assert policy.begin().begins()

    def test_asking_for_the_begin_or_the_threshold_changes_nothing(self, policy: StopPolicy) -> None:
        state, n_begun, n_rounds = policy.begin(), 0, 60
        for i in range(n_rounds):
            before, begins, threshold = repr(state), state.begins(), state.threshold
            assert (state.begins(), state.threshold, repr(state)) == (begins, threshold, before)
            assert isinstance(begins, bool)
            assert threshold is None or (policy.needs_confidence and math.isfinite(threshold))
            n_begun += begins
            n = draft_length(policy, state, MIXED[i % 3 :])
            assert (n > 0) == begins
            state.observe(n, 0)  # nothing is accepted: the worst for a rule that may pause
        assert n_begun > 0

    @pytest.mark.parametrize("confidences", CONFIDENCES.values(), ids=CONFIDENCES)
    def test_never_drafts_more_than_max_draft(self, policy: StopPolicy, confidences: list[float]) -> None:
        assert 1 <= draft_length(policy, policy.begin(), confidences) <= policy.max_draft

    @pytest.mark.parametrize("verdicts", VERDICTS.values(), ids=VERDICTS)
    @pytest.mark.parametrize("confidences", CONFIDENCES.values(), ids=CONFIDENCES)
    def test_a_draft_ends_whatever_was_verified_before(
        self, policy: StopPolicy, confidences: list[float], verdicts: list[tuple[float, float]]
    ) -> None:
        state = policy.begin()
        for drafted, accepted in islice(cycle(verdicts), 500):
            share = policy.max_draft if state.begins() else 0  # a pause is observed too, as a round of nothing
            state.observe(int(drafted * share), int(accepted * share))
        assert 0 <= draft_length(policy, state, confidences) <= policy.max_draft

    def test_one_round_after_another_ends(self, policy: StopPolicy) -> None:
        assert all(n <= policy.max_draft for n, _ in live(policy, policy.begin(), n_rounds=200))

    def test_looks_at_the_confidence_only_if_it_says_so(self, policy: StopPolicy) -> None:
        lost, sure = (draft_length(policy, policy.begin(), c) for c in (LOST, SURE))
        if policy.needs_confidence and policy.max_draft > 1:
            assert lost < sure
        else:  # a drafter may pass nan and save a softmax
            assert lost == draft_length(policy, policy.begin(), [math.nan]) == sure

    def test_begin_is_fresh_after_use_of_another_state(self, policy: StopPolicy) -> None:
        first = list(live(policy, policy.begin()))
        assert list(live(policy, policy.begin())) == first

    def test_two_states_in_turn_do_not_touch_each_other(self, policy: StopPolicy) -> None:
        alone = list(live(policy, policy.begin()))
        one, other = live(policy, policy.begin()), live(policy, policy.begin())
        assert [pair for pair in zip(one, other, strict=True)] == [(step, step) for step in alone]

    def test_going_on_after_a_state_leaves_that_state_alone(self, policy: StopPolicy) -> None:
        last = policy.begin()
        list(live(policy, last))
        before = repr(last)
        list(live(policy, policy.begin(last)))
        assert repr(last) == before

    def test_is_written_in_plain_values_and_read_back(self, policy: StopPolicy) -> None:
        written = policy.to_dict()
        for body in (written, json.loads(json.dumps(written)), yaml.safe_load(yaml.safe_dump(written))):
            found = StopRule.from_dict(body)
            assert found == policy and hash(found) == hash(policy) and found.to_dict() == written
            assert list(live(found, found.begin())) == list(live(policy, policy.begin()))

    def test_its_variants_are_rules_that_draft_no_more(self, policy: StopPolicy) -> None:
        for variant in policy.variants():
            assert variant.max_draft <= policy.max_draft
            assert draft_length(variant, variant.begin(), SURE) <= variant.max_draft
            assert type(variant) is type(policy) and StopRule.from_dict(variant.to_dict()) == variant

    def test_where_drafts_take_no_forward_it_drafts_as_far_or_further(self, policy: StopPolicy) -> None:
        assert isinstance(policy, StopRule)
        for confidences in CONFIDENCES.values():
            length = draft_length(policy, policy.begin(), confidences)
            free = policy.free()
            assert length <= draft_length(free, free.begin(), confidences) <= policy.max_draft

    def test_without_a_predictor_it_reads_the_confidence_as_before(self, policy: StopPolicy) -> None:
        plain = without_predictor(policy)
        assert predictor_of(plain) is None
        assert list(live(plain, plain.begin())) == list(live(policy, policy.begin()))

    def test_settings_are_frozen(self, policy: StopPolicy) -> None:
        settings: Any = policy
        for field in fields(settings):
            with pytest.raises(AttributeError):
                setattr(settings, field.name, getattr(settings, field.name))

    def test_use_does_not_change_the_settings(self, policy: StopPolicy) -> None:
        before = repr(policy)
        list(live(policy, policy.begin()))
        assert repr(policy) == before
