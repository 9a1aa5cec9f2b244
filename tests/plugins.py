"""A user's own folder: a stop rule, two searchers, a data set and a drafter, each a YAML file and a class."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "stop/mine.yaml": """
        _target_: my_rules.Patient
        max_draft: 3
        least: 0.01
    """,
    "searcher/mine.yaml": """
        defaults: [_base, _self_]
        name: mine
        n_trials: 4
        sampler:
          _target_: my_search.Downwards
          _partial_: true
    """,
    "searcher/priced.yaml": """
        defaults: [_base, _self_]
        name: priced
        n_trials: 4
        sampler:
          _target_: search.samplers.fixed_lists.Listed
          _partial_: true
        computed:
          _target_: my_search.cheapest
          _partial_: true
    """,
    "data/mine.yaml": """
        name: mine
        chat: true
        metric: null
        task:
          _target_: my_data.Counting
          n: 6
    """,
    "drafter/pairs.yaml": """
        _target_: my_drafts.Pairs
        depth: 2
    """,
    "my_drafts.py": """
        import torch

        from selfspec import BaseDrafter, Draft


        class Pairs(BaseDrafter):
            \"\"\"A chain of likeliest tokens, beside each the runner-up.\"\"\"

            is_replayable = True

            def __init__(self, forward, depth):
                self.forward, self.depth = forward, depth

            def propose(self, rows, *, cache):
                drafts = [Draft(parents=[], source=self.name) for _ in rows]
                last, at = [row.ids[-1] for row in rows], [-1] * len(rows)
                for step in range(self.depth):
                    if not any(step < row.limit for row in rows):
                        break
                    ids = torch.tensor(last, device=cache.device).unsqueeze(1)
                    starts = [len(row.ids) - 1 + step for row in rows]
                    best = self.forward(ids, starts=starts, cache=cache, n_logits=1)[:, -1].topk(2).indices.tolist()
                    for b, (row, draft) in enumerate(zip(rows, drafts)):
                        if step < row.limit:
                            draft.tokens += best[b]
                            draft.parents += [at[b], at[b]]
                            last[b], at[b] = best[b][0], len(draft.tokens) - 2
                            draft.n_forwards += 1
                return drafts
    """,
    "my_rules.py": """
        from dataclasses import dataclass, replace

        from selfspec.stopping import RuleState, StopRule


        @dataclass(frozen=True)
        class Patient(StopRule):
            max_draft: int
            least: float

            def begin(self, after=None):
                return Waiting(self)

            def variants(self):
                return [replace(self, max_draft=n) for n in range(1, self.max_draft)]


        @dataclass
        class Waiting(RuleState):
            rule: Patient

            def more(self, n_drafted, confidence):
                return n_drafted < self.rule.max_draft and confidence > self.rule.least
    """,
    "my_search.py": """
        from search.samplers.base import BitSampler, Exhausted
        from selfspec.skipping.skip_set import SkipSet


        class Downwards(BitSampler):
            def propose(self, known, order, rng):
                for i in reversed(range(len(order[0]))):
                    bits = tuple(j == i for j in range(len(order[0])))
                    if bits not in known:
                        return bits
                raise Exhausted


        def cheapest(decoder, references, *, costs):
            assert costs.plain_s(8) > 0 and references
            return [SkipSet.parse("a1-2 m2", decoder.n_layers)]
    """,
    "my_data.py": """
        from dataclasses import dataclass

        from selfspec.data.task import Example


        @dataclass
        class Counting:
            n: int
            name: str = "mine"
            version: str = "1"

            def examples(self, part):
                return [Example(f"{part}-{i}", f"{part} number {i}") for i in range(self.n)]

            def facts(self):
                return {"source": "counted"}
    """,
}


def write_plugins(folder: Path) -> Path:
    """The folder, with all of `FILES`."""
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        file.write_text("\n".join(line.removeprefix(" " * 8) for line in lines).rstrip() + "\n", encoding="utf-8")
    return folder
