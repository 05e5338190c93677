"""What a checkpoint is in memory: a model's shape, how it decodes, its weights, its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from runtime.errors import UserError
from runtime.text.tokenizer import read_engine

from .transformer.network import ModelConfig, Transformer


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the runtime has to know of a model beyond its weights; see `runtime.contract` for the meaning of each."""

    alignment: str
    attention: str
    shift: bool
    block: int
    canvas: int
    context: int
    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    gate: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be decoded: its shape, how it decodes, its weights by name, its tokenizer as JSON text.

    weights: of a directory, each is read when it is asked for, so take one at a time where the model may be large.
    """

    model: ModelConfig
    decoding: Decoding
    weights: Mapping[str, Tensor]
    tokenizer: str
    chat_template: str | None = None

    def build(self) -> Transformer:
        """The model in fp32, in evaluation mode. Raises UserError if weights and shape do not fit."""
        with torch.device("meta"):
            model = Transformer(self.model)
        # Always copies: what trains the model must not change the checkpoint.
        weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in self.weights.items()}
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the checkpoint's weights do not fit its config: {reason}") from None
        return model.eval()

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer; special-token strings inside a text are text to it. Raises UserError if it is none."""
        tokenizer = read_engine(self.tokenizer, "the checkpoint's tokenizer is damaged", "write it anew with train.*")
        tokenizer.encode_special_tokens = True
        return tokenizer

    def vocab(self) -> int:
        """How many ids count: embeddings are often padded, and an id behind the tokenizer's last is no token."""
        return min(self.model.vocab, max(self._ids()) + 1)

    def missing_ids(self) -> list[int]:
        """Ids below `vocab()` that are no token either, in order: some tokenizers leave gaps."""
        return sorted(set(range(self.vocab())) - self._ids())

    def _ids(self) -> set[int]:
        """The tokenizer's ids, and those that decoding needs."""
        special = {self.decoding.mask_id, self.decoding.pad_id, *self.decoding.eos_ids}
        return special | set(self.read_tokenizer().get_vocab(with_added_tokens=True).values())
