"""Runs the same step in llama.cpp: `llama_decode` of the block's tokens after those in the KV cache, each seeing its
whole block.

llama.cpp does less than the exported graph: it leaves the logits as they are, without softmax, token or entropy.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp as llama
import numpy as np

from runtime.backend import Floats, Ints

from .contender import Cell, make_tokens

CHUNK = 256  # tokens decoded at once while the KV cache is filled
LONGEST = 2048  # KV-cache capacity in positions
TRIES = 3  # steps with each kind of attention per cell; the fastest counts


@llama.llama_log_callback
def silence(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Discards what llama.cpp would print."""


class Context:
    """Holds a KV cache over a loaded model. flash: whether llama.cpp may use its fused attention."""

    def __init__(self, model: Any, threads: int, flash: bool) -> None:
        how = llama.llama_context_default_params()
        how.n_ctx, how.n_threads, how.n_threads_batch = LONGEST, threads, threads
        if not flash:
            how.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama.llama_init_from_model(model, how)
        llama.llama_set_causal_attn(self.context, False)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(max(CHUNK, how.n_ubatch), 0, 1)
        self.past = 0

    def fill(self, past: int) -> None:
        """Sets the KV cache to `past` tokens by dropping or adding some."""
        if past < self.past:
            llama.llama_memory_seq_rm(self.memory, 0, past, -1)
            self.past = past
        while self.past < past:
            width = min(CHUNK, past - self.past)
            self.decode(make_tokens(width), every=False)
            self.past += width

    def step(self, width: int) -> Any:
        """Returns the address of the logits in llama.cpp's own memory; leaves the KV cache as it was."""
        self.decode(make_tokens(width), every=True)
        logits = llama.llama_get_logits(self.context)  # waits for them
        llama.llama_memory_seq_rm(self.memory, 0, self.past, -1)
        return logits

    def decode(self, ids: Ints, every: bool) -> None:
        """Runs one forward pass after `past`. every: whether to compute logits of all rows, not only the last."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, self.past + i, 1, 0
            batch.logits[i] = every or i == len(ids) - 1
        if code := llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {code}")

    def measure_seconds(self, width: int) -> float:
        started = time.perf_counter()
        self.step(width)
        return time.perf_counter() - started


class LlamaStep:
    """Runs a GGUF file on the CPU with llama.cpp's defaults, except for the threads and non-causal attention.

    flash: whether attention is fused; None for the kind that is faster at a cell, since fused attention is slower after
    a long past.
    """

    def __init__(self, model: str, vocab: int, threads: int, flash: bool | None = None) -> None:
        llama.llama_log_set(silence, ctypes.c_void_p())
        llama.llama_backend_init()
        options = llama.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(model.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        ways = (True, False) if flash is None else (flash,)
        self.ways = [Context(self.model, threads, way) for way in ways]
        self.vocab, self.width, self.chosen = vocab, 0, self.ways[0]

    def place(self, cell: Cell) -> None:
        self.width = cell.width
        for way in self.ways:
            way.fill(cell.past)
        if len(self.ways) > 1:
            self.chosen = min(self.ways, key=lambda way: min(way.measure_seconds(cell.width) for _ in range(TRIES)))

    def step(self) -> None:
        self.logits = self.chosen.step(self.width)

    def predict_top1(self) -> Ints:
        return self.compute_scores().argmax(axis=-1)

    def compute_scores(self) -> Floats:
        """Returns the last step's logits, in llama.cpp's own memory. float32 [width, vocab]"""
        return np.ctypeslib.as_array(self.logits, (self.width, self.vocab))

    def describe(self) -> dict[str, Any]:
        settings = llama.llama_print_system_info().decode()
        return {"llama-cpp-python": llama.__version__, "system": settings}
