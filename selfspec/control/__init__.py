"""Controllers: how many tokens each request of a batch drafts in each step, 0 included; one family of rules a file.

It must not know models, caches or tensors: a controller sees counts and seconds only. A stop rule ends a draft by its
confidence; a controller says how far it may go at all, since in a batch one request's tokens cost all of them time.
"""

from selfspec.control.base import Controller, ControlState, Judged, OneLength, Proposal, Standing
from selfspec.control.fixed import Fixed
from selfspec.control.goodput import Goodput, Oracle
from selfspec.control.sglang import Ema, Throughput
from selfspec.control.smartspec import SmartSpec
from selfspec.control.step_costs import StepCosts

__all__ = [
    "ControlState",
    "Controller",
    "Ema",
    "Fixed",
    "Goodput",
    "Judged",
    "OneLength",
    "Oracle",
    "Proposal",
    "SmartSpec",
    "Standing",
    "StepCosts",
    "Throughput",
]
