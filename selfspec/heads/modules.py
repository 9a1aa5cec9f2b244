"""What is trained for drafts, and every draft head, which reads the target's hidden states and drafts token by token.

Slot i of a text pairs the hidden states at token i with the embedding of token i + 1, so a slot exists as soon as the
target has chosen the next token. Depth 0 at slot i predicts token i + 2, and depth d the token after d drafted ones.
The output of a head enters the target's own output head, which stays as it is, as does the embedding.
"""

# B rows, T slots, S tokens of a text (T + 1), D hidden size

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from selfspec.errors import InputError, unknown_name
from selfspec.heads.layer import LayerSize
from selfspec.heads.trained import OWN, TrainedHead
from selfspec.models.decoder import Decoder
from selfspec.skipping.plan import DraftPlan

KINDS: dict[str, type[DraftModule]] = {}
"""Classes of heads by name; each registers itself."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """The output of all slots at one depth, for training.

    Attributes:
        to_head: what enters the output head, [B, T, D]; slot i predicts token i + 2.
        feature: estimate of the hidden state at token i + 1, [B, T, D]; None if the head makes none.
        refined: what enters the output head after a second look, [B, T, D], which is trained as well; None if the head
            takes none.
    """

    to_head: Tensor
    feature: Tensor | None = None
    refined: Tensor | None = None


class Trainable(nn.Module, ABC):
    """What is trained: a draft head, or parts that stand in for skipped sublayers. Its parameters are trained.

    Attributes:
        layers: layers of the target whose hidden states it reads; -1: the input of the output head.
        max_depth: the most tokens it can draft; None: any number.
        drafts_untrained: whether it drafts well enough before training to be judged.
    """

    layers: tuple[int, ...]
    max_depth: int | None = None
    drafts_untrained: ClassVar[bool] = False

    @abstractmethod
    def predict(
        self, text_BS: Tensor, features: Sequence[Tensor], embed: Callable[[Tensor], Tensor], n_depths: int
    ) -> list[Predicted]:
        """All slots at depths 0 to n_depths - 1, as drafting would compute them if every drafted token is right.

        Args:
            text_BS: tokens; slot i pairs tokens i and i + 1.
            features: hidden states [B, T, D] after each of `layers`.
            embed: from token ids [B, T] to embeddings [B, T, D].
            n_depths: number of depths.
        """

    @abstractmethod
    def into(self, plan: DraftPlan) -> DraftPlan:
        """The plan with what was trained; its head, precision and memory stay."""


class DraftModule(Trainable):
    """A draft head. Its constructor takes `size` and keyword settings, which are kept in `settings`.

    Attributes:
        kind: name of the class in files.
        settings: settings that rebuild it.
    """

    kind: ClassVar[str]
    settings: dict[str, Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    @abstractmethod
    def begin(self) -> Any:
        """The state of a new row."""

    @abstractmethod
    def extend(
        self, states: Sequence[Any], features: Sequence[Tensor], embeds_1ND: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Add slots of accepted tokens to several rows, and forget their drafted ones.

        Args:
            states: of the rows; they change.
            features: hidden states [1, N, D] after each of `layers`, those of a row one after another.
            embeds_1ND: embeddings of the next tokens.
            lengths: slots of each row, at least 1; they sum to N.

        Returns:
            What enters the output head at depth 0 of each row's last slot, [B, D].
        """

    @abstractmethod
    def step(self, states: Sequence[Any], parents: Sequence[Sequence[int]], embeds_ND: Tensor, depth: int) -> Tensor:
        """The next depth after drafted tokens of several rows: one for each row in a chain, a level in a tree.

        Args:
            states: of the rows; they change.
            parents: of each row the parents of its new tokens: index among its tokens since `extend`, or `ROOT`.
            embeds_ND: embeddings of the new tokens, those of a row one after another.
            depth: how many drafted tokens lead to each, itself included; from 1 on.

        Returns:
            What enters the output head after each of them, [N, D].
        """

    @abstractmethod
    def unroll(self, features: Sequence[Tensor], embeds_BTD: Tensor, n_depths: int) -> list[Predicted]:
        """All slots at depths 0 to n_depths - 1, as drafting would compute them if every drafted token is right.

        Args:
            features: hidden states [B, T, D] after each of `layers`.
            embeds_BTD: embeddings of the next tokens.
            n_depths: number of depths.
        """

    def predict(
        self, text_BS: Tensor, features: Sequence[Tensor], embed: Callable[[Tensor], Tensor], n_depths: int
    ) -> list[Predicted]:
        """See `Trainable.predict`; a head reads hidden states and the next token, and no other token."""
        return self.unroll(features, embed(text_BS[:, 1:]), n_depths)

    def into(self, plan: DraftPlan) -> DraftPlan:
        """See `Trainable.into`."""
        return replace(plan, trained=self.value())

    def value(self) -> TrainedHead:
        """The head as a value, in the precision of its weights."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}
        return TrainedHead(self.kind, self.settings, weights)


def size_of(decoder: Decoder, settings: Mapping[str, Any] | None = None) -> LayerSize:
    """Sizes of the layers of a head: the target's, unless its settings say otherwise.

    Args:
        decoder: the target.
        settings: of the head; `mlp` is the inner size of its MLP, `layer` any sizes of its layer by name.
    """
    own = {"mlp": None, "layer": None} | dict(settings or {})
    config = decoder.config
    n_heads = int(config.num_attention_heads)
    hidden = int(config.hidden_size)
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    size = LayerSize(
        hidden=hidden,
        mlp=own["mlp"] or int(getattr(config, "intermediate_size", None) or 4 * hidden),
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        head_size=int(getattr(config, "head_dim", None) or hidden // n_heads),
        theta=float(rope.get("rope_theta", 10000.0)),
        eps=float(getattr(config, "rms_norm_eps", 1e-6)),
    )
    return replace(size, **own["layer"] or {})


def build_module(kind: str, size: LayerSize, settings: Mapping[str, Any]) -> DraftModule:
    """A new head with random weights.

    Raises:
        InputError: if the kind or a setting is unknown or impossible.
    """
    import selfspec.heads.all_kinds  # noqa: F401  # whose modules register themselves

    if kind not in KINDS:
        raise unknown_name("head", kind, sorted(KINDS))
    try:
        return KINDS[kind](size, **settings)
    except TypeError as error:
        raise InputError(f"the head {kind} cannot be made of {dict(settings)} ({error})") from None


def module_of(head: TrainedHead, decoder: Decoder) -> DraftModule:
    """The module of a trained head, in the dtype and on the device of the target.

    Raises:
        InputError: if its weights do not fit the target.
    """
    module = build_module(head.kind, size_of(decoder, head.settings), head.settings)
    try:
        module.load_state_dict({name: tensor for name, tensor in head.weights.items() if name not in OWN})
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"the weights of the head {head.kind} are not for this model ({why}); train it again"
        ) from None
    return module.to(decoder.device, decoder.dtype).eval().requires_grad_(False)
