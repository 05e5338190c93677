"""ONNX graphs made to do harm: weights from elsewhere, tensors without end, loops, weights that are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from corpus import TOKENS, copied, model_file, rehash
from onnx import TensorProto, helper, numpy_helper

from runtime.errors import NumericalError, UserError
from runtime.open_bundle import load

Attack = Callable[[Path], object]  # raises UserError, or returns and has done nothing
Change = Callable[[onnx.ModelProto, Path], object]
LOCATIONS = (
    "../secret", "{folder}/secret", "a/../../secret", "./../secret", "file://{folder}/secret", "//{folder}/secret",
    "..\\secret", "/proc/self/environ", "/dev/zero", "", "{bundle}/link", "link",
)  # fmt: skip
WAYS = ("ConstantOfShape", "Expand", "Tile")
WIDE = 2**20


def asked(folder: Path, change: Change) -> None:
    """A graph changed by hand, its hash made right, loaded and asked."""
    bundle = copied("ort.bundle", folder)
    file = model_file(bundle)
    graph = onnx.load(file)
    change(graph, bundle)
    file.write_bytes(graph.SerializeToString())
    rehash(bundle)
    answer = load(bundle, threads=1).generate([5, 6], max_new_tokens=TOKENS)
    raise AssertionError(f"answered {answer.result.token_ids}")


def outside(location: str) -> Attack:
    """A graph with its weights in a file outside the bundle, named by a path or behind a link."""

    def change(graph: onnx.ModelProto, bundle: Path) -> None:
        tensor = max(graph.graph.initializer, key=lambda each: len(each.raw_data))
        secret = bundle.parent / "secret"
        secret.write_bytes(tensor.raw_data)
        (bundle / "link").symlink_to(secret)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location.format(bundle=bundle, folder=bundle.parent))

    return lambda folder: asked(folder, change)


def prefixed(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> Attack:
    """A graph with nodes before its own whose output `harm` (int64 [1]) is added to its token ids."""

    def change(graph: onnx.ModelProto, bundle: Path) -> None:
        own = graph.graph
        for node in own.node:
            node.input[:] = ["harmed" if name == "input_ids" else name for name in node.input]
        rest = list(own.node)
        del own.node[:]
        own.node.extend([*nodes, helper.make_node("Add", ["input_ids", "harm"], ["harmed"]), *rest])
        own.initializer.extend(weights)

    return lambda folder: asked(folder, change)


def numbers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def huge(way: str) -> Attack:
    """A tensor of 2 ** 40 numbers, made while the graph is loaded or run."""
    zero = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    sources = {"ConstantOfShape": ["wide"], "Expand": ["none", "wide"], "Tile": ["square", "wide"]}
    given = {"value": zero} if way == "ConstantOfShape" else {}
    nodes = [
        helper.make_node(way, sources[way], ["many"], **given),
        helper.make_node("ReduceMax", ["many"], ["most"], keepdims=0),
        helper.make_node("Reshape", ["most", "one"], ["harm"]),
    ]
    square = numpy_helper.from_array(np.zeros((1, 1), np.int64), "square")
    return prefixed(nodes, [numbers("wide", WIDE, WIDE), numbers("one", 1), numbers("none", 0), square])


def endless() -> Attack:
    """A loop of 2 ** 62 rounds."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Add", ["held", "held"], ["more"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("held", TensorProto.INT64, [1])],
        [info("still", TensorProto.BOOL, []), info("more", TensorProto.INT64, [1])],
    )  # fmt: skip
    rounds = numpy_helper.from_array(np.array(2**62, np.int64), "rounds")
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("Loop", ["rounds", "yes", "none"], ["harm"], body=body)
    return prefixed([node], [rounds, yes, numbers("none", 0)])


def not_numbers(value: float, part: int) -> Attack:
    """A weight that is no number throughout: told by its name when it is met."""

    def change(graph: onnx.ModelProto, bundle: Path) -> None:
        floats = [each for each in graph.graph.initializer if each.data_type == TensorProto.FLOAT]
        tensor = floats[part % len(floats)]
        tensor.CopyFrom(numpy_helper.from_array(np.full(list(tensor.dims), value, np.float32), tensor.name))

    def attack(folder: Path) -> None:
        try:
            asked(folder, change)
        except NumericalError as error:
            raise UserError(str(error)) from None

    return attack
