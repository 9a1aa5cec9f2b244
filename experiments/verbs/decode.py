"""selfspec decode: stream one answer, with a colour for the source of each token, and compare with plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from experiments.builders import build
from experiments.builders.build_control import control
from experiments.builders.build_online import around, is_online, online_draft
from experiments.results.locate_draft import locate_draft
from experiments.terminal.progress import Progress
from selfspec.answer_text import context, is_unfinished, text_after
from selfspec.data.prompts import encode
from selfspec.data.task import Example
from selfspec.drafters.build import build_drafter
from selfspec.drafters.online import OnlineDraft
from selfspec.engine.decode import Ending, Kind, autoregress, speculate
from selfspec.engine.trace import DecodeResult
from selfspec.errors import InputError
from selfspec.measure.exactness import compare
from selfspec.measure.metrics import Timed, acceptance, ratio, tokens_per_round, tokens_per_s
from selfspec.measure.stopwatch import Stopwatch

# three hues that colour-blind readers can tell apart on dark and on light terminals
STYLES: dict[Kind, str] = {"accepted": "bright_blue", "correction": "yellow", "bonus": "bright_magenta"}


def decode(cfg: DictConfig, overrides: list[str], say: Callable[[str], None]) -> None:
    """Decode `cfg.prompt`."""
    if not cfg.prompt:
        raise InputError('decode needs a prompt: selfspec decode prompt="..."')
    loaded = build.model(cfg, phase=Progress())
    decoder = loaded.decoder
    (prompt,) = encode(
        loaded.tokenizer,
        [Example("prompt", str(cfg.prompt))],
        chat=cfg.data.chat and bool(loaded.tokenizer.chat_template),
        template=build.template(cfg),
        context_length=decoder.context_length,
        max_new_tokens=cfg.max_new_tokens,
    )
    draft = locate_draft(str(cfg.skip), Path(cfg.paths.outputs))
    policy, how, ending = build.stop(cfg, draft), build.sampling(cfg), build.ending(cfg, loaded)
    lookup = build.searched(draft).get("lookup") if cfg.lookup == "searched" else cfg.lookup
    chosen = build.spec(cfg, draft, loaded, policy, lookup=lookup, drafter=build.own_drafter(cfg), tree=build.tree(cfg))
    changing = (
        online_draft(cfg, cfg.online, loaded, chosen, Stopwatch(decoder.device)) if is_online(cfg.online) else None
    )
    drafter = build_drafter(around(cfg.online, chosen), decoder, instead=changing)
    warm = Ending(2)
    autoregress(decoder, [prompt.ids], ending=warm)
    state = control(cfg, loaded, drafter, phase=Progress())
    with _not_learning(changing):
        speculate(decoder, [prompt.ids], drafter=drafter, stops=[policy.begin()], ending=warm)

    # colours go to terminals only, and NO_COLOR switches them off there too
    console = Console(highlight=False, soft_wrap=True)
    stream = _Stream(loaded.tokenizer, console, prompt.ids)
    (result,) = speculate(
        decoder,
        [prompt.ids],
        drafter=drafter,
        stops=[policy.begin()],
        ending=ending,
        sampling=how,
        listener=stream.put,
        control=state,
    )
    stream.end()
    if console.is_terminal and not console.no_color:
        legend = Text("accepted", STYLES["accepted"])
        legend.append(" · ", "default").append("correction", STYLES["correction"])
        console.print(legend.append(" · ", "default").append("bonus", STYLES["bonus"]))
    say(_speed("draft and verify", result))
    say(
        f"  skip={chosen.plan}, stop={build.stop_name(policy)}: "
        f"acceptance {acceptance(result.accepted, result.drafted):.3f}, "
        f"{tokens_per_round(result.accepted, len(result.rounds)):.2f} tokens per round"
    )
    if changing is not None:
        say(_learnt(cfg.online.name, changing.searcher, result))
    if cfg.compare:
        (plain,) = autoregress(decoder, [prompt.ids], ending=ending, sampling=how)
        say(_speed("plain decoding", plain))
        if not how.do_sample:
            same = compare(decoder, prompt.ids, plain.tokens, result.tokens)
            gain = ratio(_rate(result), _rate(plain))
            where = "" if same.gap is None else f" at token {same.first_divergence}, top-2 gap {same.gap:.4f}"
            say(f"speedup {gain:.2f}x on this one prompt; output {same.verdict.replace('_', '-')}{where}")


@contextmanager
def _not_learning(online: OnlineDraft | None) -> Iterator[None]:
    """A context in which an online draft stays as it is and learns nothing: the warm-up."""
    searcher: Any = online.searcher if online else SimpleNamespace()
    searcher.is_learning = False
    try:
        yield
    finally:
        searcher.is_learning = True


def _learnt(name: str, searcher: Any, result: DecodeResult) -> str:
    """What an online searcher did during an answer."""
    progress, rounds = searcher.progress, len(result.rounds)
    changes = sum(a.version != b.version for a, b in pairwise(result.rounds))
    last = result.rounds[-1].version if rounds else "none"
    return (
        f"  online={name}: {len(progress.trials)} trials in {progress.spent_s:.2f} s of the decoding; the draft "
        f"changed {changes} times in {rounds} rounds, the last one is {last!r}"
    )


def _rate(result: DecodeResult) -> float:
    return tokens_per_s([Timed(result.total_s - result.prefill_s, len(result.tokens) - 1)])


def _speed(what: str, result: DecodeResult) -> str:
    seconds = result.total_s - result.prefill_s
    return (
        f"{what}: {_rate(result):.1f} tokens/s ({len(result.tokens)} tokens in {seconds:.2f} s, "
        f"after {result.prefill_s:.2f} s for the prompt; ended by {result.finish})"
    )


class _Stream:
    """Writes the text of tokens at once; a character of several tokens waits for the last of them."""

    def __init__(self, tokenizer: Any, console: Console, prompt_ids: list[int]) -> None:
        self._tokenizer, self._console = tokenizer, console
        self._before = context(tokenizer, prompt_ids)
        self._ids: list[int] = []
        self._written = ""

    def put(self, row: int, tokens: list[int], kinds: list[Kind]) -> None:
        for token, kind in zip(tokens, kinds, strict=True):
            self._ids.append(token)
            text = text_after(self._tokenizer, self._before, self._ids)
            if is_unfinished(text):
                continue
            self._console.print(Text(text[len(self._written) :], STYLES[kind]), end="")
            self._written = text

    def end(self) -> None:
        rest = text_after(self._tokenizer, self._before, self._ids)[len(self._written) :]
        self._console.print(rest)
