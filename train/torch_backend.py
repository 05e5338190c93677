"""Runs a model in PyTorch as a batched backend, the reference for all engines; samples tokens, keeps hidden states."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backend import Forward, Proposal, check_candidates
from runtime.contract import Contract, parse_contract
from runtime.engines.ort.threads import count_physical_cores

from .checkpoint import Checkpoint
from .transformer.network import Transformer

COPIES = 64  # maximum number of copies of a sequence, each with its own KV cache
# Parameters below which a model counts as small: with 2.7 M one thread is at least as fast as two, with 9.7 M it is
# slower in wide forward passes.
LITTLE = 6_000_000


def derive_contract(checkpoint: Checkpoint, batch: int = 1, top_k: int = 0, candidates: int = 0) -> Contract:
    """Returns the contract of a checkpoint decoded in PyTorch; the KV-cache capacity is the model's whole context.

    The vocabulary ends with the tokenizer's last id, even if the embedding has more rows: later ids are never proposed.
    top_k: number of most probable tokens per row that a forward pass returns on request. candidates: maximum number of
    tokens per row that the host may name to get their log-probabilities.
    """
    shape, decoding = checkpoint.model, checkpoint.decoding
    return parse_contract(
        {
            "alignment": decoding.alignment,
            "attention": decoding.attention,
            "shift": decoding.shift,
            "cache": "in_place" if decoding.has_cache else "none",
            "block": decoding.block,
            "canvas": decoding.canvas,
            "capacity": decoding.context,
            "mask_id": decoding.mask_id,
            "eos_ids": list(decoding.eos_ids),
            "pad_id": decoding.pad_id,
            "vocab": checkpoint.count_vocab(),
            "layers": shape.layers,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "dtype": "float32",
            "gate": dict(decoding.gate),
            "batch": batch,
            "top_k": top_k,
            "candidates": candidates,
            "modes": list(decoding.modes),
        }
    )


def limit_threads(threads: int | None = None, parameters: int | None = None) -> None:
    """Sets PyTorch's number of threads; the default is PyTorch's own choice, but at most `count_physical_cores`.

    PyTorch's own choice ignores CPU quotas. If the user set OMP_NUM_THREADS, the default changes nothing.

    parameters: the model's number of parameters if it decodes one sequence at a time, else None. A small model gets 1
    thread: its matrix products are over before a second thread has woken, and a waiting thread spins and slows an
    engine's threads.
    """
    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        most = 1 if parameters is not None and parameters < LITTLE else count_physical_cores()
        torch.set_num_threads(threads or min(torch.get_num_threads(), most))


class StaticCache:
    """A KV cache of all layers, zeros at first; a forward pass writes after each sequence's committed positions."""

    def __init__(
        self, contract: Contract, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        # All sequences of a forward pass have one width, so a short one is written up to two blocks past its end.
        shape = (batch, contract.kv_heads, capacity + 2 * contract.block, contract.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(contract.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(contract.layers)]
        self.past = torch.zeros(batch, dtype=torch.int64)  # on the host, which reads it at every layer

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes keys and values [batch, kv_heads, width, head_dim]; returns all up to the longest sequence's end."""
        keys, values, width = self.keys[layer], self.values[layer], key.shape[2]
        first, last = int(self.past.min()), int(self.past.max())
        if first == last:
            keys[:, :, first : first + width] = key
            values[:, :, first : first + width] = value
        else:
            rows = torch.arange(len(key))[:, None].to(key.device)
            places = (self.past[:, None] + torch.arange(width)).to(key.device)  # [batch, width]
            keys[rows, :, places] = key.transpose(1, 2).to(keys.dtype)
            values[rows, :, places] = value.transpose(1, 2).to(values.dtype)
            # A sequence's attention weights past its own end are 0, but 0 times NaN is NaN: stale values are cleared.
            stale = torch.arange(first + width, last + width) >= self.past[:, None] + width  # [batch, last - first]
            for part in (keys, values):
                part[:, :, first + width : last + width].masked_fill_(stale[:, None, :, None].to(part.device), 0)
        return keys[:, :, : last + width], values[:, :, : last + width]

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.keys[0].device)
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]


