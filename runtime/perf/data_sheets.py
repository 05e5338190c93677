"""Lists devices by their vendors' data sheets: memory bandwidth, and dense tensor operations per second.

All figures are dense. Vendors advertise operations with structured sparsity, which no model here has; if a sheet has
only the sparse figure, the dense one is half of it. Jetson figures are for the GPU in the module's fastest power mode,
without the DLA, which the advertised sums include. fp16 products are accumulated in fp32, as engines do; GeForce cards
then run at half their advertised rate. int4 and nvfp4 weights are unpacked and multiplied as fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError
from .op_counts import WEIGHT_SIZES, ForwardWork, ModelShape, PassSize, count_work

MOST = 1 << 16  # tokens, limit of the search for the widest block


@dataclass(frozen=True, slots=True)
class Device:
    """Describes a device. bandwidth: GB (1e9 bytes) per second; rates: 1e12 operations per second by weight precision.

    wide: the precision of attention and KV cache if weights are quantized. source: the figures' source.
    """

    name: str
    bandwidth: float
    rates: Mapping[str, float]
    wide: str
    source: str

    def count_number_bytes(self, precision: str) -> int:
        """Returns the bytes per number outside of matrices, such as in the KV cache."""
        return WEIGHT_SIZES[precision].number or WEIGHT_SIZES[self.wide].number or 4

    def compute_ridge(self, precision: str) -> float:
        """Returns the operations per byte above which computing, not memory, bounds the time."""
        return 1000 * self.rates[precision] / self.bandwidth

    def count_work(self, shape: ModelShape, precision: str, forward: PassSize) -> ForwardWork:
        """Returns what the forward pass costs on this device."""
        return count_work(shape, WEIGHT_SIZES[precision], self.count_number_bytes(precision), forward)

    def estimate_memory_ms(self, load: ForwardWork) -> float:
        """Returns the milliseconds for moving the forward pass's bytes."""
        return (load.weights + load.cache) / self.bandwidth / 1e6

    def estimate_compute_ms(self, load: ForwardWork, precision: str) -> float:
        """Returns the milliseconds for the operations; attention runs in fp16 or fp32, whatever the weights are."""
        mixing = precision if WEIGHT_SIZES[precision].number else self.wide
        return load.linear / self.rates[precision] / 1e9 + load.attention / self.rates[mixing] / 1e9

    def estimate_ms(self, load: ForwardWork, precision: str) -> float:
        """Returns the least milliseconds of a forward pass: moving bytes and computing overlap completely."""
        return max(self.estimate_memory_ms(load), self.estimate_compute_ms(load, precision))

    def find_widest_block(self, shape: ModelShape, precision: str, batch: int, past: int) -> int:
        """Returns the widest block, in tokens, whose step is still memory-bound; 0 if none is."""
        low, high = 0, MOST
        while low < high:
            block = (low + high + 1) // 2
            load = self.count_work(shape, precision, PassSize(batch, block, past, block))
            if self.estimate_compute_ms(load, precision) <= self.estimate_memory_ms(load):
                low = block
            else:
                high = block - 1
        return low


def gpu(name: str, bandwidth: float, fp16: float, int8: float, source: str) -> Device:
    """Returns a device that runs TensorRT: attention and KV cache are fp16."""
    return Device(name, bandwidth, {"fp16": fp16, "int8": int8, "int4": fp16}, "fp16", source)


DEVICES = {
    "orin-nano": gpu(
        "Jetson Orin Nano 8GB", 102, 17, 33, "NVIDIA, Jetson Orin Nano Super: 67 TOPS sparse, 33 dense, 17 FP16 TFLOPS"
    ),
    "orin-nx": gpu(
        "Jetson Orin NX 16GB", 102.4, 19.2, 38.4,
        "NVIDIA, Jetson Orin NX Series data sheet, MAXN SUPER: 32 tensor cores at 1173 MHz, 256 FP16 FMA a clock each",
    ),
    "agx-orin": gpu(
        "Jetson AGX Orin 64GB", 204.8, 42.5, 85,
        "NVIDIA, Jetson AGX Orin Series technical brief: GPU 170 sparse INT8 TOPS; FP16 half of INT8",
    ),
    "thor": gpu(
        "Jetson AGX Thor", 273, 258, 517,
        "NVIDIA, Jetson Thor: 2070 sparse FP4 TFLOPS; dense half, FP8 and INT8 half of FP4, FP16 half of FP8",
    ),
    "rtx-4090": gpu(
        "GeForce RTX 4090", 1008, 165.2, 660.6, "NVIDIA, Ada GPU architecture: FP16 with FP32 accumulate, INT8, dense"
    ),
    "rtx-5090": gpu(
        "GeForce RTX 5090", 1792, 209.5, 838, "NVIDIA, RTX Blackwell GPU architecture: as of the RTX 4090"
    ),
    "h200": gpu(
        "H200 SXM", 4800, 989.5, 1979, "NVIDIA, H200 data sheet: 1,979 FP16 and 3,958 INT8 sparse, half of it dense"
    ),
}  # fmt: skip


def choose_devices(words: str) -> list[str]:
    """Parses a comma-separated list of keys of DEVICES or `local`. Raises UserError for any other word."""
    found = [word.strip() for word in words.split(",")]
    known = (*DEVICES, "local")
    if wrong := [word for word in found if word not in known]:
        raise UserError(f"--devices has {wrong[0]!r}; expected some of {', '.join(known)}")
    return list(dict.fromkeys(found))
