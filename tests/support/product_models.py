"""Prints the models of `runtime/engines/ort/product_models.py`: python tests/support/product_models.py"""

from __future__ import annotations

from onnx import TensorProto, helper

FLOAT, FLOAT16, UINT8, INT8, INT32 = (
    getattr(TensorProto, name) for name in ("FLOAT", "FLOAT16", "UINT8", "INT8", "INT32")
)
WANTED = {  # operator, types of input, weight and output, and the weight's shape
    "probe": ("MatMulInteger", UINT8, INT8, INT32, (4, 32)),
    "fp32": ("MatMul", FLOAT, FLOAT, FLOAT, (2048, 2048)),
    "fp16": ("MatMul", FLOAT16, FLOAT16, FLOAT16, (2048, 2048)),
    "int8": ("MatMulInteger", UINT8, INT8, INT32, (2048, 2048)),
}


def product_model(operator: str, left: int, right: int, out: int, shape: tuple[int, int]) -> bytes:
    """Serializes `left` [rows, inner] times the initializer `right` of that shape, which has no content."""
    weight = TensorProto(name="right", data_type=right, dims=shape, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="given")
    node = helper.make_node(operator, ["left", "right"], ["out"])
    ends = [helper.make_tensor_value_info(name, kind, [None, None]) for name, kind in (("left", left), ("out", out))]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [weight])
    opset = [helper.make_opsetid("", 13)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


if __name__ == "__main__":
    for name, given in WANTED.items():
        print(f"    {name!r}: {product_model(*given)!r},")
