"""Models that say a given text, one token a byte: behind the scripted backend, and as a real bundle of a tiny graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny import END, MASK, PAD, Script, Scripted, contract, proposal
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from runtime.backend import Forward, Proposal
from runtime.bundle import store
from runtime.model import Model
from runtime.text.tokenizer import Tokenizer

SPECIAL = ("<|pad|>", "<|end|>", "<|mask|>")  # ids PAD, END, MASK
BYTES = len(SPECIAL)  # id of byte 0; every character beyond ASCII is several tokens
VOCAB = BYTES + 256

Confidence = Callable[[int], float]
PROMPT, ANSWER = "say it", "ab 😀 naïve\n你好 #### 42"  # with characters of one to four bytes


def sure(place: int) -> float:
    return 0.95


def every_other(place: int) -> float:
    """Three steps for a block of four: the even places together, then each odd one as the best there is."""
    return 0.95 if place % 2 == 0 else 0.3


def encode_ids(text: str) -> list[int]:
    return [BYTES + byte for byte in text.encode()]


def make_byte_tokenizer() -> Engine:
    """A tokenizer whose tokens are the special ones and the single bytes, in this order."""
    # GPT-2's table of stand-ins: bytes that can be printed stand for themselves, the others for 256 and on.
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    vocab = dict(zip(SPECIAL, (PAD, END, MASK), strict=True))
    vocab |= {chr(byte if byte in seen else next(spare)): BYTES + byte for byte in range(256)}
    engine = Engine(models.BPE(vocab, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return engine


def save_tokenizer(engine: Engine, folder: Path) -> Path:
    """The tokenizer as a file."""
    path = folder / "tokenizer.json"
    engine.save(str(path))
    return path


def says(prompt: int, answer: Sequence[int], confidence: Confidence, shift: bool = False) -> Script:
    """A script that proposes answer token i behind a prompt of that length, end tokens after the last."""

    def script(forward: Forward) -> Proposal:
        places = (forward.past_length[:, None] + forward.rows + shift - prompt).tolist()
        return proposal(
            [[answer[i] if 0 <= i < len(answer) else END for i in row] for row in places],
            [[confidence(i) for i in row] for row in places],
        )

    return script


def make_speaker(
    folder: Path, prompt: str, answer: str, confidence: Confidence = sure, template: str | None = None, **changes: Any
) -> Model:
    """A model that answers `prompt` with `answer`."""
    spec = contract(**{"vocab": VOCAB, **changes})
    script = says(len(encode_ids(prompt)), encode_ids(answer), confidence, spec.shift)
    tokenizer = Tokenizer(save_tokenizer(make_byte_tokenizer(), folder), template)
    return Model(Scripted(spec, script), tokenizer, spec.gate, "scripted", "fp32")


def make_speaking_bundle(
    folder: Path, prompt: str, answer: str, confidence: Confidence = sure, template: str | None = None,
    others: str = "",
) -> Path:  # fmt: skip
    """A bundle whose graph looks tokens and confidences up by position. It has no cache, as its attention is `full`.

    others: characters of one byte that share the rest of the probability, top tokens behind the answer's own.
    """
    top_k = len(others) + 1 if others else 0
    spec = contract(vocab=VOCAB, attention="full", canvas=40, top_k=top_k)
    start = len(encode_ids(prompt))
    token = np.full(spec.capacity, END, np.int64)
    token[start : start + len(encode_ids(answer))] = encode_ids(answer)
    certain = np.array([confidence(i - start) for i in range(spec.capacity)], np.float32)
    table = {"token": token, "confidence": certain, "entropy": 1 - certain}
    if others:
        rest = np.repeat((1 - certain)[:, None] / len(others), len(others), axis=1)
        table["top_token"] = np.concatenate((token[:, None], np.tile(encode_ids(others), (len(token), 1))), axis=1)
        table["top_logprob"] = np.log(np.concatenate((certain[:, None], rest), axis=1))
    nodes = [helper.make_node("Gather", [f"{name}_table", "rows"], [name]) for name in table]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, [1, d]) for n, d in (("input_ids", "w"), ("rows", "n"))
    ]
    outputs = [
        helper.make_tensor_value_info(
            n, TensorProto.INT64 if values.dtype == np.int64 else TensorProto.FLOAT, [1, "n", *values.shape[1:]]
        )
        for n, values in table.items()
    ]
    tables = [numpy_helper.from_array(values, f"{name}_table") for name, values in table.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "speaker", inputs, outputs, tables),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    content = model.SerializeToString()
    onnx.checker.check_model(model)
    file = folder / "graph.onnx"
    file.write_bytes(content)
    file = file.rename(folder / store.make_content_name("ort-fp32", ".onnx", store.hash_file(file)))
    engine = store.Engine("ort-fp32", "ort", "fp32", "cpu", None, file.name, {}, {})
    store.write(folder / "student.bundle", spec, engine, [file], make_byte_tokenizer().to_str(), template, {})
    return folder / "student.bundle"
