"""Self-speculative decoding: a model drafts with some of its own sublayers left out, then verifies with all of them.

`Decoder(model)` finds the sublayers, `bind(SkipSet)` gives a draft, `speculate` decodes with it, `autoregress` without.
This package knows torch and transformers; searching lives in `search`, running and reporting in `experiments`.
"""

from selfspec.decode import Ending, autoregress, speculate
from selfspec.draft import ModelDraft, NoDraft
from selfspec.errors import InputError
from selfspec.hf import as_custom_generate, generate
from selfspec.model import Decoder
from selfspec.sampling import Sampling
from selfspec.skip import SkipSet
from selfspec.skipfile import load_skip_set, save_skip_set
from selfspec.stop import Adaptive, Fixed, Heuristic, Optimal, Threshold
from selfspec.trace import DecodeResult, Round

__all__ = [
    "Adaptive",
    "DecodeResult",
    "Decoder",
    "Ending",
    "Fixed",
    "Heuristic",
    "InputError",
    "ModelDraft",
    "NoDraft",
    "Optimal",
    "Round",
    "Sampling",
    "SkipSet",
    "Threshold",
    "as_custom_generate",
    "autoregress",
    "generate",
    "load_skip_set",
    "save_skip_set",
    "speculate",
]
