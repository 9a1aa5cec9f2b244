"""selfspec profile: measure the costs of drafts on this machine, and check predictions on random skip sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

from omegaconf import DictConfig, OmegaConf

from experiments.builders import build, build_control, build_costs
from experiments.results import figures
from experiments.results.run_writer import open_folder
from experiments.terminal.progress import Progress
from search.costs.measure import check, random_sets
from search.costs.table import CostTable
from search.job import COSTS
from selfspec.control import StepCosts
from selfspec.errors import InputError
from selfspec.measure.stopwatch import Stopwatch
from selfspec.records import run_files

CHECKS = "checks.jsonl"


def profile(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> Path:
    """Measure or read the cost table, and check it; return the run folder."""
    if cfg.check and build_costs.given_table(cfg) is not None:
        raise InputError(
            f"costs={cfg.costs.name} is a table of another device, and check={cfg.check} would time skip sets on this "
            "machine; check=0 shows the table"
        )
    outputs = Path(cfg.paths.outputs)
    run_files.make_writable(outputs)
    progress = Progress()
    loaded = build.model(cfg, phase=progress)
    table, path, is_new = build_costs.costs(cfg, loaded, phase=progress)
    # a table of another device, or an earlier file, comes without costs of batches
    is_here = build_costs.given_table(cfg) is None and not cfg.costs.path
    steps = build_control.step_costs(cfg, loaded, may_measure=is_here, phase=progress)
    place = str(path) if path else None
    facts = {"name": cfg.name, "model": cfg.model.name, "costs": place, **loaded.facts}
    config = OmegaConf.to_yaml(cfg, resolve=True)
    with open_folder(outputs, "profile", cfg.name, config=config, overrides=overrides, facts=facts) as folder:
        of_batches = {build_control.STEPS: steps.to_dict()} if steps else {}
        run_files.write_json(folder.path / COSTS, {"costs": table.to_dict(), **of_batches})
        say(_told(table))
        if steps:
            say(_told_of_batches(steps, table.contexts[0], list(cfg.costs.rows or (1,))))
        kept = place or f"{folder.path / COSTS}, not kept for other runs (paths.cache=null)"
        say(f"costs: {kept} ({'measured now' if is_new else 'measured before; costs.refresh=true measures anew'})")
        summary: dict[str, object] = {"verb": "profile", "costs": place, "check": None}
        if cfg.check:
            sets = random_sets(loaded.decoder.n_layers, cfg.check, cfg.seed)
            watch = Stopwatch(loaded.decoder.device)
            pairs = check(loaded.decoder, table, sets, **build_costs.measuring(cfg), stopwatch=watch, phase=progress)
            for skip, (predicted, measured) in zip(sets, pairs, strict=True):
                row = {"skip": str(skip), "n_skipped": len(skip), "predicted": predicted, "measured": measured}
                run_files.append_row(folder.path / CHECKS, row)
            figures.save(figures.cost_check(pairs), folder.path / "cost_check")
            errors = [predicted / measured - 1 for predicted, measured in pairs]
            worst = max(errors, key=abs)
            summary["check"] = {"n": len(errors), "worst": worst, "median": median(map(abs, errors))}
            say(
                f"predicted against measured cost of {len(sets)} random skip sets: "
                f"off by {median(map(abs, errors)):.1%} in the median, {worst:+.1%} at worst"
            )
            for skip, (predicted, measured) in zip(sets, pairs, strict=True):
                say(
                    f"  {len(skip):3d} skipped: {predicted:.3f} of a plain token predicted, {measured:.3f} measured, "
                    f"{predicted / measured - 1:+.1%}"
                )
        folder.finish(summary)
    say(f"run: {folder.path}")
    return folder.path


def _told(table: CostTable) -> str:
    first, last = table.contexts[0], table.contexts[-1]
    sizes = [n for n in (2, 4, 8, 16) if n <= len(table.verify_s)]
    verify, far = (
        ", ".join(f"{n}: {table.verification_s(n, c) / table.verification_s(1, c):.2f}" for n in sizes)
        for c in (first, last)
    )
    verify += f" (after {last}: {far})" if last > first else ""
    return (
        f"a plain token: {table.full_s[0] * 1e3:.2f} ms after {first} tokens, {table.full_s[-1] * 1e3:.2f} ms after "
        f"{last}\n"
        f"of a drafted one: attention {table.attn_s[0] * 1e3:.3f} ms a sublayer ({table.attn_s[-1] * 1e3:.3f} after "
        f"{last}), MLP {table.mlp_s * 1e3:.3f} ms a sublayer, head {table.head_s * 1e3:.2f} ms, embedding, norms and "
        f"the choice {max(0.0, table.base_s - table.head_s) * 1e3:.2f} ms\n"
        f"verifying n tokens, in plain tokens: {verify}; a round beside its forwards: {table.overhead_s * 1e3:.2f} ms"
    )


def _told_of_batches(steps: StepCosts, context: int, rows: list[int]) -> str:
    sizes = sorted({1, max(rows)})
    shown = ", ".join(
        f"{n} x {k}: {steps.verify_s(n, k, context) / steps.verify_s(1, 1, context):.2f}"
        for n in sizes
        for k in (1, 4, 8)
    )
    r2 = "unknown" if steps.r2 is None else f"{steps.r2:.3f}"
    return f"a step of rows x tokens, in plain tokens: {shown}; R² on held-out sizes {r2}"
