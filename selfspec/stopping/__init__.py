"""Stop rules under the names that configurations and users have for them; what they are is in `selfspec.stopping`."""

from selfspec.stopping.adaptive import Adaptive
from selfspec.stopping.base import RuleState, StopRule
from selfspec.stopping.lookahead import Optimal
from selfspec.stopping.pausing import PauseWhenUnprofitable
from selfspec.stopping.protocol import StopPolicy, StopState
from selfspec.stopping.rules import Fixed, Heuristic, Threshold

__all__ = [
    "Adaptive",
    "Fixed",
    "Heuristic",
    "Optimal",
    "PauseWhenUnprofitable",
    "RuleState",
    "StopPolicy",
    "StopRule",
    "StopState",
    "Threshold",
]
