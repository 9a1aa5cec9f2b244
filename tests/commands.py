"""Commands as a user types them, run inside the test's own process; a tiny model folder and prompts to run them on."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experiments.cli import main
from tests import toys

EOS = "<eos>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} A:{% endif %}"
N_LAYERS, CONTEXT = 4, 96
PROMPTS = ("one two", "red, green", "a b c d e", "why?", "def f(x):", "x = [1, 2]", "Ja, näe", "the end")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left on the terminal, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """Standard error without what is told of the model while it loads, and of the machine."""
        return [line for line in self.err.splitlines() if not line.startswith(("dtype ", "measuring ", "busy machine"))]

    @property
    def run(self) -> Path:
        """The run folder that it named."""
        (folder,) = (line.removeprefix("run: ") for line in self.out.splitlines() if line.startswith("run: "))
        return Path(folder)


def command(*words: str) -> Ran:
    """`selfspec WORDS`, without a new process."""
    out, err = io.StringIO(), io.StringIO()
    root, argv, path = logging.getLogger(), sys.argv, sys.path[:]
    handlers, level = root.handlers[:], root.level
    status = 0
    try:
        sys.argv = ["selfspec", *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
        sys.path[:] = path
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.set_num_threads(1)
        GlobalHydra.instance().clear()
    return Ran(status, out.getvalue(), err.getvalue())


def write_model(folder: Path, *, n_layers: int = N_LAYERS) -> Path:
    """A tiny Llama with a byte-level tokenizer, as `save_pretrained` writes it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([EOS, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    model = toys.build(
        "llama",
        num_hidden_layers=n_layers,
        vocab_size=1 + len(alphabet),
        max_position_embeddings=CONTEXT,
        eos_token_id=0,
    )
    model.save_pretrained(folder)
    return folder


def write_prompts(file: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    """A JSON-lines file of prompts."""
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return file
