"""Lists the precisions that graphs are exported in, one row each. The runtime has its own table of what each costs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Floors:
    """Holds the least bounds on a replay, which leave room for other machines. A bundle has its measured bounds.

    Args:
        mean_norm: bound on mean norms of new keys and values, relative.
        mean_log_prob: bound on mean log-probabilities and entropies, nats.
        largest_log_prob: bound on a single log-probability, nats.
        mean_spread: bound on the spread of the top tokens' log-probabilities, relative.
    """

    mean_norm: float = 1e-3
    mean_log_prob: float = 2e-2
    largest_log_prob: float = 2.0
    mean_spread: float = 1e-2


@dataclass(frozen=True, slots=True)
class Precision:
    """Describes the numbers of a graph, which machines run them, and how far results may be from PyTorch's.

    Args:
        weights: the format in which TensorRT stores the layers' weights, a name in `quantization.trt_formats`; None if
            they are not quantized. ONNX Runtime's formats are in `quantization.ort_formats`.
        dtype: type of the weights that are not quantized, of attention heads and of the KV cache.
        capability, rtx: lowest compute capability under TensorRT and under TensorRT for RTX.
        on_cpu: whether ONNX Runtime's CPU has the operators; if not, at most the dequantized graph is proved there.
        log_prob: bound on the difference of the top-1 token's log-probability, nats.
        layer: bound on the difference of a single number in a proof by layer, in units of the root mean square of what
            a layer adds, of its keys or values, or of the embeddings; NaN if no proof runs single layers.
        entropy: bound on the difference of entropy, nats; by default infinite: the difference is only reported.
        calibrated: whether activations are quantized too, in ranges measured on prompts.
        exact: whether top-1 tokens and answers have to be the same as PyTorch's.
        replay: the least bounds for an engine's replay of its recorded reference.
    """

    name: str
    weights: str | None
    dtype: str
    capability: int
    rtx: int
    on_cpu: bool
    log_prob: float
    layer: float
    entropy: float = math.inf
    calibrated: bool = False
    exact: bool = False
    replay: Floors = Floors()


# LOG.md explains how the bounds other than fp32's were found. They do not apply to quantized graphs for ONNX Runtime:
# their loss depends on the model (`proof.quantized_reference.compute_whole_bound`). The exporting machine may compute
# fp16 in fp32, so only the least bounds of a replay leave room for machines that multiply in fp16, as a Cortex-A76.
PRECISIONS = {
    each.name: each
    for each in (
        # TensorRT for RTX has no fp32 product for GPUs before Ampere.
        Precision(
            "fp32", None, "float32", 75, 80, True, 1e-4, 1e-4, 1e-4, exact=True, replay=Floors(2e-6, 1e-5, 5e-5, 2e-6)
        ),
        Precision("fp16", None, "float16", 75, 75, True, 0.1, 0.05, 0.1, replay=Floors(4e-4, 1e-2, 0.3, 1.6e-3)),
        Precision("bf16", None, "bfloat16", 80, 80, False, 1.0, math.nan),
        Precision("int8", "int8", "float16", 75, 75, True, 2.0, 1.0, replay=Floors(2e-4, 1e-3, 1.0, 3e-4)),
        Precision("int8-static", "int8", "float16", 75, 75, True, 4.0, 2.0, calibrated=True),
        Precision("fp8", "fp8", "float16", 89, 89, True, 4.0, 1.0),
        Precision("int4", "int4", "float16", 80, 80, True, 6.0, 2.0, replay=Floors(3e-4, 5e-3, 2.0, 3e-4)),
        Precision("nvfp4", "nvfp4", "float16", 100, 100, False, 6.0, 2.0),
    )
}
