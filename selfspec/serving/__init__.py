"""Requests that come and go: continuous batching of the model, or of recorded drafts under costs of any device.

`serve` is the loop. It knows neither models nor tensors: an `Engine` reads prompts and plays steps.
"""

from selfspec.serving.arrivals import Arrival, poisson, read_trace
from selfspec.serving.latency import Load, load_of, percentile
from selfspec.serving.loop import Engine, MemoryBound, Served, ServedStep, Serving, serve
from selfspec.serving.model_engine import ModelEngine, Order
from selfspec.serving.recorded_drafts import RecordedRequest, Recording, record
from selfspec.serving.replay_engine import ReplayEngine
from selfspec.serving.timeline import MeasuredTime, RealTime, SimulatedTime, Timeline

__all__ = [
    "Arrival",
    "Engine",
    "Load",
    "MeasuredTime",
    "MemoryBound",
    "ModelEngine",
    "Order",
    "RealTime",
    "RecordedRequest",
    "Recording",
    "ReplayEngine",
    "Served",
    "ServedStep",
    "Serving",
    "SimulatedTime",
    "Timeline",
    "load_of",
    "percentile",
    "poisson",
    "read_trace",
    "record",
    "serve",
]
