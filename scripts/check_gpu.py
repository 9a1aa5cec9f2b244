"""What the engine does by graphs on a GPU: is it exact, how fast is it beside transformers, what does a draft cost?

Usage: scripts/check_gpu.sh [--minutes 8] [--carried DIR] [--keep DIR] [--only SECTION ...] [--device cpu --toy]

Sections run in the order of their importance, each skips itself when its time would not suffice, and every result is
written to $OUT/check_gpu.json at once, so that what is cut short loses nothing. Without weights (`--model`, or pieces
of `pack_for_gpu.py` in `--carried` and `--keep`) a model of random weights is made in SmolLM2-135M's shape: times and
exactness mean the same, acceptance does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import gpu_pieces
from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from search import cost, device_costs
from selfspec import exactness
from selfspec.attention import GROUPED
from selfspec.decode import Ending, autoregress, speculate
from selfspec.draft import Drafter
from selfspec.graphed import GraphedDecoder
from selfspec.lookup import LookupDraft
from selfspec.model import Decoder
from selfspec.plan import DraftPlan
from selfspec.skip import SkipSet, deepest_attention, evenly_spaced
from selfspec.stop import Fixed
from selfspec.timing import Stopwatch, device_seconds
from selfspec.trace import DecodeResult

N_DRAFT = 4
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": SMOLLM2,
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    },
    "llama-3.2-3b": {
        "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "tie_word_embeddings": True, "max_position_embeddings": 4096,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    },
}  # fmt: skip
TOY = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip


@dataclass
class Check:
    """What was asked for, what was found so far, and how much time is left."""

    asked: argparse.Namespace
    out: Path
    device: torch.device
    began: float = field(default_factory=time.monotonic)
    found: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        return self.asked.minutes * 60 - (time.monotonic() - self.began)

    def keep(self, section: str, name: str, value: Any, shown: str | None = None) -> None:
        """Write a result at once, and a line of the last table."""
        self.found.setdefault(section, {})[name] = value
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "check_gpu.json").write_text(json.dumps(self.found, indent=1, default=str) + "\n")
        if shown is not None:
            self.lines.append((f"{section}: {name}", shown))
            print(f"[{time.monotonic() - self.began:5.0f} s] {section}: {name}: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny settings, to see that every section runs")
    parser.add_argument("--model", type=Path, default=os.environ.get("SELFSPEC_GPU_MODEL"), help="a local folder")
    parser.add_argument("--carried", type=Path, help="pieces that came with this call; copied to --keep")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/selfspec_pieces"), help="where pieces stay")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), help="sections to run; all without it")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "outputs/check_gpu")))
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), help="models of the cost tables")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    check = Check(asked, asked.out, torch.device(asked.device))
    if check.device.type == "cpu":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    if asked.carried and not gpu_pieces.keep(asked.carried, asked.keep):
        print(f"kept the pieces in {asked.keep}; the rest is still to come")
    check.keep("environment", "machine", environment(check.device), "")
    for name, (needed_s, section) in SECTIONS.items():
        if asked.only and name not in asked.only:
            continue
        if check.left_s < (0 if asked.toy else needed_s):
            check.keep(name, "skipped", f"{check.left_s:.0f} s left, {needed_s} s needed", "skipped: no time left")
            continue
        begin = time.monotonic()
        try:
            with limit(max(1.0, check.left_s)):
                section(check)
        except BaseException as error:  # what one section meets must not cost the others
            if isinstance(error, KeyboardInterrupt):
                raise
            check.keep(name, "error", traceback.format_exc(), f"{type(error).__name__}: {str(error)[:160]}")
        check.keep(name, "seconds", time.monotonic() - begin)
        free_memory()
    width = max(len(name) for name, _ in check.lines)
    print("\n" + "\n".join(f"{name:{width}}  {shown}" for name, shown in check.lines if shown))


def environment(device: torch.device) -> dict[str, Any]:
    import transformers

    found: dict[str, Any] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_gb": properties.total_memory / 2**30, "cuda": torch.version.cuda}
    print(found)
    return found


# Models and prompts


def weights_folder(check: Check) -> Path | None:
    keep = check.asked.keep
    return keep if not check.asked.toy and gpu_pieces.is_whole(keep) else None


def small_model(check: Check, dtype: torch.dtype) -> Any:
    """SmolLM2 with its weights where they are there, else with random ones in its shape."""
    pieces = weights_folder(check)
    if check.asked.model:
        model = AutoModelForCausalLM.from_pretrained(check.asked.model, dtype=dtype).to(check.device)
    elif pieces:
        body = json.loads((pieces / gpu_pieces.CONFIG).read_text())
        body.pop("quantization_config", None)
        model = built(check, AutoConfig.for_model(body.pop("model_type"), **body), dtype)
        missing, unexpected = model.load_state_dict(gpu_pieces.read_weights(pieces, dtype), strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        model.tie_weights()
    else:
        settings = dict(TOY if check.asked.toy else SMOLLM2)
        model = built(check, AutoConfig.for_model(settings.pop("model_type"), **settings), dtype)
    check.found["environment"]["weights"] = (
        str(check.asked.model) if check.asked.model else "pieces" if pieces else "random"
    )
    return model.eval()


def built(check: Check, config: Any, dtype: torch.dtype) -> Any:
    """A model of random weights, made where it is to lie."""
    with torch.device(check.device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(check.device).eval()


def decoders(check: Check, model: Any, **settings: Any) -> tuple[Decoder, GraphedDecoder]:
    """The plain decoder and the one by graphs, both attending by groups."""
    with contextlib.suppress(ValueError):
        model.set_attn_implementation(GROUPED)
    decoder = Decoder(model)
    return decoder, GraphedDecoder(decoder, **settings)


def prompts_of(check: Check, decoder: Decoder, n: int) -> list[list[int]]:
    pieces = weights_folder(check)
    if pieces:
        return [ids[:400] for ids in gpu_pieces.read_prompts(pieces)[:n]]
    rng = torch.Generator().manual_seed(1)
    vocab = int(decoder.config.vocab_size)
    return [torch.randint(vocab, (24 + 9 * i,), generator=rng).tolist() for i in range(n)]


def of_one_length(prompts: list[list[int]]) -> list[list[int]]:
    """Cut in the middle to the shortest: a compiled `generate` would compile anew for every length."""
    n = min(map(len, prompts))
    head = min(4, n // 2)
    return [[*ids[:head], *ids[len(ids) - n + head :]] for ids in prompts]


def skip_sets(decoder: Decoder) -> dict[str, SkipSet]:
    n = decoder.n_layers
    if n < 24:
        texts = ("none", "m1", "a0 m0", "a1", "a0-2 m0-2")
        return {text: SkipSet.parse(text, n) for text in texts}
    return {
        "none": SkipSet(n),
        "a13,22 m20": SkipSet.parse("a13,22 m20", n),
        "a third of the layers": evenly_spaced(n, n // 3),
        "half of the attention": deepest_attention(n, n // 2),
        "two thirds of the layers": evenly_spaced(n, 2 * n // 3),
    }


def spec(
    decoder: Decoder, drafter: Drafter, prompts: Sequence[list[int]], n_new: int, n_draft: int = N_DRAFT
) -> list[DecodeResult]:
    stops = [Fixed(n_draft).begin() for _ in prompts]
    watch = Stopwatch(decoder.device)
    ending = Ending(n_new, frozenset())
    return speculate(decoder, prompts, drafter=drafter, stops=stops, ending=ending, stopwatch=watch)


# 1. Is it exact?


def lossless(check: Check) -> None:
    """float32: chains, plain streams, batches and trees against plain eager decoding, token for token."""
    dtype = torch.float64 if check.asked.toy else torch.float32
    decoder, graphed = decoders(check, small_model(check, dtype))
    n_new, n = (12, 3) if check.asked.toy else (64, 8)
    prompts = prompts_of(check, decoder, n)
    expected = [autoregress(decoder, [p], ending=Ending(n_new, frozenset()))[0].tokens for p in prompts]
    check.keep("lossless", "baseline", f"{n} prompts x {n_new} tokens, {dtype}", f"{n} prompts x {n_new}, {dtype}")

    def judge(name: str, found: list[list[int]]) -> None:
        verdicts = Counter(
            exactness.compare(decoder, p, a, b).verdict for p, a, b in zip(prompts, expected, found, strict=True)
        )
        check.keep("lossless", name, dict(verdicts), str(dict(verdicts)))

    plain = graphed.autoregress(prompts, ending=Ending(n_new, frozenset()))
    judge("plain by graphs", [r.tokens for r in plain])
    for name, skip in skip_sets(decoder).items():
        drafter = graphed.drafter(skip, needs_confidence=False)
        judge(f"chain, {name}", [spec(graphed, drafter, [p], n_new)[0].tokens for p in prompts])
        draft = graphed.bind(skip)
        judge(f"tree, {name}", [tree_decode(graphed, draft, p, n_new) for p in prompts])
    skip = skip_sets(decoder)["none" if check.asked.toy else "a13,22 m20" if decoder.n_layers >= 24 else "m1"]
    drafter = graphed.drafter(skip, needs_confidence=True)
    judge("a ragged batch of all prompts", [r.tokens for r in spec(graphed, drafter, prompts, n_new)])
    check.keep("lossless", "recordings", graphed.stage.recorder.n_recorded)


@torch.inference_mode()
def tree_decode(decoder: GraphedDecoder, draft: Any, prompt: list[int], n_new: int) -> list[int]:
    """Greedy decoding that verifies a tree a round: a drafted chain, and the draft's second choice beside its first."""
    device = decoder.device
    cache = decoder.new_cache(n_rows=1, capacity=len(prompt) + n_new + 8)
    logits = decoder.full(torch.tensor([prompt], device=device), starts=[0], cache=cache, n_logits=1)
    ids = [*prompt, int(logits[0, -1].argmax())]
    while len(ids) < len(prompt) + n_new:
        at = len(ids) - 1
        chain, second = [], 0
        for step in range(3):
            token = torch.tensor([[([ids[-1], *chain])[step]]], device=device)
            best = draft(token, starts=[at + step], cache=cache, n_logits=1)[0, -1].topk(2).indices.tolist()
            second = best[1] if step == 0 else second
            chain.append(best[0])
        tokens = [ids[-1], *chain, second]
        positions = [at, at + 1, at + 2, at + 3, at + 1]
        n_keys = at + len(tokens)
        seen = torch.zeros(1, 5, n_keys, dtype=torch.bool, device=device)
        seen[:, :, : at + 1] = True
        for i in range(1, 4):
            seen[0, i, at + 1 : at + 1 + i] = True
        seen[0, 4, at + 4] = True
        cache.set([at], len(tokens))
        keys = torch.tensor([[*range(at), *positions]], device=device)
        found = decoder.full.tree(
            torch.tensor([tokens], device=device), positions_BT=torch.tensor([positions], device=device),
            seen_BTS=seen, key_positions_BS=keys, cache=cache,
        )[0].argmax(-1).tolist()  # fmt: skip
        path, node = [], 0
        while True:
            token = found[node]
            path.append(token)
            following = [4] if node == 0 and token == second and token != chain[0] else []
            following += [node + 1] if node < 3 and token == chain[node] else []
            if not following:
                break
            if following[0] == 4:  # its key lies at another slot than a chain's would: written once more, in its place
                decoder.full(torch.tensor([[second]], device=device), starts=[at + 1], cache=cache, n_logits=1)
            node = following[0]
        ids += path
    return ids[len(prompt) : len(prompt) + n_new]


