"""Self-speculative decoding: a model drafts with some of its own sublayers left out, then verifies with all of them.

`Decoder(model)` finds the sublayers, `bind` gives the draft of a `SkipSet` or `DraftPlan`, `speculate` decodes with it,
`autoregress` without; `generate` and `as_custom_generate` are the door for Hugging Face users. This package knows torch
and transformers; searching lives in `search`, running and reporting in `experiments`.

Names are imported when they are first used, so that a command can refuse a typing mistake before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfspec.attention import use_grouped
    from selfspec.build_drafter import build_drafter
    from selfspec.decode import Ending, autoregress, speculate
    from selfspec.draft import ModelDraft, NoDraft
    from selfspec.errors import DrafterError, InputError
    from selfspec.hf import as_custom_generate, generate
    from selfspec.model import Decoder
    from selfspec.packed import pack
    from selfspec.plan import DraftPlan
    from selfspec.planfile import load_plan, save_plan
    from selfspec.protocols import BaseDrafter, Draft, Drafter, Needs, Output, Row, Verdict
    from selfspec.sampling import Sampling
    from selfspec.skip import SkipSet
    from selfspec.skipfile import load_skip_set, save_skip_set
    from selfspec.spec import DraftSpec
    from selfspec.specfile import load_spec, save_spec
    from selfspec.speculator import Speculator
    from selfspec.stop import Adaptive, Fixed, Heuristic, Optimal, Threshold
    from selfspec.trace import DecodeResult, Round
    from selfspec.tree_draft import TreeDraft
    from selfspec.tree_shapes import BestFirst, ExpandRerank, Static, comb, sequoia

_HOME = {
    "attention": ("use_grouped",),
    "build_drafter": ("build_drafter",),
    "decode": ("Ending", "autoregress", "speculate"),
    "draft": ("ModelDraft", "NoDraft"),
    "errors": ("DrafterError", "InputError"),
    "hf": ("as_custom_generate", "generate"),
    "model": ("Decoder",),
    "packed": ("pack",),
    "plan": ("DraftPlan",),
    "planfile": ("load_plan", "save_plan"),
    "protocols": ("BaseDrafter", "Draft", "Drafter", "Needs", "Output", "Row", "Verdict"),
    "sampling": ("Sampling",),
    "skip": ("SkipSet",),
    "skipfile": ("load_skip_set", "save_skip_set"),
    "spec": ("DraftSpec",),
    "specfile": ("load_spec", "save_spec"),
    "speculator": ("Speculator",),
    "stop": ("Adaptive", "Fixed", "Heuristic", "Optimal", "Threshold"),
    "trace": ("DecodeResult", "Round"),
    "tree_draft": ("TreeDraft",),
    "tree_shapes": ("BestFirst", "ExpandRerank", "Static", "comb", "sequoia"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Adaptive",
    "BaseDrafter",
    "BestFirst",
    "DecodeResult",
    "Decoder",
    "Draft",
    "DraftPlan",
    "DraftSpec",
    "Drafter",
    "DrafterError",
    "Ending",
    "ExpandRerank",
    "Fixed",
    "Heuristic",
    "InputError",
    "ModelDraft",
    "Needs",
    "NoDraft",
    "Optimal",
    "Output",
    "Round",
    "Row",
    "Sampling",
    "SkipSet",
    "Speculator",
    "Static",
    "Threshold",
    "TreeDraft",
    "Verdict",
    "as_custom_generate",
    "autoregress",
    "build_drafter",
    "comb",
    "generate",
    "load_plan",
    "load_skip_set",
    "load_spec",
    "pack",
    "save_plan",
    "save_skip_set",
    "save_spec",
    "sequoia",
    "speculate",
    "use_grouped",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'selfspec' has no attribute {name!r}")
    return getattr(import_module(f"selfspec.{_MODULE[name]}"), name)
