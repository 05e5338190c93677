"""Trains a byte-level BPE tokenizer for the sample tasks; no token spans two matches of its split expression."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from train.huggingface.token_merging import QWEN2_SPLIT

PAD, END, MASK = "<|pad|>", "<|end|>", "<|mask|>"
SPECIAL = (PAD, END, MASK)  # their ids are 0, 1, 2


def train_tokenizer(texts: Iterable[str], vocab: int, split_pattern: str = QWEN2_SPLIT) -> Tokenizer:
    """Trains a tokenizer on `texts`. vocab: maximum number of tokens, the 256 bytes and three special tokens included.

    split_pattern: regular expression; no token spans two of its matches. Special tokens are never recognized inside a
    text: `encode` is called with `encode_special_tokens` set.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer
