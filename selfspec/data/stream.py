"""Several data sets one after the other, as the requests of a user may come: for drafts that follow the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from selfspec.data.task import Example, Part, Task, select
from selfspec.errors import InputError


class Stream:
    """Prompts of several tasks, task after task; the name of the task is the category of its prompts.

    Args:
        tasks: the data sets by name, in order.
        only: for some of them, the one category whose prompts are taken.
        n_each: prompts of each task in each part; fewer where it has fewer.
        seed: seed of their choice.

    Raises:
        InputError: if there is no task, or a category belongs to none.
    """

    name: str = "stream"
    version: str = "1"

    def __init__(
        self, tasks: Mapping[str, Task], *, n_each: int, seed: int, only: Mapping[str, str] | None = None
    ) -> None:
        self._tasks, self._only, self._n_each, self._seed = dict(tasks), dict(only or {}), n_each, seed
        if not self._tasks:
            raise InputError("a stream of no task; name some in data.tasks")
        for name in self._only.keys() - self._tasks.keys():
            raise InputError(f"data.only names {name}, and the stream's tasks are {', '.join(self._tasks)}")

    def examples(self, part: Part) -> list[Example]:
        """The prompts of all tasks, task after task.

        Raises:
            InputError: if a task leaves this part without a prompt.
        """
        found: list[Example] = []
        for name, task in self._tasks.items():
            every = task.examples(part)
            if name in self._only:
                every = [example for example in every if example.category == self._only[name]]
            if not every:
                raise InputError(f"the task {name} of the stream has no prompt of category {self._only.get(name)!r}")
            # one category, so that the choice does not depend on the categories of the task
            own = [replace(example, id=f"{name}/{example.id}", category=name) for example in every]
            found += select(own, n=self._n_each, seed=self._seed)
        return found

    def facts(self) -> dict[str, Any]:
        """Origin of the prompts of each task."""
        return {name: {"version": task.version, **task.facts()} for name, task in self._tasks.items()}
