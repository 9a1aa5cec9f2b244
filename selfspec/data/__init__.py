"""Data sets to calibrate on and to evaluate with: one module each, all of the shape `Task`."""

from selfspec.tasks.base import Example, Part, Task, select
from selfspec.tasks.humaneval import HumanEval
from selfspec.tasks.jsonl import Jsonl
from selfspec.tasks.mini import Mini
from selfspec.tasks.source import Source, Split

__all__ = ["Example", "HumanEval", "Jsonl", "Mini", "Part", "Source", "Split", "Task", "select"]
