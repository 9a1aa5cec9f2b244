"""An arm whose draft changes while it decodes, and the files in which it keeps what it learns from prompt to prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.evaluation.arms import Arm, DraftArm
from experiments.results.online_files import (
    ONLINE,
    STEPS,
    append_step,
    read_learnt,
    read_steps,
    trials_of,
    write_learnt,
)
from experiments.results.run_writer import new_folder
from search.online.study import OnlineStudy
from selfspec.drafters.online import OnlineDraft
from selfspec.engine.trace import DecodeResult
from selfspec.errors import InputError
from selfspec.records import run_files
from selfspec.records.names import path_part


@dataclass
class OnlineArm(DraftArm):
    """A draft arm with an online searcher. Its first call is a warm-up, from which nothing is learnt.

    Attributes:
        online: settings of the searcher, as plain values.
        is_warm: whether the warm-up is over.
    """

    online: Mapping[str, Any] = field(default_factory=dict)
    is_warm: bool = False

    @property
    def searcher(self) -> Any:
        """The searcher, with what it has learnt."""
        drafter: Any = self.speculator.drafter
        while not isinstance(drafter, OnlineDraft):
            drafter = drafter.inner
        return drafter.searcher

    @property
    def about(self) -> dict[str, Any]:
        """The draft that it begins with, and the settings of the searcher."""
        return {**super().about, "online": dict(self.online)}

    def __call__(self, prompts: Sequence[list[int]], *, first_row: int = 0) -> list[DecodeResult]:
        """Decode the prompts, and learn from them unless this is the warm-up."""
        self.searcher.is_learning = self.is_warm
        self.is_warm = True
        return super().__call__(prompts, first_row=first_row)


class OnlineFiles:
    """What the online arms of a run learn, in its folder; a study of each lies among the searches.

    Args:
        folder: folder of the run. If it holds what the arms have learnt, they go on with it.
        arms: arms of the run, online or not.
        outputs: folder of all runs.
        name: name of the run.
        config: configuration of the run, YAML.
        overrides: settings from the command line.
        provenance: of the run; the studies are described by it.

    Raises:
        InputError: if the folder holds what another searcher learnt.
    """

    def __init__(
        self,
        folder: Path,
        arms: Sequence[Arm],
        *,
        outputs: Path,
        name: str,
        config: str,
        overrides: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        self._arms = {arm.name: arm for arm in arms if isinstance(arm, OnlineArm)}
        self._file, self._steps = folder / ONLINE, folder / STEPS
        known = read_learnt(self._file) if self._file.is_file() else {}
        run_files.drop_partial_line(self._steps)
        steps = read_steps(self._steps)
        self._n_written = dict.fromkeys(self._arms, 0)
        self._folders: dict[str, Path] = {}
        self._studies: dict[str, OnlineStudy] = {}
        for arm in self._arms.values():
            searcher, body = arm.searcher, known.get(arm.name)
            if body is not None:
                if body["searcher"] != arm.online["name"]:
                    raise InputError(f"{self._file}: {arm.name} was online={body['searcher']}; start another run")
                trials = trials_of(steps.get(arm.name, []))
                searcher.restore(body["state"], trials)
                self._n_written[arm.name] = len(trials)
                self._folders[arm.name] = folder / body["study"]
            else:
                about = {"searcher": f"online {arm.online['name']}", "objective": searcher.objective}
                facts = {k: v for k, v in provenance["run"].items() if k != "arms"} | about | {"stream": folder.name}
                of_arm = {**provenance, "run": facts}
                self._folders[arm.name] = new_folder(
                    outputs,
                    "search",
                    path_part(f"{name}-{arm.name}".replace(" ", "-").replace("/", "-"), "name"),
                    config=f"# what {arm.name} tried while decoding\n{config}",  # of its own digest, so of its own id
                    overrides=list(overrides),
                    provenance_of_run=of_arm,
                )
            study = OnlineStudy(
                self._folders[arm.name],
                n_layers=arm.decoder.n_layers,
                arms=list(getattr(searcher, "arms", ())),
            )
            study.add(searcher.progress.trials[study.n_trials :])
            self._studies[arm.name] = study
        if self._arms:
            self.write()

    def told(self, row: Mapping[str, Any]) -> None:
        """An answer's row was written: what its arm has learnt by then is written as well."""
        if row["arm"] in self._arms:
            self.write(str(row["arm"]))

    def write(self, name: str | None = None) -> None:
        """Write what one arm, or every arm, has learnt."""
        for arm in self._arms.values() if name is None else [self._arms[name]]:
            progress = arm.searcher.progress
            new = progress.trials[self._n_written[arm.name] :]
            append_step(self._steps, arm=arm.name, progress=progress.to_dict(), trials=new)
            self._n_written[arm.name] = len(progress.trials)
            self._studies[arm.name].add(new)
        write_learnt(self._file, {name: self._body(arm) for name, arm in self._arms.items()})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the studies as finished; `summary` holds what the run says of every arm."""
        for name, study in self._studies.items():
            run_files.write_json(self._folders[name] / run_files.SUMMARY, {**study.summary(), **summary})

    def _body(self, arm: OnlineArm) -> dict[str, Any]:
        where = self._folders[arm.name].resolve()
        study = Path("..") if not where.exists() else _relative(where, self._file.parent.resolve())
        return {"searcher": arm.online["name"], "study": str(study), "state": arm.searcher.state()}


def _relative(path: Path, base: Path) -> Path:
    """The path from a folder to another one, so that the outputs can be moved as a whole."""
    up = next(parent for parent in [base, *base.parents] if path.is_relative_to(parent))
    return Path(*[".."] * len(base.relative_to(up).parts), path.relative_to(up))
