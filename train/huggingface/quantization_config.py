"""Reads the quantization of a config.json: GPTQ and AWQ as a scheme, all others refused by name.

The keys are those of transformers (`utils/quantization_config.py`: `GPTQConfig`, `AwqConfig`), AutoGPTQ, GPTQModel
(`gptqmodel/quantization/config.py`) and AutoAWQ (`awq/models/_config.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError

KEY = "quantization_config"
V1, V2, GEMM, GEMV = "gptq", "gptq_v2", "gemm", "gemv"
LAYOUTS = {"gptq": (V1, V2), "awq": (GEMM, GEMV)}  # the first is the default
BITS = {"gptq": (2, 3, 4, 8), "awq": (4,)}
LAYOUT_KEYS = ("checkpoint_format", "format", "version")
REFUSED = {  # by quant_method, why it is not supported
    "bitsandbytes": "its blocks of NF4, FP4 or int8 have scales that are quantized again",
    "compressed-tensors": "it is a container of many schemes, some of activations too",
    "fp8": "its weights are 8-bit floats, for kernels of their own",
    "fbgemm_fp8": "its weights are 8-bit floats, for kernels of their own",
    "hqq": "its zero points are not whole numbers",
    "auto-round": "its own packing is not read; export it as auto_gptq",
    "modelopt": "its weights are floats of 4 or 8 bits with scales over scales",
    "mxfp4": "its weights are 4-bit floats",
    "nvfp4": "its weights are 4-bit floats with scales over scales",
    "torchao": "its tensors are objects of a library",
    "quanto": "its tensors are objects of a library",
}
ADVICE = "give a GPTQ or AWQ checkpoint, or the one that it was made of"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a directory's weights are quantized.

    Attributes:
        layout: one of `LAYOUTS`.
        bits: of a value.
        group_size: inputs under one scale and zero point, 0 for all of them.
        act_order: whether inputs are of groups in an order of their own, which `g_idx` has to tell.
        symmetric: whether the config declares each zero point half of the range.
        carries: see `packed_codes.unpack_gptq_zeros`.
    """

    layout: str
    bits: int
    group_size: int
    act_order: bool
    symmetric: bool
    carries: bool


def find_scheme(values: Mapping[str, Any], path: Path) -> Scheme | None:
    """Returns the scheme in a config.json's values, or None if the weights are not quantized.

    Raises UserError, which names the reason, for a scheme that is not supported.
    """
    config = values.get(KEY)
    if not config:
        return None
    if not isinstance(config, dict):
        raise UserError(f"{path} has {config!r} as {KEY}; expected an object")
    method = _find_method(config)
    if method not in LAYOUTS:
        why = f": {REFUSED[method]}" if method in REFUSED else ""
        raise UserError(f"{path} has weights quantized by {method}, which is not supported{why}; {ADVICE}")
    layout = _find_layout(config, method, path)
    for key in ("adapter", "rotation"):
        if config.get(key):
            raise UserError(f"{path} has {key} in its {KEY}, which is not supported; {ADVICE}")
    dynamic = config.get("dynamic")
    if isinstance(dynamic, dict) and any(not str(name).startswith("-:") for name in dynamic):
        raise UserError(
            f"{path} has bits or groups of their own for some modules ({KEY}.dynamic), which is not supported; {ADVICE}"
        )
    if config.get("pack_dtype", "int32") != "int32":
        raise UserError(f"{path} has weights in words of {config['pack_dtype']}, which is not supported; {ADVICE}")
    bits, size = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    if bits not in BITS[method]:
        known = ", ".join(map(str, BITS[method]))
        raise UserError(f"{path} has {method} weights of {bits!r} bits; expected one of {known}: {ADVICE}")
    if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or size > 0):
        raise UserError(f"{path} has group_size {size!r} in its {KEY}; expected a number above 0, or -1")
    meta = config.get("meta")
    return Scheme(
        layout,
        int(bits),
        max(0, size),
        act_order=method == "gptq" and config.get("desc_act") is True,
        symmetric=method == "gptq" and config.get("sym") is True,
        carries="gptqmodel" in str(meta.get("quantizer", "") if isinstance(meta, dict) else "").lower(),
    )


def _find_method(config: Mapping[str, Any]) -> str:
    """Returns the method's name; bitsandbytes is known by its flags if it is not named."""
    named = config.get("quant_method")
    if named is not None:
        return str(named).lower()
    flags = config.get("load_in_4bit") or config.get("load_in_8bit")
    return "bitsandbytes" if flags else f"a method that its {KEY} does not name"


def _find_layout(config: Mapping[str, Any], method: str, path: Path) -> str:
    """Returns the layout of a method's tensors. Raises UserError if it is not supported or ambiguous."""
    named = {str(config[key]).lower() for key in LAYOUT_KEYS if config.get(key) is not None}
    if config.get("is_marlin_format"):
        named = {"marlin"}
    if config.get("backend") == "llm-awq":
        named = {"llm-awq"}
    if len(named) > 1:
        raise UserError(
            f"{path} has more than one layout in its {KEY} ({', '.join(sorted(named))}); remove those that are wrong"
        )
    layout = named.pop() if named else LAYOUTS[method][0]
    if layout not in LAYOUTS[method]:
        known = " and ".join(LAYOUTS[method])
        raise UserError(
            f"{path} has {method} weights in the layout {layout}, which is not supported; {known} are: save it as "
            f"{LAYOUTS[method][0]}"
        )
    return layout
