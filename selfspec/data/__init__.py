"""Data sets to calibrate on and to evaluate with: one module each, all of the shape `Task`."""

from selfspec.data.humaneval import HumanEval
from selfspec.data.jsonl import Jsonl
from selfspec.data.mini import Mini
from selfspec.data.source import Source, Split
from selfspec.data.task import Example, Part, Task, select

__all__ = ["Example", "HumanEval", "Jsonl", "Mini", "Part", "Source", "Split", "Task", "select"]