class TorchBackend:
    """A model as a decoding backend; see `runtime.backend`.

    temperature, seed: if the temperature is above 0, each row's token is sampled from softmax(logits / temperature)
    over the whole vocabulary, all from one generator. A token's confidence is its probability at temperature 1, also if
    the host samples for a request (`runtime.decoding.sampling`), which it does among the contract's `top_k` tokens.
    keep_hidden: whether `hidden` keeps the last forward pass's hidden states of the logits rows, fp32
    [batch, n, hidden] on the host. bf16: whether to use bf16 autocast, whose results differ from fp32's; faster on a
    processor with bf16 products. barred: ids below the contract's vocabulary that are never proposed, because the
    tokenizer lacks them.
    """

    name = "torch"

    def __init__(
        self,
        model: Transformer,
        contract: Contract,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        keep_hidden: bool = False,
        bf16: bool = False,
        barred: Sequence[int] = (),
    ) -> None:
        self.model, self.contract, self.bf16 = model.eval(), contract, bf16
        self.temperature, self.keep_hidden = temperature, keep_hidden
        self.device = next(model.parameters()).device
        if self.device.type == "meta":  # a model without values, whose logits come from elsewhere
            self.device = torch.device("cpu")
        self.barred = torch.tensor([contract.mask_id, *barred]).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.cache: StaticCache | None = None
        self.hidden: Tensor | None = None
        self.log_probs: Tensor | None = None

    def open(self, batch: int, capacity: int) -> None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        kept = self.contract.has_cache
        self.cache = StaticCache(self.contract, batch, capacity, dtype, self.device) if kept else None

    @property
    def most_copies(self) -> int:
        """See `runtime.backend.Forkable`."""
        return COPIES

    def fork(self, count: int) -> None:
        """See `runtime.backend.Forkable`."""
        self.keep(np.zeros(count, np.int64))

    def keep(self, rows: NDArray[np.int64]) -> None:
        if self.cache is not None:
            self.cache.keep(torch.from_numpy(rows))

    @torch.no_grad()
    def forward(self, forward: Forward) -> Proposal:
        check_candidates(forward, self.contract)
        past = torch.from_numpy(forward.past_length)
        ids, visible = torch.from_numpy(forward.input_ids), torch.from_numpy(forward.visible)
        width, length = ids.shape[1], ids.shape[1]
        if self.cache is not None:
            self.cache.past, length = past, int(past.max()) + width
        positions = past[:, None] + torch.arange(width)
        ids, visible, positions = (part.to(self.device) for part in (ids, visible, positions))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = self.model(ids, visible, positions, self.cache, length)
            rows = torch.from_numpy(forward.rows).to(self.device)[..., None].expand(-1, -1, hidden.shape[-1])
            hidden = hidden.gather(1, rows)  # [batch, n, hidden]
            logits = self.model.logits(hidden).float()[..., : self.contract.vocab]
        if self.keep_hidden:
            self.hidden = hidden.float().cpu()
        return self.propose(logits, forward.top, forward.candidates)

    def propose(self, logits: Tensor, top: bool = False, candidates: NDArray[np.int64] | None = None) -> Proposal:
        """Returns tokens, confidences and entropies of fp32 logits [batch, n, vocab]; sets barred ids to -inf in them.

        top: whether to return the most likely tokens too. candidates [batch, n, C]: ids whose log-probabilities to
        return too. The mask token is barred.
        """
        logits[..., self.barred] = float("-inf")
        log_probs = torch.log_softmax(logits, dim=-1)
        probs = log_probs.exp()
        entropy = -torch.where(probs > 0, probs * log_probs, probs).sum(-1)
        if self.temperature > 0:
            probabilities = torch.softmax(logits / self.temperature, dim=-1).flatten(0, 1)
            token = torch.multinomial(probabilities, 1, generator=self.generator).view(logits.shape[:2])
            confidence = probs.gather(-1, token[..., None])[..., 0]
        else:
            confidence, token = probs.max(dim=-1)
        self.log_probs = log_probs
        best = log_probs.topk(self.contract.top_k) if top else None  # [batch, n, K]
        most = () if best is None else (best.indices, best.values)
        out = Proposal(*(part.cpu().numpy() for part in (token, confidence, entropy, *most)))
        if candidates is None:
            return out
        chosen = log_probs.gather(-1, torch.from_numpy(candidates).to(log_probs.device))
        return replace(out, candidate_logprob=chosen.cpu().numpy())
