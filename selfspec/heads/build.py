"""From a plan with a trained head to its drafter."""

from __future__ import annotations

from torch import nn

from selfspec.drafters.tree_shapes import TreeShape
from selfspec.errors import InputError
from selfspec.heads.drafter import HeadDraft
from selfspec.heads.modules import module_of
from selfspec.heads.output import OutputHead
from selfspec.heads.refinement.drafter import RefineDraft
from selfspec.heads.refinement.refine import Refine
from selfspec.heads.trained import OWN
from selfspec.heads.tree import HeadTree
from selfspec.models.decoder import Decoder
from selfspec.models.packing import can_pack, pack
from selfspec.skipping.plan import DraftPlan
from selfspec.skipping.rounding import round_linear

HeadDrafter = HeadDraft | HeadTree | RefineDraft


def build_head_draft(
    plan: DraftPlan, decoder: Decoder, *, tree: TreeShape | None = None, sample: bool, needs_confidence: bool
) -> HeadDrafter:
    """The drafter of a plan with a trained head, in the plan's precision and with its trimmed output head.

    Args:
        plan: the plan.
        decoder: the target.
        tree: shape of the drafts; None: chains.
        sample: whether drafted tokens may be drawn.
        needs_confidence: whether the stop rule reads confidences.

    Raises:
        InputError: if the head does not fit the target or the tree, or the precision has no kernel here.
    """
    assert plan.trained is not None
    module, name = module_of(plan.trained, decoder), plan.trained.kind
    if plan.precision != "same":
        for path, linear in list(module.named_modules()):
            if type(linear) is nn.Linear:
                module.set_submodule(path, round_linear(linear, plan.precision))
    elif can_pack(module):
        pack(module)
    own = {name: tensor for name, tensor in plan.trained.weights.items() if name in OWN}
    output = OutputHead(decoder, plan.head, plan.precision, own)
    if isinstance(module, Refine) and module.mode != "none":
        if tree is not None:
            raise InputError(f"mode={module.mode} of {name} shapes its drafts itself; leave out the tree, or mode=none")
        return RefineDraft(module, output, name=name)
    if tree is not None:
        # siblings that cannot be drawn are point masses, which are as exact
        return HeadTree(module, output, tree, sample=sample and tree.is_fixed, name=name)
    return HeadDraft(module, output, sample=sample, needs_confidence=needs_confidence, name=name)
