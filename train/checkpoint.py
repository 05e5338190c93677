"""Holds a checkpoint in memory: the model's shape, decoding settings, weights and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from runtime.checked_fields import OBJECT, TEXT, one_of, row
from runtime.contract import MODES, TEMPERATURE, TOKEN, size
from runtime.errors import UserError, describe_error
from runtime.text.tokenizer import read_engine

from .transformer.network import ModelConfig, Transformer

MOST_IDS = 64  # maximum number of end tokens


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the runtime must know about a model besides its weights; `runtime.contract` explains each field."""

    alignment: Annotated[str, TEXT]
    attention: Annotated[str, TEXT]
    shift: bool
    block: Annotated[int, size("block")]
    canvas: Annotated[int, size("canvas")]
    context: Annotated[int, size("context")]
    mask_id: Annotated[int, TOKEN]
    eos_ids: Annotated[tuple[int, ...], row(TOKEN, f"1 to {MOST_IDS} token ids", MOST_IDS)]
    pad_id: Annotated[int, TOKEN]
    gate: Annotated[dict[str, Any], OBJECT]
    modes: Annotated[tuple[str, ...], row(one_of(MODES), f"a list of {', '.join(MODES)}", len(MODES))] = MODES[:1]
    decision_temperature: Annotated[float, TEMPERATURE] = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as files store them; default modes and temperature are left out, as in older files."""
        values = {**asdict(self), "eos_ids": list(self.eos_ids), "modes": list(self.modes)}
        if self.modes == MODES[:1]:
            del values["modes"]
        if self.decision_temperature == 1:
            del values["decision_temperature"]
        return values

    @property
    def has_cache(self) -> bool:
        """Returns whether the model has a KV cache, as in `runtime.contract`."""
        return self.attention != "full"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be decoded: its shape, decoding settings, weights by name, and tokenizer as JSON text.

    weights: those of a Hugging Face directory are read from disk on each access; if the model may be large, take one
    at a time.
    """

    model: ModelConfig
    decoding: Decoding
    weights: Mapping[str, Tensor]
    tokenizer: str
    chat_template: str | None = None

    def build(self) -> Transformer:
        """Builds the model in fp32, in evaluation mode. Raises UserError if weights and shape do not fit."""
        with torch.device("meta"):
            model = Transformer(self.model)
        # Always copies: training the model must not change the checkpoint.
        weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in self.weights.items()}
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            reason = describe_error(error)
            raise UserError(f"the checkpoint's weights do not fit its config: {reason}") from None
        return model.eval()

    def read_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer, which encodes special-token strings in a text as plain text.

        Raises UserError if the tokenizer is damaged.
        """
        tokenizer = read_engine(
            self.tokenizer, "the checkpoint's tokenizer is damaged", "write it again with blockstep train"
        )
        tokenizer.encode_special_tokens = True
        return tokenizer

    def count_vocab(self) -> int:
        """Returns the vocabulary size without padding: embeddings often have rows after the last token's id."""
        return min(self.model.vocab, max(self._collect_ids()) + 1)

    def list_missing_ids(self) -> list[int]:
        """Returns, sorted, the ids below `count_vocab()` that are not tokens: some tokenizers leave gaps."""
        return sorted(set(range(self.count_vocab())) - self._collect_ids())

    def _collect_ids(self) -> set[int]:
        """Returns the tokenizer's ids and the special ids of `decoding`."""
        special = {self.decoding.mask_id, self.decoding.pad_id, *self.decoding.eos_ids}
        return special | set(self.read_tokenizer().get_vocab(with_added_tokens=True).values())
