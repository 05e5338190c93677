"""Lists the precisions that graphs are exported in, one row each. The runtime has its own table of what each costs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Floors:
    """Holds the least bounds on a replay, with room for other machines; measured bounds are in the bundle.

    Args:
        mean_norm: of mean norms of new keys and values, relative.
        mean_log_prob: of mean log-probabilities and entropies, nats.
        largest_log_prob: of one log-probability, nats.
        mean_spread: of the spread of the top tokens' log-probabilities, relative.
    """

    mean_norm: float = 1e-3
    mean_log_prob: float = 2e-2
    largest_log_prob: float = 2.0
    mean_spread: float = 1e-2


@dataclass(frozen=True, slots=True)
class Precision:
    """Describes a graph's numbers, who can run them, and how far they may be from PyTorch.

    Args:
        weights: how those of the layers are stored for TensorRT, a name in `quantization.trt_formats`, None if they are
            not quantized. For ONNX Runtime that is in `quantization.ort_formats`.
        dtype: of what is not quantized, heads and KV cache.
        capability, rtx: least compute capability under TensorRT and under TensorRT for RTX.
        on_cpu: whether ONNX Runtime's CPU has the operators; if not, the dequantized graph alone is proved there.
        log_prob: bound on the difference of the best token's log-probability, nats.
        layer: bound on that of a number of one part, in units of the root mean square of what the part adds (a layer),
            makes (keys, values) or looks up (the embedding); NaN if no part is ever run.
        entropy: bound on its difference, nats; by default it is reported alone.
        calibrated: whether activations are quantized too, over ranges measured on prompts.
        exact: whether best tokens and answers have to be PyTorch's.
        replay: the least that its bounds are when an engine replays its recorded reference.
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


# How the bounds other than fp32's were found is in LOG.md. Quantized graphs for ONNX Runtime are not held to them: what
# those cost is the model's own, see `proof.quantized_reference.whole_bound`. A machine that exports fp16 may compute it
# in fp32, so room for another's fp16 products (those of a Cortex-A76 are) is in the least bounds of a replay alone.
PRECISIONS = {
    each.name: each
    for each in (
        # TensorRT for RTX has no fp32 product for GPUs before Ampere.
        Precision(
            "fp32", None, "float32", 75, 80, True, 1e-4, 1e-4, 1e-4, exact=True, replay=Floors(2e-6, 1e-5, 5e-5, 2e-6)
        ),
        Precision("fp16", None, "float16", 75, 75, True, 0.1, 0.05, 0.1, replay=Floors(4e-4, 1e-2, 0.3, 8e-4)),
        Precision("bf16", None, "bfloat16", 80, 80, False, 1.0, math.nan),
        Precision("int8", "int8", "float16", 75, 75, True, 2.0, 1.0, replay=Floors(2e-4, 1e-3, 1.0, 3e-4)),
        Precision("int8-static", "int8", "float16", 75, 75, True, 4.0, 2.0, calibrated=True),
        Precision("fp8", "fp8", "float16", 89, 89, True, 4.0, 1.0),
        Precision("int4", "int4", "float16", 80, 80, True, 6.0, 2.0, replay=Floors(3e-4, 5e-3, 2.0, 3e-4)),
        Precision("nvfp4", "nvfp4", "float16", 100, 100, False, 6.0, 2.0),
    )
}
