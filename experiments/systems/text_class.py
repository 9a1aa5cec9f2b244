"""The class of text that an evaluation decoded: code, arithmetic, summaries, ...

This module knows the facts of a run. It must not know arms.
"""

from __future__ import annotations

from experiments.results.run_folder import Run

CODE = "code"
KINDS = {  # data set, or the task of Spec-Bench, to the kind of its text
    **dict.fromkeys(("humaneval", "mbpp"), CODE),
    **dict.fromkeys(("gsm8k", "math_reasoning"), "arithmetic"),
    **dict.fromkeys(("cnndm", "xsum", "summarization"), "summaries"),
    **dict.fromkeys(("mtbench", "mt_bench"), "open questions"),
    "qa": "short questions",
    "rag": "questions on texts",
    "specbench": "Spec-Bench",
    "stream_files": "stream of tasks",
}
ORDER = (f"{CODE}, raw", f"{CODE}, chat", "arithmetic", "summaries", "open questions", "translation")


def text_class(run: Run) -> str:
    """The class of text of a run: `code, raw`, `arithmetic`; the data set's own name where no class is known."""
    data = str(run.facts.get("data"))
    task = run.facts.get("task")
    only = task.get("only") if isinstance(task, dict) else None
    kind = KINDS.get(str(only or data), str(only or data))
    return f"{kind}, {'chat' if run.facts.get('chat') else 'raw'}" if kind == CODE else kind


def in_order(classes: set[str]) -> list[str]:
    """The classes in the order of the columns of a table: the known ones first."""
    known = [name for name in ORDER if name in classes]
    return [*known, *sorted(classes - set(known))]
