"""The same step in llama.cpp: `llama_decode` of the block's tokens behind the cache's, all seeing all of their block.

It does less than the exported graph: its logits are left as they are, without softmax, token or entropy.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as llama
import numpy as np

from runtime.backend import Floats, Ints

from .contender import Cell, tokens

CHUNK = 256  # tokens decoded at once while the cache is filled
LONGEST = 2048  # positions of the cache, unless a place needs more


@llama.llama_log_callback
def silence(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Takes what llama.cpp would print."""


class LlamaStep:
    """A GGUF file on the CPU with llama.cpp's defaults, but for the threads and attention that is not causal.

    flash: its fused attention, which it chooses itself; without, it multiplies scores and values as matrices.
    """

    def __init__(self, model: str, vocab: int, threads: int, flash: bool = True) -> None:
        llama.llama_log_set(silence, ctypes.c_void_p())
        llama.llama_backend_init()
        self.vocab, self.past, self.width = vocab, 0, 0
        options = llama.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(model.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        how = llama.llama_context_default_params()
        how.n_ctx, how.n_threads, how.n_threads_batch = LONGEST, threads, threads
        if not flash:
            how.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama.llama_init_from_model(self.model, how)
        llama.llama_set_causal_attn(self.context, False)
        self.memory = llama.llama_get_memory(self.context)
        self.batch = llama.llama_batch_init(max(CHUNK, how.n_ubatch), 0, 1)

    def place(self, cell: Cell) -> None:
        if cell.past < self.past:
            llama.llama_memory_seq_rm(self.memory, 0, cell.past, -1)
            self.past = cell.past
        while self.past < cell.past:
            width = min(CHUNK, cell.past - self.past)
            self.decode(tokens(width), every=False)
            self.past += width
        self.width = cell.width

    def step(self) -> None:
        self.decode(tokens(self.width), every=True)
        self.logits = llama.llama_get_logits(self.context)  # waits for them
        llama.llama_memory_seq_rm(self.memory, 0, self.past, -1)

    def best(self) -> Ints:
        return self.scores().argmax(axis=-1)

    def scores(self) -> Floats:
        """The last step's logits, llama.cpp's own memory. float32 [width, vocab]"""
        return np.ctypeslib.as_array(self.logits, (self.width, self.vocab))

    def decode(self, ids: Ints, every: bool) -> None:
        """One forward behind `past`; every: logits of all rows, else of the last."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, self.past + i, 1, 0
            batch.logits[i] = every or i == len(ids) - 1
        if code := llama.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {code}")

    def about(self) -> dict[str, Any]:
        settings = llama.llama_print_system_info().decode()
        return {"llama-cpp-python": llama.__version__, "system": settings}
