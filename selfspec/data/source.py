"""From rows of the hub or of files to a data set in two parts that share no prompt.

Evaluation and calibration prompts come from different splits or files. If there is only one, the hash of a prompt
determines its part, which then depends neither on its place in the file nor on a seed.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from selfspec.data.rows import as_object, good_ones, read_lines, tell_left_out
from selfspec.data.same_prompts import group_digests, same_key, tell_alike
from selfspec.data.task import Example, Part, checked
from selfspec.errors import InputError
from selfspec.hub import cache_unless_answering

Item = tuple[str, str, Callable[[], Mapping[str, Any]]]
"""An unread row: its place in the split, its location for messages, and a function that reads its fields."""

Read = Callable[[Mapping[str, Any], str, str], Example | None]
"""From the fields, id and location of a row to an example; None for a row that is not of the data set.

The id is the row's place in its split; a data set whose rows have ids uses those instead.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """A published data set.

    Attributes:
        name: name of the task.
        version: version of the conversion from rows to prompts.
        hub_id: id on the Hugging Face hub; None if the hub has no usable form of it.
        config: name of the variant on the hub.
        calibration_split: split of the hub for calibration; None if there is only the split for evaluation.
        read: reads one row.
        is_spec_bench: whether its questions are those of Spec-Bench, whose scripts can read a run's answers.
    """

    name: str
    version: str
    hub_id: str | None
    config: str | None
    calibration_split: str | None
    read: Read
    is_spec_bench: bool = False


@dataclass(frozen=True, slots=True)
class Split:
    """A data set in two parts; it implements `Task`."""

    name: str
    version: str
    calibration: Sequence[Example]
    evaluation: Sequence[Example]
    about: Mapping[str, Any] = field(default_factory=dict)
    is_spec_bench: bool = False

    def examples(self, part: Part) -> list[Example]:
        """The examples of one part, in the order of the seed.

        Raises:
            InputError: if the options leave this part empty.
        """
        found = self.calibration if part == "calibration" else self.evaluation
        if not found:
            raise InputError(
                f"asked for the {part} part of {self.name}, which is empty: calibration_n, less the examples shown, "
                f"leaves {len(self.calibration)} for calibration and {len(self.evaluation)} for evaluation; change "
                "data.calibration_n= or data.shots="
            )
        return list(found)

    def facts(self) -> dict[str, Any]:
        """Origin of the prompts."""
        return dict(self.about)


@dataclass(frozen=True, slots=True)
class Source:
    """Location of a data set, and the rows to use.

    Attributes:
        path: evaluation rows: a JSON-lines file (plain or .gz), or a folder that `datasets` can load; None: the hub.
        calibration_path: the same for calibration; None: the other split of the hub or of the folder, or a fixed part
            of a single file.
        split: split of the hub or the folder for evaluation.
        calibration_n: number of rows for calibration, some of which may be shots.
        evaluation_n: largest number of rows for evaluation; None: all.
        seed: seed of the order of rows, and thus of the selection; the order is that of `shuffle(seed)` in `datasets`.
        repair: leave out damaged rows, and log their number.
    """

    path: str | None = None
    calibration_path: str | None = None
    split: str = "test"
    calibration_n: int = 32
    evaluation_n: int | None = None
    seed: int = 42
    repair: bool = False

    def load(self, origin: Origin) -> Split:
        """The data set in its two parts.

        Raises:
            InputError: if a source is not available, a row is damaged, or the options contradict each other.
        """
        if not isinstance(self.calibration_n, int) or self.calibration_n < 0:
            raise InputError(f"asked for calibration_n={self.calibration_n} rows; set data.calibration_n= to 0 or more")
        if self.evaluation_n is not None and (not isinstance(self.evaluation_n, int) or self.evaluation_n < 1):
            raise InputError(f"asked for evaluation_n={self.evaluation_n} rows; set data.evaluation_n= to 1 or more")
        one_file = self.path is not None and not Path(self.path).expanduser().is_dir()
        other = None if one_file else origin.calibration_split
        if self.split == other and self.calibration_path is None:
            raise InputError(
                f"data.split={self.split} asks to evaluate on the split that calibration prompts of {origin.name} are "
                "taken from; choose another split"
            )
        bad: list[str] = []
        evaluation = self._examples(origin, self.path, self.split, bad)
        if self.calibration_path is None and other is None:
            calibration, evaluation = _by_hash(evaluation, self.calibration_n)
        else:
            known = {same_key(example.prompt) for example in evaluation}
            path, split = self.calibration_path or self.path, origin.calibration_split or "train"
            calibration = self._examples(origin, path, split, bad, n=self.calibration_n, known=known)
        tell_alike(str(self.path or origin.hub_id), (e.prompt for e in calibration), (e.prompt for e in evaluation))
        about = {
            "source": self.path or origin.hub_id,
            "calibration_source": self.calibration_path or self.path or origin.hub_id,
            "split": None if one_file else self.split,
            "order_seed": self.seed,
            "n_left_out": len(bad),
        }
        return Split(
            origin.name, origin.version, calibration, evaluation[: self.evaluation_n], about, origin.is_spec_bench
        )

    def _examples(
        self,
        origin: Origin,
        path: str | None,
        split: str,
        bad: list[str],
        *,
        n: int | None = None,
        known: Collection[str] = (),
    ) -> list[Example]:
        """The first n examples of a source whose prompts have no key in `known`; reasons of bad rows go to `bad`."""
        seen: set[str] = set()

        def read(item: Item) -> Example | None:
            place, where, fields = item
            example = origin.read(fields(), place, where)
            if example is not None:
                checked(example, where)
            if example and example.id in seen:
                raise InputError(f"{where} repeats the id {example.id!r}; keep one row for each")
            seen.update([example.id] if example else [])
            return example

        is_file = path is not None and not Path(path).expanduser().is_dir()
        items = _file_items(str(path), split, self.seed) if is_file else _hub_items(origin, path, split, self.seed)
        n_before = len(bad)
        # lazily, so that only the needed rows of a large split are read
        examples = good_ones(items, read, repair=self.repair, bad=bad)
        found = list(islice((e for e in examples if e is not None and same_key(e.prompt) not in known), n))
        tell_left_out(path or str(origin.hub_id), bad[n_before:])
        if not found and n != 0:
            besides = " besides those of the evaluation part" if known else ""
            raise InputError(f"{path or origin.hub_id} holds no prompt of {origin.name}{besides}; name another file")
        return found


def _by_hash(examples: list[Example], n: int) -> tuple[list[Example], list[Example]]:
    """The examples of n distinct prompts, and the remaining examples."""
    digests = group_digests(e.prompt for e in examples)
    chosen = set(sorted(set(digests.values()))[:n])
    return (
        [e for e in examples if digests[e.prompt] in chosen],
        [e for e in examples if digests[e.prompt] not in chosen],
    )


def _order(n: int, seed: int) -> list[int]:
    """The order in which `datasets` shuffles n rows, so that published selections of rows can be repeated."""
    order: list[int] = np.random.default_rng(seed).permutation(n).tolist()
    return order


def _file_items(path: str, split: str, seed: int) -> Iterator[Item]:
    lines = read_lines(path)
    for k in _order(len(lines), seed):
        number, line = lines[k]
        where = f"{path} line {number}"
        yield f"{split}-{number}", where, lambda line=line, where=where: as_object(line, where)  # type: ignore[misc]


def _hub_items(origin: Origin, path: str | None, split: str, seed: int) -> Iterator[Item]:
    """Rows of the hub or of a folder.

    Raises:
        InputError: if the source cannot be reached or read, or has no such split.
    """
    import datasets  # takes more than a second to import

    where = path or origin.hub_id
    if where is None:
        raise InputError(f"data={origin.name} is not on the hub; give its file: data.path=FILE")
    datasets.disable_progress_bars()
    try:
        with nullcontext() if path else cache_unless_answering():
            rows = datasets.load_dataset(where, None if path else origin.config, split=split)
    except ValueError as error:  # an unknown split, or no files of data
        raise InputError(f"cannot read data={origin.name} from {where}: {_line(error)}; check data.split=") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:  # an unreachable hub is an OSError
        place = path or f"{where} of the hub"
        raise InputError(
            f"data={origin.name} needs {place}, which is not available ({_line(error)}); "
            "give a file with data.path=FILE"
        ) from error
    for k in _order(len(rows), seed):
        yield f"{split}-{k}", f"{where} {split} row {k}", lambda k=k: rows[k]  # type: ignore[misc]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
