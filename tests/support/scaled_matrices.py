"""Counts the weight matrices that a recorded reference shows to be wrong: scaled_matrices.py BUNDLE [PRECISION ...]

Each matrix of each engine for ONNX Runtime's CPU is scaled by 1.02, one at a time, and the engine judged by the
bundle's own bounds: by the part that a first load replays, and by the whole reference but its answers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import onnx
from engine_faults import Change, Numbers, change_graph, scale

from runtime.bundle.manifest import Bundle, Engine, RecordedReference
from runtime.bundle.reference import LARGEST, read_reference
from runtime.bundle.store import read
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.proof.judge import judge_figures, judge_tokens, measure
from runtime.proof.replay import replay

PARTS = ("self_attn.qkv_proj", "self_attn.o_proj", "gate_proj", "up_proj", "down_proj")


def faults(bundle: Bundle, content: bytes) -> Iterator[tuple[str, dict[str, Change]]]:
    """Yields a name per matrix and what scales it; those of queries, keys and values are columns of one initializer."""
    shapes = {each.name: tuple(each.dims) for each in onnx.load_from_string(content).graph.initializer}
    kv, layers = bundle.contract.kv_heads * bundle.contract.head_dim, range(bundle.contract.layers)
    for tensor in ("embedding", *(f"layers.{layer}.{part}.weight" for layer in layers for part in PARTS)):
        name = tensor if tensor in shapes else f"{tensor}.scale"
        if "qkv_proj" not in tensor:
            yield tensor, {name: scale()}
            continue
        groups = name != tensor and len(shapes[name]) == 2  # int4: scales [outputs, groups], not [..., outputs]
        width = shapes[name][0 if groups else -1]
        ends = (0, width - 2 * kv, width - kv, width)
        for part, *columns in zip("qkv", ends, ends[1:], strict=False):
            change = scale(slice(*columns))
            yield f"{tensor}:{part}", {name: transpose(change) if groups else change}


def transpose(change: Change) -> Change:
    """Makes a change of rows of one of columns."""

    def change_columns(numbers: Numbers) -> Numbers:
        return change(numbers.T.copy()).T.copy()

    return change_columns


def shares(bundle: Bundle, engine: Engine, file: Path) -> list[tuple[bool, float, str]]:
    """Replays a graph in an engine's place, with one thread.

    Returns for the first load's part and for the whole reference whether it is refused, the largest figure as a share
    of its bound, and that figure's name.
    """
    recorded = cast(RecordedReference, engine.reference)
    forwards = read_reference(bundle.path, recorded, bundle.contract).forwards
    found = []
    parts: Sequence[tuple[int, Mapping[str, float]]] = (
        (recorded.first_load, recorded.first_load_bounds), (len(forwards), recorded.bounds)
    )  # fmt: skip
    for count, bounds in parts:
        chosen = forwards[:count]
        replayed = replay(OrtBackend(file, bundle.contract, 1), chosen)
        checks = [*judge_figures(chosen, replayed, bounds), judge_tokens(chosen, replayed, 2 * bounds[LARGEST])]
        share = max((each.value / bounds[name], name) for name, each in measure(chosen, replayed).items())
        found.append((not all(check.ok for check in checks), *share))
    return found


def main(path: Path, precisions: Sequence[str]) -> None:
    """Prints a line per matrix that is unseen, and per engine how many are seen."""
    bundle = read(path)
    for engine in bundle.engines:
        if precisions and engine.precision not in precisions:
            continue
        content = (path / engine.model).read_bytes()
        honest = ", ".join(
            f"{share:.0%} of the bound of {name}" for _, share, name in shares(bundle, engine, path / engine.model)
        )
        seen, count = [0, 0], 0
        for label, changes in faults(bundle, content):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "graph.onnx"
                file.write_bytes(change_graph(content, changes))
                first, whole = shares(bundle, engine, file)
            count, seen = count + 1, [seen[0] + first[0], seen[1] + whole[0]]
            if not (first[0] and whole[0]):
                words = [f"{'seen' if each[0] else 'unseen'}, {each[2]} at {each[1]:.0%}" for each in (first, whole)]
                print(f"  {label}: first load {words[0]}; whole {words[1]}", flush=True)
        print(f"{engine.name}: of {count} matrices {seen[0]} seen at a first load, {seen[1]} by all; right: {honest}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
