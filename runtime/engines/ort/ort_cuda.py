"""Opens ONNX Runtime on an NVIDIA GPU, and refuses graphs that would be wrong or slow there.

ONNX Runtime silently runs a node without a CUDA kernel on the CPU. IO binding copies an input to its reader's device
only once, when it is bound: a CPU node would always read the KV cache as it was at that moment, and tokens would be
wrong. This follows from ONNX Runtime's source; nothing here was run on a GPU. Nodes that compute lengths run on the CPU
by ONNX Runtime's design, and are allowed to.
"""

from __future__ import annotations

import contextlib
import io
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError, describe_error
from .onnx_nodes import find_cache_nodes

if TYPE_CHECKING:
    from ...bundle.manifest import Bundle, Engine

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# For each device the dialects, the better one first, and the precisions that it has kernels for. CUDA's
# GroupQueryAttention does not take fp32, which int8 and int4 graphs use too, and CUDA has no DynamicQuantizeMatMul. The
# dialect plain keeps its KV cache on the host. The CPU cannot multiply bf16. `check_placement` decides on the rest.
KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {"ort": ("fp32", "fp16", "int8", "int4"), "standard": ("fp32", "fp16", "int8", "int4")},
    "cuda": {"standard": ("fp32", "fp16", "bf16", "int8", "int4"), "ort": ("fp16",), "plain": ()},
}
ATTENTION = {"GroupQueryAttention", "Attention"}
PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulNBits"}
EXPORT = "export one: blockstep export onnx --ckpt CKPT --device cuda, or use --device cpu"
DRIVER = "NVIDIA's driver 580 or newer"  # for CUDA 13, which onnxruntime-gpu needs from 1.30 on
ARM_GPUS = "SM89, SM90, SM120 or SM121"  # supported by onnxruntime-gpu 1.31.1's aarch64 wheel; Jetsons are SM87, SM110
OPTIONS = {"use_tf32": "0"}  # TF32 is on by default, and would round fp32 products to 10 bits
QUIET, USUAL = 4, 2  # levels of ONNX Runtime's log: only fatal errors, and the default


def select_engines(bundle: Bundle, engines: Sequence[Engine], device: str) -> Sequence[Engine]:
    """Returns the engines that a device has kernels for, better dialect first. Raises UserError if there are none.

    The better dialect on CUDA is `standard`, whose steps take batches; on the CPU `ort`, whose steps are faster.
    """
    kernels = KERNELS[device]
    order = {dialect: place for place, dialect in enumerate(kernels)}
    found = [e for e in engines if e.precision in kernels.get(e.dialect, (e.precision,))]
    if found:
        return sorted(found, key=lambda e: order.get(e.dialect, len(order)))
    names = ", ".join(f"{e.name} ({e.dialect}, {e.precision})" for e in engines)
    advice = EXPORT if device == "cuda" else "use --device cuda, or export another precision"
    raise UserError(f"{device.upper()} has no kernels for {names} of {bundle.path}; {advice}")


def install_line() -> str:
    """Returns how to get an ONNX Runtime with CUDA on this machine."""
    line = (
        "pip uninstall onnxruntime, then pip install 'blockstep[gpu]', which is onnxruntime-gpu[cuda,cudnn] and needs "
        f"{DRIVER}; or use --device cpu"
    )
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return line
    return (
        "onnxruntime-gpu has no wheel with a Jetson's kernels: use TensorRT there, blockstep export trt and --engine "
        f"trt; on another aarch64 machine ({ARM_GPUS}) {line}"
    )


def check_available() -> None:
    """Raises UserError if the installed onnxruntime has no CUDA. Does not load CUDA."""
    from .no_telemetry import ort

    if CUDA not in ort.get_available_providers():
        raise UserError(f"onnxruntime {ort.__version__} runs on the CPU alone; for --device cuda: {install_line()}")


def open_session(model: Path, options: Any, files: Collection[str] = ()) -> Any:
    """Opens a session on the GPU, with TF32 off.

    Args:
        files: the engine's files in the manifest, see `ort_files.create_session`.

    Raises:
        UserError: CUDA cannot be used here, or the graph would be wrong or slow on it (see `check_placement`).
    """
    from .no_telemetry import ort
    from .ort_files import create_session

    check_available()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    missing = preload()
    ort.set_default_logger_severity(QUIET)  # its log would print, in colors, what the UserError below has in a line
    try:
        session = create_session(model, files, options, **choose_providers("cuda"))
        reason = "" if session.get_providers()[0] == CUDA else missing or "no driver or no GPU was found"
    except Exception as error:  # ONNX Runtime's errors have no common class
        reason = describe_error(error, 300)
    finally:
        ort.set_default_logger_severity(USUAL)
    if reason:
        raise UserError(
            f"onnxruntime {ort.__version__} cannot run {model} on CUDA ({reason}); it needs {DRIVER}, and the "
            "libraries that pip install 'onnxruntime-gpu[cuda,cudnn]' brings; or use --device cpu"
        )
    check_placement(read_assignments(session), find_cache_nodes(model))
    return session


def choose_providers(device: str) -> dict[str, Any]:
    """Returns the arguments for `InferenceSession` that choose a device."""
    if device == "cpu":
        return {"providers": [CPU]}
    # ONNX Runtime's fallback would print to stdout, and load the graph again on the CPU.
    return {"providers": [(CUDA, OPTIONS), CPU], "enable_fallback": 0}


def preload() -> str:
    """Loads CUDA's and cuDNN's libraries from NVIDIA's packages; returns the first that cannot be loaded, "" if none.

    By itself ONNX Runtime's library finds them only on the system's search path.
    """
    from .no_telemetry import ort

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # stdout is for the command's answer
        ort.preload_dlls()
    return printed.getvalue().partition("\n")[0][:200]


def read_assignments(session: Any) -> list[tuple[str, str, str]]:
    """Returns provider, name and operator of every node, as the session has recorded them."""
    found = session.get_provider_graph_assignment_info()
    return [(part.ep_name, node.name, node.op_type) for part in found for node in part.get_nodes()]


def check_placement(assigned: Iterable[tuple[str, str, str]], cached: Mapping[str, str]) -> None:
    """Refuses a graph whose KV-cache nodes, attention or products ONNX Runtime would not run on CUDA.

    Args:
        assigned: provider, name and operator of every node, as the session reports them.
        cached: operators, by name, of the nodes that read or write the KV cache.

    Raises:
        UserError: A node of `cached` is not on CUDA, so that tokens would be wrong (a node that lost
            its name in an optimization is found by its operator); or an attention or weight product is not, so that
            the graph would be slower than on the CPU alone.
    """
    assigned = list(assigned)
    wrong = set()
    for name, operator in cached.items():
        own = {provider for provider, own_name, _ in assigned if own_name == name}
        if (own or {provider for provider, _, kind in assigned if kind == operator}) != {CUDA}:
            wrong.add(operator)
    if wrong:
        raise UserError(
            f"onnxruntime would run {', '.join(sorted(wrong))}, which reads or writes the KV cache, on the CPU and not "
            f"on CUDA, so tokens would be wrong: {EXPORT}"
        )
    elsewhere = {operator for provider, _, operator in assigned if provider != CUDA}
    if slow := elsewhere & (ATTENTION | PRODUCTS):
        raise UserError(
            f"onnxruntime has no CUDA kernel for this graph's {', '.join(sorted(slow))}, which would run on the "
            f"CPU; {EXPORT}"
        )
