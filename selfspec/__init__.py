"""Self-speculative decoding: a model drafts without some of its sublayers, then verifies with all of them.

`Decoder(model)` finds the sublayers, and `bind` gives the forward of a `SkipSet` or `DraftPlan`. `speculate` decodes
with a draft, `autoregress` without; Hugging Face users call `generate` or `as_custom_generate`. This package knows
torch and transformers. It must not know Optuna (`search`) or Hydra, W&B and reports (`experiments`).

Names are imported at their first use, so that a command can reject a typing mistake before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfspec.drafters.build import build_drafter
    from selfspec.drafters.chain import ModelDraft, NoDraft
    from selfspec.drafters.spec import DraftSpec
    from selfspec.drafters.spec_files import load_spec, save_spec
    from selfspec.drafters.tree_drafter import TreeDraft
    from selfspec.drafters.tree_shapes import BestFirst, ExpandRerank, Static, comb, sequoia
    from selfspec.engine.decode import Ending, autoregress, speculate
    from selfspec.engine.protocols import BaseDrafter, Draft, Drafter, Needs, Output, Row, Verdict
    from selfspec.engine.sampling import Sampling
    from selfspec.engine.trace import DecodeResult, Round
    from selfspec.errors import DrafterError, InputError
    from selfspec.hf import as_custom_generate, generate
    from selfspec.models.attention import use_grouped
    from selfspec.models.decoder import Decoder
    from selfspec.models.packing import pack
    from selfspec.skipping.plan import DraftPlan
    from selfspec.skipping.plan_files import load_plan, save_plan
    from selfspec.skipping.skip_set import SkipSet
    from selfspec.skipping.skip_set_files import load_skip_set, save_skip_set
    from selfspec.speculator import Speculator
    from selfspec.stopping import Adaptive, Fixed, Heuristic, Optimal, Threshold

_HOME = {
    "models.attention": ("use_grouped",),
    "drafters.build": ("build_drafter",),
    "engine.decode": ("Ending", "autoregress", "speculate"),
    "drafters.chain": ("ModelDraft", "NoDraft"),
    "errors": ("DrafterError", "InputError"),
    "hf": ("as_custom_generate", "generate"),
    "models.decoder": ("Decoder",),
    "models.packing": ("pack",),
    "skipping.plan": ("DraftPlan",),
    "skipping.plan_files": ("load_plan", "save_plan"),
    "engine.protocols": ("BaseDrafter", "Draft", "Drafter", "Needs", "Output", "Row", "Verdict"),
    "engine.sampling": ("Sampling",),
    "skipping.skip_set": ("SkipSet",),
    "skipping.skip_set_files": ("load_skip_set", "save_skip_set"),
    "drafters.spec": ("DraftSpec",),
    "drafters.spec_files": ("load_spec", "save_spec"),
    "speculator": ("Speculator",),
    "stopping": ("Adaptive", "Fixed", "Heuristic", "Optimal", "Threshold"),
    "engine.trace": ("DecodeResult", "Round"),
    "drafters.tree_drafter": ("TreeDraft",),
    "drafters.tree_shapes": ("BestFirst", "ExpandRerank", "Static", "comb", "sequoia"),
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
