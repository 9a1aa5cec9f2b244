"""What every data set promises. A new one inherits this class and says how it is made."""

from itertools import chain

import pytest

from selfspec.data import Part, Task

PARTS: tuple[Part, ...] = ("calibration", "evaluation")


class TaskContract:
    """Inherit, name the subclass Test..., and implement `make`."""

    def make(self) -> Task:
        """A task with examples in both parts; called more than once per test."""
        raise NotImplementedError

    @pytest.mark.parametrize("part", PARTS)
    def test_no_part_is_empty(self, part: Part) -> None:
        assert self.make().examples(part)

    @pytest.mark.parametrize("part", PARTS)
    def test_same_examples_in_the_same_order_every_time(self, part: Part) -> None:
        task = self.make()
        first = task.examples(part)
        assert task.examples(part) == first
        assert self.make().examples(part) == first

    @pytest.mark.parametrize("part", PARTS)
    def test_changing_the_list_returned_does_not_change_the_task(self, part: Part) -> None:
        task = self.make()
        n = len(task.examples(part))
        task.examples(part).clear()
        assert len(task.examples(part)) == n

    def test_ids_are_unique_across_both_parts(self) -> None:
        task = self.make()
        ids = [example.id for example in chain.from_iterable(task.examples(part) for part in PARTS)]
        assert len(set(ids)) == len(ids)

    def test_no_prompt_is_in_both_parts(self) -> None:
        calibration, evaluation = ({example.prompt for example in self.make().examples(part)} for part in PARTS)
        assert not calibration & evaluation

    @pytest.mark.parametrize("part", PARTS)
    def test_every_prompt_has_text(self, part: Part) -> None:
        assert all(example.prompt.strip() for example in self.make().examples(part))

    def test_name_and_version_are_set_and_stable(self) -> None:
        first, second = self.make(), self.make()
        assert first.name and first.version
        assert (first.name, first.version) == (second.name, second.version)
