"""Keeps int8 products exact on x86 CPUs whose fast kernel for them saturates.

On AVX2 and AVX-512 without VNNI, ONNX Runtime multiplies u8 activations by s8 weights with `vpmaddubsw`, which adds
pairs of products in 16 bits and saturates: 2 x 255 x 127 is more than 32,767. Its session option
`session.x64quantprecision` takes an exact kernel instead (onnxruntime_session_options_config_keys.h). On CPUs with VNNI
or AMX the same option would replace kernels that are exact already by slower ones, so it is set only if a product that
is computed here comes out wrong.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .no_telemetry import ort
from .product_models import product

OPTION = "session.x64quantprecision"
TERMS, COLUMNS = 4, 32  # of the model `probe`
ROWS = (1, 32)  # one row runs in a kernel of its own


@cache
def u8s8_saturates() -> bool:
    """Returns whether products of u8 activations and s8 weights saturate on this CPU.

    Multiplies 255 by 127 over four terms: 129,540 if sound, 65,534 if pairs saturate. Measured once per process and
    never stored, because a virtual machine's CPU name does not show which CPU it runs on tomorrow. Takes less than a
    millisecond.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    multiply = product("probe", np.full((TERMS, COLUMNS), 127, np.int8), options)
    exact = 255 * 127 * TERMS
    return any((multiply(np.full((rows, TERMS), 255, np.uint8)) != exact).any() for rows in ROWS)


def require_exact_products(options: ort.SessionOptions) -> None:
    """Changes a session's options in place such that its int8 products are exact; none change if they are anyway."""
    if u8s8_saturates():
        options.add_session_config_entry(OPTION, "1")
