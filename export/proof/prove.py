"""Proves an exported graph: it is valid ONNX, and the whole model, or each layer, computes PyTorch's numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from export.precisions import PRECISIONS
from export.quantization.ort_formats import OrtFormats
from runtime.contract import Contract
from runtime.decoding.block_layout import count_room_for_answer
from runtime.decoding.options import DecodeOptions, Request
from runtime.engines.ort.ort_backend import OrtBackend
from runtime.errors import describe_error
from runtime.proof.judge import Check
from train.checkpoint import Checkpoint
from train.huggingface.weights import list_expected_shapes
from train.torch_backend import TorchBackend
from train.transformer.network import ModelConfig

from .by_layer import check_by_layer
from .compare import TIE, compare, compare_speculative
from .instrumented import load_instrumented
from .quantized_reference import QuantizedBackend, compute_whole_bound

WHOLE = 3 * 10**9  # maximum of fp32 bytes, of PyTorch, engine and instrumented graph together, to prove a model whole
SEED = 20  # of the prompts that the export is proved with


def prove(
    source: Checkpoint,
    contract: Contract,
    model: Path,
    precision: str = "fp32",
    parity: str = "auto",
    formats: OrtFormats | None = None,
) -> Iterator[Check]:
    """Yields the checks that an export has to pass before it replaces an older one, in the order they are made.

    parity: `whole`, `layers`, or `auto`: `whole` if that fits in memory. formats: of the graph's weights, if it is
    compared with its own arithmetic in PyTorch (`quantized_reference`) and not by its precision's bounds.
    """
    graph = check_onnx(model)
    yield graph
    if not graph.ok:
        return
    if not PRECISIONS[precision].on_cpu:
        yield Check("steps", True, f"not run: ONNX Runtime's CPU has no {precision}")
        return
    if not proves_whole(source, parity):
        yield from check_by_layer(source, contract, model, precision, formats)
        return
    reference, requests = (
        TorchBackend(source.build(), contract, barred=source.list_missing_ids()),
        sample_requests(contract),
    )
    candidate = OrtBackend(model, contract, allow_spinning=False)  # PyTorch and the engine take turns
    instrumented, arithmetic = (
        load_instrumented(model, candidate),
        QuantizedBackend(source, contract, formats) if formats else None,
    )
    *_, found = compare(reference, candidate, requests, separate=1, instrumented=instrumented, arithmetic=arithmetic)
    yield from found.make_checks(TIE, precision, compute_whole_bound(found.lost) if formats else None)
    if "speculative" in contract.modes and PRECISIONS[precision].exact:
        yield compare_speculative(reference, candidate, requests)


def proves_whole(source: Checkpoint, parity: str) -> bool:
    """Returns whether a model is proved whole, and not layer by layer. parity: as in `prove`."""
    return parity == "whole" or (parity == "auto" and fits_whole(source.model))


def fits_whole(shape: ModelConfig) -> bool:
    """Returns whether three fp32 models (PyTorch, engine, instrumented graph) fit in WHOLE and half of the memory."""
    size = 4 * sum(math.prod(each) for each in list_expected_shapes(shape).values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 3 * size <= min(WHOLE, memory // 2)


def sample_requests(contract: Contract) -> list[Request]:
    """Makes requests with random prompts, of lengths that show errors at block boundaries, for answers of two blocks.

    A prompt that leaves no room for an answer is left out.
    """
    rng, block = np.random.default_rng(SEED), contract.block
    ids = np.setdiff1d(np.arange(contract.vocab), (contract.mask_id, contract.pad_id, *contract.eos_ids))
    lengths = sorted({1, max(1, block - 1), block, block + 1, 3 * block + 2})
    rooms = [(length, count_room_for_answer(contract, length)) for length in lengths]
    return [Request(rng.choice(ids, length), DecodeOptions(min(room, 2 * block + 1))) for length, room in rooms if room]


def check_onnx(file: Path) -> Check:
    """Checks whether a graph is valid ONNX."""
    try:
        onnx.checker.check_model(file)
    except onnx.checker.ValidationError as error:
        return Check("graph", False, describe_error(error, 200))
    return Check("graph", True, f"{file.stat().st_size / 1e6:.1f} MB, valid for onnx {onnx.__version__}")
