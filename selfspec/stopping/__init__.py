"""Stop rules: when to end a draft, one family of rules a file. Configurations name the rules by this package.

It must not know models, caches or tensors: a rule sees counts and confidences only.
"""

from selfspec.stopping.adaptive import Adaptive
from selfspec.stopping.base import RuleState, StopRule, predictor_of, without_predictor
from selfspec.stopping.entropy import EntropyBound, Svip
from selfspec.stopping.lookahead import Optimal
from selfspec.stopping.pausing import PauseWhenUnprofitable
from selfspec.stopping.protocol import Evidence, StopPolicy, StopState
from selfspec.stopping.rules import Fixed, Heuristic, Threshold
from selfspec.stopping.specdec import Specdec

__all__ = [
    "Adaptive",
    "EntropyBound",
    "Evidence",
    "Fixed",
    "Heuristic",
    "Optimal",
    "PauseWhenUnprofitable",
    "RuleState",
    "Specdec",
    "StopPolicy",
    "StopRule",
    "StopState",
    "Svip",
    "Threshold",
    "predictor_of",
    "without_predictor",
]
