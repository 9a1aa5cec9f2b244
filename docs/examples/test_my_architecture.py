"""Does an architecture keep the contract? Change the model type and the settings to those of yours."""

from __future__ import annotations

from transformers import PreTrainedModel

from tests.contracts.architecture import EssentialContract
from tests.toys import build


class TestMyArchitecture(EssentialContract):
    """Skipping nothing gives the model's logits, and any skip set under any stop rule leaves the output as it is."""

    n_random = 4

    def make(self, attention: str) -> PreTrainedModel:
        """A tiny float64 model of noise; the vocabulary is that of the toys."""
        return build("llama", attention, num_hidden_layers=3)
