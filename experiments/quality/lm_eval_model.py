"""A model for lm-evaluation-harness that decodes its tasks with a draft; the harness judges the answers.

    model = DraftedLM("FOLDER", draft="RUN")
    lm_eval.simple_evaluate(model=model, tasks=["gsm8k"], limit=50)

The module knows the harness's model class and `selfspec.hf`. It must not know tasks or metrics.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.functional import pad

from selfspec.errors import InputError
from selfspec.hf import as_custom_generate
from selfspec.speculator import DraftLike
from selfspec.stopping import StopPolicy

# B rows, T tokens


class DraftedLM(HFLM):  # type: ignore[misc]  # the harness is untyped here
    """The harness's Hugging Face model with drafts and verification: it generates equal texts in fewer passes.

    Tasks that compare likelihoods generate no text, so the draft has no effect on them. The prompts of a batch are
    decoded one after the other, because the harness's stop sequences count from one common length.

    Args:
        pretrained: a model in eval mode, its name on the hub, or its folder.
        draft, stop, lookup: see `Speculator`; the folder of a search is enough.
        **settings: settings of `HFLM`: tokenizer, device, dtype, batch_size, ...

    Raises:
        InputError: for an encoder-decoder model, and at the first prompt if there is no such draft.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        draft: DraftLike,
        stop: StopPolicy | None = None,
        lookup: bool | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(pretrained, **settings)
        if self.backend != "causal":
            raise InputError(f"{type(self.model).__name__} has an encoder; drafts are for decoder-only models")
        self._decode = as_custom_generate(draft, stop=stop, lookup=lookup)

    def _model_generate(  # called by HFLM.generate_until
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **settings: Any
    ) -> Tensor:
        width = context.shape[1]
        rows = []
        for ids_T, mask_T in zip(context, attention_mask.bool(), strict=True):
            prompt_1T = ids_T[mask_T].unsqueeze(0)
            n_padding = width - prompt_1T.shape[1]
            found_1T = super()._model_generate(
                prompt_1T,
                max_length - n_padding,
                stop,
                attention_mask=torch.ones_like(prompt_1T),
                custom_generate=self._decode,
                **settings,
            )
            rows.append(found_1T[0, prompt_1T.shape[1] :])
        longest = max(map(len, rows))
        filled = [pad(row, (0, longest - len(row)), value=self.tokenizer.pad_token_id) for row in rows]
        return torch.cat([context, torch.stack(filled)], dim=1)
