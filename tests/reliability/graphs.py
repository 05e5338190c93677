"""ONNX graphs with damage in their bytes, fields or weights, the manifest's hashes made theirs: loaded and asked."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
from corpus import TOKENS, copied, model_file, rehash, sound, untried
from mutants import of_bytes, of_message
from section import Section
from tally import tallied

FULL = 8000
KINDS = (
    "bytes changed, hash as it was", "bytes changed", "fields changed", "fields changed", "fields changed",
    "bytes changed", "fields changed", "weights changed",
)  # fmt: skip
IDS = [5, 6, 7, 8, 9]


def run(scale: float) -> Section:
    return tallied("ONNX graphs", "graphs", int(FULL * scale), by_trial=True)


def kind(number: int) -> str:
    return KINDS[number % len(KINDS)]


def make(number: int, folder: Path) -> Path:
    rng, what = random.Random(f"graph {number}"), kind(number)
    bundle = copied("ort.bundle", folder)
    file = model_file(bundle)
    content = file.read_bytes()
    if what.startswith("bytes"):
        made = of_bytes(rng, content, front=9000)
    else:
        graph = onnx.load_from_string(content)
        if what.startswith("fields"):
            for _ in range(rng.choice((1, 1, 2, 4))):
                of_message(rng, graph)
        else:
            weigh(rng, graph)
        made = graph.SerializeToString()
    file.write_bytes(made)
    if "as it was" not in what:
        rehash(bundle)
    return bundle


def weigh(rng: random.Random, graph: onnx.ModelProto) -> None:
    """Some numbers of a weight become other ones: not numbers, infinite, huge or tiny."""
    tensor = rng.choice([each for each in graph.graph.initializer if each.data_type == onnx.TensorProto.FLOAT])
    values = onnx.numpy_helper.to_array(tensor).copy()
    places = [rng.randrange(values.size) for _ in range(rng.choice((1, values.size)))]
    values.reshape(-1)[places] = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e-40, 0.0))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def attempt(number: int, folder: Path) -> str:
    bundle = make(number, folder)
    model = untried(bundle)
    assert "as it was" not in kind(number) or model_file(bundle).read_bytes() == model_file_of_seed(), "damage unseen"
    answer = model.generate(IDS, max_new_tokens=TOKENS)
    sound(model.contract, answer.result.token_ids, answer.result.finish, answer.result.steps)
    return "answered"


def model_file_of_seed() -> bytes:
    from corpus import GOLDEN

    return model_file(GOLDEN / "ort.bundle").read_bytes()
