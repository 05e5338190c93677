"""Makes the instrumented graph: a step graph with its logits as one more output, for every token's probability."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from runtime.engines.ort import ort_cuda
from runtime.engines.ort.no_telemetry import ort
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.engines.ort.ort_files import map_weights
from runtime.errors import DeviceError, describe_error


def load_instrumented(model: Path, shipped: OrtBackend) -> OrtBackend:
    """Loads the instrumented graph of `model`, with its own KV cache; `last_logits` holds the last pass's logits.

    shipped: the engine of `model`, whose contract, session options and device are used; if its graph outputs logits
    already, it is shared. Nothing is written, and external weights are read from their file. Raises DeviceError if ONNX
    Runtime does not load the instrumented graph.
    """
    if any(output.name == "logits" for output in shipped.session.get_outputs()):
        return shipped.share()
    graph = onnx.load(model, load_external_data=False)
    add_logits(graph, shipped.contract.vocab)
    options = shipped.session.get_session_options()
    weights = map_weights(options, model.parent, find_linked_weights(graph, model.parent))
    try:
        session = ort.InferenceSession(graph.SerializeToString(), options, **ort_cuda.choose_providers(shipped.device))
    except Exception as error:  # its errors have no common class
        reason = describe_error(error, 200)
        raise DeviceError(f"onnxruntime cannot load {model.name} with its logits ({reason})") from None
    del weights  # they had to live until the session was made
    return OrtBackend(session, shipped.contract, device=shipped.device)


def find_linked_weights(graph: onnx.ModelProto, folder: Path) -> list[str]:
    """Returns the files of a graph's external weights if one of them is a link; else none: ONNX Runtime reads them."""
    entries = (entry for tensor in graph.graph.initializer for entry in tensor.external_data)
    names = list(dict.fromkeys(entry.value for entry in entries if entry.key == "location"))
    return names if any((folder / name).is_symlink() for name in names) else []


def add_logits(model: onnx.ModelProto, vocab: int) -> None:
    """Adds the output `logits` fp32 [1, n, vocab], of which `token` is the argmax, to a graph of one sequence."""
    nodes = [
        helper.make_node("Unsqueeze", [add_scores(model), "twin.first"], ["twin.all"]),  # [1, n, the head's rows]
        helper.make_node("Slice", ["twin.all", "twin.first", "twin.vocab", "twin.last"], ["logits"]),
    ]
    model.graph.node.extend(nodes)
    for name, value in {"twin.first": 0, "twin.vocab": vocab, "twin.last": 2}.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "n", vocab]))


def add_scores(model: onnx.ModelProto) -> str:
    """Returns the name of the logits [n, the head's rows], of which `confidence` is a softmax.

    Not by way of `token`: in a large vocabulary it is found by groups, so that its ArgMax is of their maxima. Raises
    ValueError if the graph has none.
    """
    made_by: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
    name = "confidence"
    while name in made_by:
        node = made_by[name]
        name = str(node.input[0])
        if node.op_type == "Softmax":
            return name
    raise ValueError("the graph's confidence is not of a softmax: not a step graph of this exporter")