# 2. How fast is it?


def speed(check: Check) -> None:
    """bfloat16, one prompt after another: transformers' ways and ours, in turn; the median of the turns."""
    toy = check.asked.toy
    dtype = torch.float64 if toy else torch.bfloat16
    model, stock = small_model(check, dtype), small_model(check, dtype)
    decoder, graphed = decoders(check, model)
    n_new, repeats, n_prompts = (10, 2, 2) if toy else (96, 3, 3)
    prompts = of_one_length(prompts_of(check, decoder, n_prompts))
    forced = Ending(n_new, frozenset())
    stock.generation_config = type(stock.generation_config)(eos_token_id=None, pad_token_id=0, do_sample=False)

    def ours(drafter: Drafter, on: Decoder = graphed, k: int = N_DRAFT) -> Callable[[list[int]], DecodeResult]:
        return lambda ids: spec(on, drafter, [ids], n_new, k)[0]

    ways: dict[str, Callable[[list[int]], Any]] = {
        "generate, eager": lambda ids: generated(stock, ids, n_new, check.device),
        "plain, eager": lambda ids: autoregress(decoder, [ids], ending=forced)[0],
        "plain by graphs, a token at a time": lambda ids: autoregress(graphed, [ids], ending=forced)[0],
        "plain by graphs": lambda ids: graphed.autoregress([ids], ending=forced)[0],
        "prompt lookup by graphs": ours(LookupDraft()),
        "generate, prompt lookup": lambda ids: generated(
            stock, ids, n_new, check.device, prompt_lookup_num_tokens=N_DRAFT
        ),
    }
    for name, skip in skip_sets(decoder).items():
        ways[f"draft by graphs, {name}"] = ours(graphed.drafter(skip, needs_confidence=False))
    some = skip_sets(decoder)["m1" if decoder.n_layers < 24 else "a13,22 m20"]
    ways["generate, assisted"] = assisted(stock, some, n_new, check.device)
    extra = time.monotonic()
    with contextlib.suppress(TimeoutError):
        fused = try_fused(check, model, prompts[0], forced)
        if fused is not None:
            ways["plain by graphs, compiled"] = lambda ids: fused.autoregress([ids], ending=forced)[0]
            for name in ("none", next(n for n in skip_sets(decoder) if n != "none")):
                drafter = fused.drafter(skip_sets(decoder)[name], needs_confidence=False)
                ways[f"draft by graphs, compiled, {name}"] = ours(drafter, fused)
    check.keep("speed", "compiling ours, s", time.monotonic() - extra)
    compiled = try_compiled(check, stock, prompts, n_new)
    if compiled is not None:
        ways["generate, static cache + compile"] = compiled
    able = {}
    for name, way in ways.items():
        try:
            for ids in prompts:
                way(ids)
            able[name] = way
        except Exception as error:
            check.keep("speed", name, traceback.format_exc(), f"cannot run: {str(error)[:120]}")
    seconds: dict[str, list[float]] = {name: [] for name in able}
    outputs: dict[str, list[list[int]]] = {name: [] for name in able}
    results: dict[str, list[Any]] = {name: [] for name in able}
    for turn in range(repeats):
        names = list(able)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            total = 0.0
            for ids in prompts:
                found = able[name](ids)
                total += found.total_s - found.prefill_s
                if turn == 0:
                    outputs[name].append(found.tokens)
                    results[name].append(found)
            seconds[name].append(total)
        if check.left_s < 20 and not toy:
            break
    base = "plain by graphs" if "plain by graphs" in able else next(iter(able))
    for name in able:
        rates = [n_prompts * (n_new - 1) / s for s in seconds[name]]
        ratios = [b / s for b, s in zip(seconds[base], seconds[name], strict=True)]
        verdicts = Counter(
            exactness.compare(decoder, p, a, b).verdict
            for p, a, b in zip(prompts, outputs["plain, eager"], outputs[name], strict=True)
        )
        drafted = sum(getattr(r, "drafted", 0) for r in results[name])
        accepted = sum(getattr(r, "accepted", 0) for r in results[name])
        body = {
            "tokens_per_s": rates, "over_plain_by_graphs": ratios, "verdicts": dict(verdicts),
            "drafted": drafted, "accepted": accepted,
        }  # fmt: skip
        shown = f"{statistics.median(rates):8.1f} tokens/s, {statistics.median(ratios):.2f} x plain by graphs"
        shown += f", accepted {accepted / drafted:.2f}" if drafted else ""
        check.keep("speed", name, body, f"{shown}, {dict(verdicts)}")


