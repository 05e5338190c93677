"""Keeps int8 products exact on x86 CPUs whose fast kernel for them saturates.

On AVX2 and AVX-512 without VNNI, ONNX Runtime multiplies u8 activations by s8 weights with `vpmaddubsw`, which adds
pairs of products in 16 bits and saturates: 2 x 255 x 127 is more than 32,767. The session option
`session.x64quantprecision` selects an exact kernel instead (onnxruntime_session_options_config_keys.h). On CPUs with
VNNI or AMX, whose kernels are already exact, the option would select slower ones; so it is set only if a test product
comes out wrong.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .no_telemetry import ort
from .product_models import make_product

OPTION = "session.x64quantprecision"
TERMS, COLUMNS = 4, 32  # of the model `probe`
ROWS = (1, 32)  # a product of one row has its own kernel


@cache
def u8s8_saturates() -> bool:
    """Returns whether products of u8 activations and s8 weights saturate on this CPU.

    Adds four products of 255 and 127: 129,540 if exact, 65,534 if pairs saturate. Takes less than a millisecond, once
    per process. The result is never stored, because a virtual machine may run on another CPU tomorrow.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    multiply = make_product("probe", np.full((TERMS, COLUMNS), 127, np.int8), options)
    exact = 255 * 127 * TERMS
    return any((multiply(np.full((rows, TERMS), 255, np.uint8)) != exact).any() for rows in ROWS)


def require_exact_products(options: ort.SessionOptions) -> None:
    """Sets a session's options so that its int8 products are exact; changes nothing if they are exact anyway."""
    if u8s8_saturates():
        options.add_session_config_entry(OPTION, "1")
