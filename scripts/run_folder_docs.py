"""Writes docs/run_folder.md from the schema of the rows: python scripts/run_folder_docs.py"""

from __future__ import annotations

from pathlib import Path

from experiments.results.rows import documentation

FILE = Path(__file__).parents[1] / "docs" / "run_folder.md"
INTRODUCTION = """# What lies in a run folder

Made by `python scripts/run_folder_docs.py` from `experiments/results/rows.py`; a test keeps the two equal.

`outputs/<verb>/<name>/<UTC time>-<hash>/` holds:

| file | content |
| --- | --- |
| `config.yaml` | the resolved configuration |
| `overrides.txt` | the settings given on the command line, one a line |
| `provenance.json` | machine, packages and code; under `run` what ran: model, data, dtype, device, ... |
| `trials.jsonl`, `finals.jsonl` | of a search: its trials, and the race of its finalists |
| `records.jsonl`, `quality.jsonl`, `prompts.jsonl` | of an evaluation: answers, their quality, rendered prompts |
| `online.yaml`, `online.jsonl` | of an evaluation with `online=`: what its arms have learnt, and how |
| `curve.jsonl`, `plan.yaml`, `checkpoint.pt` | of a training: steps, draft, and the weights from which it goes on |
| `rules.jsonl`, `reliability.jsonl`, `stops.md` | of `train predictor=...`: stop rules, and how predictors fare |
| `loads.jsonl`, `rounds.jsonl`, `costs.json` | of a serve-sim: its simulations; recorded drafts; seconds of a step |
| `skip_set.yaml`, `plan.yaml`, `pareto.yaml` | of a search: the draft it found, and the front of its sets |
| `summary.json` | what the run came to; a run without it is not finished, nor is a search that `ended` interrupted |
| `log.txt` | log lines |
| `failure.json` | of a failed job of a sweep: its error and settings; such a folder holds no run |

Every line of a `.jsonl` file is one JSON object. Rows are the truth: tables, figures and dashboards are made of them.
Seconds end in `_s`, fractions lie in [0, 1]. A row may hold fields that are not listed: they are kept.
"""


def text() -> str:
    """The whole document."""
    return f"{INTRODUCTION}\n{documentation()}\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
