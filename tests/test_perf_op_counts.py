"""runtime.perf.op_counts: operations and bytes of a forward pass, by hand, by loops, and of real graphs."""

from __future__ import annotations

import math

import onnx_ir as ir
import pytest
import tiny

from export.graph.step_graph import trace
from export.provenance import derive_shape
from export.quantization.ort_formats import ORT_FORMATS, quantize_for_ort
from runtime.errors import UserError
from runtime.perf.op_counts import (
    SHAPES,
    WEIGHT_SIZES,
    ModelShape,
    PassSize,
    count_weight_bytes,
    count_work,
    read_shape,
)

SMALL = ModelShape(hidden=4, layers=2, heads=2, kv_heads=1, head_dim=3, ffn=5, vocab=7)
FP32, FP16, INT8, INT4 = (WEIGHT_SIZES[name] for name in ("fp32", "fp16", "int8", "int4"))


def test_the_weights_of_a_small_shape_are_those_counted_by_hand() -> None:
    assert SMALL.qkv == 4 * (2 + 1 + 1) * 3 == 48
    assert SMALL.after_attention == 2 * 3 * 4 + 3 * 4 * 5 == 84
    assert SMALL.vectors == 2 * (4 + 4) + 4 == 20
    assert SMALL.parameters == 2 * (48 + 84) + 4 * 7 + 20 == 312
    assert SMALL.cached == 2 * 1 * 3 * 2 == 12


def test_the_published_shape_has_its_published_count() -> None:
    assert SHAPES["qwen3-0.6b"].parameters == 596_049_920


def test_a_step_is_what_was_counted_by_hand() -> None:
    load = count_work(SMALL, FP32, 4, PassSize(batch=1, width=3, past=5, rows=3))
    assert load.linear == 2 * 3 * (2 * (48 + 84) + 28)
    assert load.attention == 2 * (2 * 3 * 8 * 2 * 3) * 2  # scores, then values: 3 queries x 8 keys x 2 heads of 3
    assert load.weights == 4 * 312
    assert load.cache == 4 * 12 * (8 + 3)
    assert load.intensity == (load.linear + load.attention) / (load.weights + load.cache)


def test_rows_that_nobody_reads_save_the_last_layer_and_the_head() -> None:
    whole, last = (count_work(SMALL, FP32, 4, PassSize(1, 3, 5, rows)) for rows in (3, 1))
    assert whole.linear - last.linear == 2 * 2 * (84 + 28)
    assert (whole.attention, whole.cache) == (last.attention, last.cache)


def test_a_batch_shares_the_weights_and_nothing_else() -> None:
    one, four = (count_work(SMALL, FP16, 2, PassSize(batch, 3, 5, 3)) for batch in (1, 4))
    assert four.weights == one.weights
    assert [four.linear, four.attention, four.cache] == [4 * one.linear, 4 * one.attention, 4 * one.cache]


def test_a_model_with_full_attention_keeps_nothing() -> None:
    assert count_work(SMALL, FP32, 4, PassSize(1, 8, 0, 3, cached=False)).cache == 0


def test_quantized_matrices_carry_their_scales() -> None:
    assert FP16.count_stored_bytes(64, 10) == 2 * 640
    assert INT8.count_stored_bytes(64, 10) == 640 + 4 * 10
    assert INT4.count_stored_bytes(64, 10) == 320 + 4 * 2 * 10
    assert INT4.count_stored_bytes(65, 10) == 325 + 4 * 3 * 10


def test_an_untied_embedding_is_read_by_the_row() -> None:
    untied = ModelShape(4, 2, 2, 1, 3, 5, 7, tied=False)
    assert untied.parameters - SMALL.parameters == 28
    assert count_weight_bytes(untied, FP32, 3) - count_weight_bytes(SMALL, FP32, 3) == 4 * 3 * 4
    assert count_weight_bytes(untied, FP32, 100) - count_weight_bytes(SMALL, FP32, 100) == 4 * 28


def products(model: ir.Model, width: int, rows: int) -> int:
    """Operations of every product with a weight in a traced graph, one node after the other."""
    total = 0
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm") and node.inputs[1].name in model.graph.initializers:
            weight, out = node.inputs[1].const_value.shape, node.outputs[0].shape
            tokens = math.prod({"width": width, "n": rows}.get(str(size), size) for size in list(out)[:-1])
            total += 2 * tokens * math.prod(weight)
    return total


def lazily_held(model: ir.Model) -> list[ir.LazyTensor]:
    """The initializers that come from the checkpoint; the others are the exporter's tables."""
    held = (value.const_value for value in model.graph.initializers.values())
    return [tensor for tensor in held if isinstance(tensor, ir.LazyTensor)]


@pytest.mark.parametrize(("seed", "tied"), [(4, True), (5, False)])
def test_a_real_graph_has_the_counted_parameters_operations_and_bytes(seed: int, tied: bool) -> None:
    checkpoint = tiny.checkpoint(seed)
    shape = derive_shape(checkpoint.model)
    assert shape.tied is tied
    model = trace(checkpoint, 64)
    assert sum(math.prod(tensor.shape) for tensor in lazily_held(model)) == shape.parameters
    assert sum(tensor.nbytes for tensor in lazily_held(model)) == count_weight_bytes(shape, FP32, shape.vocab)
    for width, rows in ((4, 4), (4, 1), (9, 2)):
        assert products(model, width, rows) == count_work(shape, FP32, 4, PassSize(1, width, 5, rows)).linear
    quantize_for_ort(model, ORT_FORMATS["int8"], shape.layers)
    looked_up = 0 if tied else 4 * shape.vocab  # scales of an embedding's rows: four bytes a row, not counted
    assert (
        sum(tensor.nbytes for tensor in lazily_held(model)) == count_weight_bytes(shape, INT8, shape.vocab) + looked_up
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (None, "has no shape"), ([], "has no shape"), ({"hidden": 4}, "layers of it"), ({"hiden": 4}, "hiden of it"),
        ({**{n: 1 for n in ModelShape.__slots__[:7]}, "ffn": 0}, "ffn of it is 0"),
        ({**{n: 1 for n in ModelShape.__slots__[:7]}, "ffn": 1.5}, "ffn of it is 1.5"),
        ({**{n: 1 for n in ModelShape.__slots__[:7]}, "tied": 1}, "tied of it is 1"),
        ({**{n: 1 for n in ModelShape.__slots__[:7]}, "layers": True}, "layers of it is True"),
    ],
)  # fmt: skip
def test_a_shape_that_is_none_is_refused_by_name(values: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_shape(values, "it")
