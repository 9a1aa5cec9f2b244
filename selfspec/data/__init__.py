"""Data sets for calibration and evaluation, one file each, all of the interface `Task`.

It must not know models, decoding or scores; `prompts` knows a tokenizer only.
"""

from selfspec.data.humaneval import HumanEval
from selfspec.data.jsonl import Jsonl
from selfspec.data.mini import Mini
from selfspec.data.source import Source, Split
from selfspec.data.task import Example, Part, Task, select

__all__ = ["Example", "HumanEval", "Jsonl", "Mini", "Part", "Source", "Split", "Task", "select"]
