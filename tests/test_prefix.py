"""Prompts that share a beginning read it once, and decode as if each had read it alone."""

from __future__ import annotations

import pytest
import torch

from search.fitting.continuations import continued
from search.replay.references import decode_references
from selfspec.drafters.build import build_drafter
from selfspec.drafters.spec import DraftSpec
from selfspec.engine.decode import Ending, autoregress, speculate
from selfspec.engine.prefix import LEAST, Prefix, shared_prefix
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.skip_set import SkipSet
from selfspec.stopping import Fixed
from tests.test_nothing_twice import Counted
from tests.toys import every_family, toy

SHOTS = [(7 * i) % 60 for i in range(LEAST + 8)]
PROMPTS = [[*SHOTS, 1, 2], [*SHOTS, 3], [*SHOTS, 9, 8, 7, 6]]
ENDING = Ending(8)


def apart(decoder: Decoder) -> list[list[int]]:
    return [autoregress(decoder, [ids], ending=ENDING)[0].tokens for ids in PROMPTS]


@pytest.mark.parametrize("family", every_family())
def test_a_shared_beginning_changes_no_token(family: str) -> None:
    decoder = Decoder(toy(family))
    prefix = shared_prefix(decoder, PROMPTS)
    assert prefix is not None and prefix.ids == SHOTS
    expected = apart(decoder)
    for ids, tokens in zip(PROMPTS, expected, strict=True):
        assert autoregress(decoder, [ids], ending=ENDING, prefix=prefix)[0].tokens == tokens
        other = ids[1:]  # of another beginning
        assert (
            autoregress(decoder, [other], ending=ENDING, prefix=prefix)[0].tokens
            == autoregress(decoder, [other], ending=ENDING)[0].tokens
        )


def test_a_draft_after_a_shared_beginning_drafts_the_same() -> None:
    decoder = Decoder(toy("llama"))
    spec = DraftSpec(DraftPlan.from_skip_set(SkipSet.parse("m1", decoder.n_layers)), Fixed(3), "front")
    prefix = shared_prefix(decoder, PROMPTS)

    def rounds(prefix: Prefix | None) -> list[tuple[list[int], list[int], list[int]]]:
        results = speculate(
            decoder,
            PROMPTS,
            drafter=build_drafter(spec, decoder),
            stops=[spec.stop.begin() for _ in PROMPTS],
            ending=ENDING,
            prefix=prefix,
        )
        return [(r.tokens, [x.drafted for x in r.rounds], [x.accepted for x in r.rounds]) for r in results]

    assert rounds(prefix) == rounds(None)
    assert [tokens for tokens, *_ in rounds(prefix)] == apart(decoder)


def test_references_and_continuations_read_the_beginning_once() -> None:
    model = Counted()
    n_read = [0]
    model.decoder.model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda m, args, out: n_read.__setitem__(0, n_read[0] + args[0].shape[:2].numel())
    )
    together = decode_references(model.decoder, PROMPTS, ending=ENDING, batch_starts=1)
    n_together, n_read[0] = n_read[0], 0
    alone = [decode_references(model.decoder, [ids], ending=ENDING)[0] for ids in PROMPTS]
    # alone each beginning is read twice: for the answer, and for keys and values of the whole text
    assert n_read[0] - n_together == 5 * len(SHOTS)
    for one, other in zip(together, alone, strict=True):
        assert one.references == other.references
        for ours, theirs in zip(one.cache.layers, other.cache.layers, strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys, rtol=0, atol=1e-12)
    n_read[0] = 0
    texts = continued(model.decoder, PROMPTS, max_new_tokens=8, n_tokens=100)
    assert [t.tokens for t in texts] == apart(model.decoder)
    assert shared_prefix(model.decoder, PROMPTS[:1]) is None and shared_prefix(model.decoder, [[1, 2], [1, 3]]) is None
