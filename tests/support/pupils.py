"""Own data of two short answers, and untrained models of any width that read its text."""

from __future__ import annotations

from train.checkpoint import Checkpoint, Decoding
from train.data.bpe import train_tokenizer
from train.transformer.network import ModelConfig, Transformer, initialize

LINES = [{"prompt": f"Say {n}.\n", "answer": "yes, yes!" if n % 2 else "no, not at all"} for n in range(40)]


def make_teacher(width: int, seed: int, vocab: int = 280, **decoding: object) -> Checkpoint:
    """An untrained bidirectional teacher that reads the lines' text."""
    texts = [text for line in LINES for text in line.values()]
    learned = train_tokenizer(texts, vocab)
    shape = ModelConfig(learned.get_vocab_size(), width, 1, 2, 1, 8, 24)
    how = {"alignment": "prompt", "attention": "full", "shift": True, "block": 4, "canvas": 12, "context": 64}
    how |= {"mask_id": 2, "eos_ids": (1,), "pad_id": 0, "gate": {"rule": "count", "min": 1}} | decoding
    return Checkpoint(shape, Decoding(**how), dict(initialize(Transformer(shape), seed).state_dict()), learned.to_str())  # type: ignore[arg-type]