@dataclass(frozen=True, slots=True)
class Generated:
    tokens: list[int]
    prefill_s: float
    total_s: float


def generated(model: Any, ids: list[int], n_new: int, device: torch.device, **more: Any) -> Generated:
    """`generate`'s tokens; its prefill is the time of the first tokens, less their share of the others' time.

    Both calls ask for as many tokens, since a static cache takes its length from that; the first is stopped early.
    """
    prompt = torch.tensor([ids], device=device)
    watch = Stopwatch(device)

    def seconds(n: int) -> tuple[Any, float]:
        stop = StoppingCriteriaList([Until(len(ids) + n)])
        begin = watch.now()
        with torch.inference_mode():
            output = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n_new, stopping_criteria=stop, **more
            )
        return output, watch.now() - begin

    first, first_s = seconds(1)
    output, total_s = seconds(n_new)
    n_first, n_all = (x.shape[1] - len(ids) for x in (first, output))
    each_s = max(1e-9, total_s - first_s) / max(1, n_all - n_first)
    return Generated([int(t) for t in output[0, len(ids) :]], first_s - each_s * (n_first - 1), total_s)


class Until(StoppingCriteria):
    """Stops at a length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), ids.shape[1] >= self.n, device=ids.device, dtype=torch.bool)


def assisted(stock: Any, skip: SkipSet, n_new: int, device: torch.device) -> Callable[[list[int]], Any]:
    """transformers' assisted generation with an assistant that shares the weights and leaves the same sublayers out."""
    assistant: Any = Decoder(stock).bind(skip).module
    assistant.generation_config = type(stock.generation_config)(
        num_assistant_tokens=N_DRAFT, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return lambda ids: generated(stock, ids, n_new, device, assistant_model=assistant)


def try_compiled(check: Check, stock: Any, prompts: list[list[int]], n_new: int) -> Callable[[list[int]], Any] | None:
    """`generate` with a static cache, whose forward transformers compiles; None if that took too long or failed."""
    if check.device.type != "cuda":
        check.keep("speed", "generate, static cache + compile", None, "not tried: no CUDA device")
        return None
    begin = time.monotonic()
    try:
        with limit(min(150.0, check.left_s - 100)):
            for ids in prompts:
                generated(stock, ids, n_new, check.device, cache_implementation="static")
    except BaseException as error:
        check.keep("speed", "generate, static cache + compile", traceback.format_exc(), f"given up: {error!r}"[:200])
        return None
    check.keep("speed", "compiling generate, s", time.monotonic() - begin)
    return lambda ids: generated(stock, ids, n_new, check.device, cache_implementation="static")


def try_fused(check: Check, model: Any, ids: list[int], forced: Ending) -> GraphedDecoder | None:
    """Ours with small operations compiled into one another inside the graphs; None if that failed."""
    if check.device.type != "cuda":
        return None
    try:
        with limit(min(120.0, check.left_s - 150)):
            fused = GraphedDecoder(Decoder(model), compile_pieces=True)
            fused.autoregress([ids], ending=forced)
        return fused
    except BaseException as error:
        check.keep("speed", "plain by graphs, compiled", traceback.format_exc(), f"given up: {error!r}"[:200])
        return None


# 3. What do more tokens cost, and what does a round cost beside its launches?


def verification(check: Check) -> None:
    """v(n)/v(1): the full forward of n tokens, by graphs and eagerly, and a round over the sum of its launches."""
    toy = check.asked.toy
    decoder, graphed = decoders(check, small_model(check, torch.float64 if toy else torch.bfloat16))
    sizes = [1, 2, 4] if toy else [1, 2, 4, 8, 16, 32, 64]
    contexts, rows = ([16], [1, 2]) if toy else ([128, 1024], [1, 8])
    for name, one in (("graphs", graphed), ("eager", decoder)):
        n_repeats = 2 if toy else 20 if name == "graphs" else 7
        costs = device_costs.forward_costs(one, rows=rows, tokens=sizes, contexts=contexts, repeats=n_repeats)
        check.keep("verification", f"seconds, {name}", [asdict(c) for c in costs])
        for r in rows:
            for c in contexts:
                found = {x.n_tokens: x.seconds for x in costs if (x.n_rows, x.context) == (r, c)}
                ratios = "  ".join(f"{n}: {found[n] / found[1]:.2f}" for n in sizes[1:])
                check.keep("verification", f"{name}, {r} rows, {c} before", found, f"{found[1] * 1e3:.3f} ms; {ratios}")
    for name, skip in list(skip_sets(decoder).items())[:3]:
        ratio = round_over_launches(graphed, skip, prompts_of(check, decoder, 2)[1], 24 if toy else 96)
        check.keep("verification", f"round / sum of its launches, {name}", ratio, f"{ratio['ratio']:.3f}")


def round_over_launches(graphed: GraphedDecoder, skip: SkipSet, ids: list[int], n_new: int) -> dict[str, float]:
    """Wall seconds of whole rounds over the device's seconds of the replays in them, the median of the rounds."""
    drafter = graphed.drafter(skip, needs_confidence=False)
    spec(graphed, drafter, [ids], n_new)  # records what there is to record
    recorder = graphed.stage.recorder
    play, replays, seconds = recorder.play, [], {}

    def timed(key: Any, make: Any, inputs: Any) -> Any:
        replays.append(key)
        found = play(key, make, inputs)
        if key not in seconds:
            copies = tuple(t.clone() for t in found)
            replay = recorder.replay_last
            seconds[key] = statistics.median(device_seconds(replay, device=graphed.device, repeats=12)[2:])
            for t, copy in zip(found, copies, strict=True):
                t.copy_(copy)
        return found

    recorder.play = timed
    try:
        spec(graphed, drafter, [ids], n_new)
    finally:
        recorder.play = play
    (result,) = spec(graphed, drafter, [ids], n_new)
    # Both runs decode the same, so the second's rounds consist of the first's replays: a chain and a verification each.
    chain = [seconds[k] for k in replays[0::2]]
    verify = [seconds[k] for k in replays[1::2]]
    rounds = [r.draft_s + r.verify_s for r in result.rounds]
    n = min(len(rounds), len(chain), len(verify))
    launches = [chain[i] + verify[i] for i in range(n)]
    ratio = statistics.median([rounds[i] / launches[i] for i in range(n)])
    return {"ratio": ratio, "round_s": statistics.median(rounds), "launches_s": statistics.median(launches)}


# 4. int8 and int4


def precisions(check: Check) -> None:
    """Rounded drafts on the device: against float64 products, beside the layer in its own dtype, and in a decode."""
    from selfspec import quantised

    dtype = torch.float32 if check.device.type == "cpu" else torch.bfloat16
    shapes = [(64, 96)] if check.asked.toy else [(576, 1536), (2048, 8192), (4096, 14336)]
    for precision in ("int8", "int4"):
        for n_in, n_out in shapes:
            linear = torch.nn.Linear(n_in, n_out, bias=False, device=check.device, dtype=dtype).requires_grad_(False)
            x = torch.randn(1, 1, n_in, device=check.device, dtype=dtype)
            name = f"{precision}, {n_in} to {n_out}"
            try:
                layer = quantised.round_linear(linear, precision)
                got, exact = layer(x).double(), linear.weight.double() @ x.double().flatten()
                error = float((got.flatten() - exact).norm() / exact.norm())
                plain_s, layer_s = (
                    device_costs.median_seconds(replayed(call, check.device), check.device, 20)
                    for call in (lambda linear=linear, x=x: linear(x), lambda layer=layer, x=x: layer(x))
                )
                body = {"relative_error": error, "plain_s": plain_s, "rounded_s": layer_s}
                shown = f"error {error:.4f}, {layer_s * 1e6:.1f} us ({plain_s * 1e6:.1f} in {dtype})"
                check.keep("precisions", name, body, shown)
            except Exception as error:
                check.keep("precisions", name, traceback.format_exc(), f"cannot run: {str(error)[:140]}")
    decoder, graphed = decoders(check, small_model(check, dtype))
    prompts, n_new = prompts_of(check, decoder, 2), 8 if check.asked.toy else 64
    skip = skip_sets(decoder)["m1" if decoder.n_layers < 24 else "a13,22 m20"]
    for precision in ("same", "int8", "int4"):
        try:
            drafter = graphed.drafter(DraftPlan(skip, precision=precision), needs_confidence=False)
            spec(graphed, drafter, prompts[:1], n_new)
            found = [spec(graphed, drafter, [p], n_new)[0] for p in prompts]
            rate = sum(len(r.tokens) - 1 for r in found) / sum(r.total_s - r.prefill_s for r in found)
            accepted = sum(r.accepted for r in found) / max(1, sum(r.drafted for r in found))
            check.keep("precisions", f"draft, {precision}", [rate, accepted], f"{rate:.1f} tokens/s, {accepted:.2f}")
        except Exception as error:
            check.keep("precisions", f"draft, {precision}", traceback.format_exc(), f"cannot run: {str(error)[:140]}")


def replayed(call: Callable[[], Any], device: torch.device) -> Callable[[], object]:
    """The call as a graph of 16 of it, or itself on a CPU."""
    if device.type != "cuda":
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        call()
    return graph.replay


# 5. What do drafts cost on this device?


def tables(check: Check) -> None:
    """Cost tables for shapes of several sizes, in bfloat16 with random weights: with and without graphs."""
    toy = check.asked.toy
    for name in ["toy"] if toy else check.asked.shapes:
        if check.left_s < 35 and not toy:
            check.keep("tables", name, "skipped", "skipped: no time left")
            continue
        settings = dict(TOY if toy else SHAPES[name])
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        try:
            decoder, graphed = decoders(check, built(check, config, torch.float64 if toy else torch.bfloat16))
            contexts, n_max = ((16, 48), 5) if toy else ((128, 1024), 21)
            begin = time.monotonic()
            table = device_costs.measure_by_graphs(
                graphed, contexts=contexts, max_tokens=n_max, repeats=2 if toy else 12
            )
            facts = {"contexts": contexts, "seconds": time.monotonic() - begin, "shape": SHAPES.get(name, TOY)}
            check.keep("tables", name, {"costs": table.as_dict(), "of": facts}, shown_table(table, decoder))
            if not toy:
                file = check.out / f"costs-{name}.yaml"
                file.write_text(as_group(name, table, environment(check.device)))
            if check.left_s > 60 or toy:
                grid = device_costs.forward_costs(
                    decoder, rows=[1] if toy else [1, 8], tokens=[1, 4], contexts=contexts[:1], repeats=2 if toy else 5
                )
                check.keep("tables", f"{name}, eager", [asdict(c) for c in grid], f"{grid[0].seconds * 1e3:.2f} ms")
            if check.left_s > 60 or toy:
                grid = device_costs.forward_costs(
                    graphed,
                    rows=[1, 2] if toy else [1, 8, 32],
                    tokens=[1, 4],
                    contexts=contexts[:1],
                    repeats=2 if toy else 10,
                )
                shown = ", ".join(f"{c.n_rows}x{c.n_tokens}: {c.seconds * 1e3:.2f} ms" for c in grid)
                check.keep("tables", f"{name}, rows x tokens by graphs", [asdict(c) for c in grid], shown)
            del decoder, graphed
        except Exception as error:
            check.keep("tables", name, traceback.format_exc(), f"{type(error).__name__}: {str(error)[:140]}")
        free_memory()


def as_group(name: str, table: cost.CostTable, machine: dict[str, Any]) -> str:
    """A file for `conf/costs/`: `costs=h100/NAME` then searches for this device anywhere."""
    settings = {
        "name": name, "path": None, "refresh": False, "contexts": list(table.contexts),
        "max_tokens": len(table.verify_s), "repeats": 12, "table": table.as_dict(),
    }  # fmt: skip
    body = "\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items())
    where = machine.get("device", machine["cpu"])
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    return (
        "# @package costs\n"
        f"# Measured by scripts/check_gpu.sh with graphs, in bfloat16, on {where} ({versions}).\n{body}\n"
    )


def shown_table(table: cost.CostTable, decoder: Decoder) -> str:
    n, context = decoder.n_layers, table.contexts[0]
    half = SkipSet(n, frozenset(range(0, n, 2)), frozenset(range(0, n, 2)))
    return (
        f"plain {table.plain_s(context) * 1e3:.2f} ms, attn {table.attn_s[0] * 1e6:.1f} us, mlp "
        f"{table.mlp_s * 1e6:.1f} us, base {table.base_s * 1e6:.0f} us, half skipped costs "
        f"{table.draft_cost(half, context):.2f}, v(8)/v(1) "
        f"{table.verification_s(8, context) / table.verification_s(1, context):.2f}, "
        f"round +{table.round_s * 1e6:.0f} us"
    )


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """A TimeoutError once so many seconds are over; limits nest."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"{seconds:.0f} s are over")

    began = time.monotonic()
    former = signal.signal(signal.SIGALRM, late)
    left, _ = signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, former)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, left - (time.monotonic() - began)) if left else 0)


def free_memory() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


SECTIONS: dict[str, tuple[int, Callable[[Check], None]]] = {
    "lossless": (40, lossless),
    "speed": (90, speed),
    "verification": (30, verification),
    "tables": (35, tables),
    "precisions": (20, precisions),
}


if __name__ == "__main__":
    main()
