"""Creates sessions of ONNX Runtime with the threads, products and layout of weights that blockstep wants."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ...errors import UserError, describe_error
from . import ort_cuda
from .no_telemetry import ort
from .ort_files import create_session
from .saturation import require_exact_products
from .threads import count_physical_cores

SPINNING = "session.intra_op.allow_spinning"  # ONNX Runtime's name of the setting, "1" by default
NO_PREPACKING = "session.disable_prepacking"  # likewise, "0" by default


def load_session(
    model: Path,
    threads: int | None = None,
    device: str = "cpu",
    files: Collection[str] = (),
    *,
    allow_spinning: bool = True,
    prepacking: bool = True,
) -> ort.InferenceSession:
    """Returns a session, which several backends may share.

    Args:
        files: the engine's files in the manifest, see `ort_files.create_session`.
        allow_spinning: whether idle threads spin, ready for the next operator, or sleep and leave the cores to others.
        prepacking: whether to copy weights into a layout that is faster to multiply; takes their memory once more.

    Raises:
        UserError: if ONNX Runtime cannot load the file or use the device.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or count_physical_cores()
    options.log_severity_level = 3  # errors
    for name, value in [(SPINNING, "0")] * (not allow_spinning) + [(NO_PREPACKING, "1")] * (not prepacking):
        options.add_session_config_entry(name, value)
    if device != "cpu":
        return ort_cuda.open_session(model, options, files)
    require_exact_products(options)
    try:
        return create_session(model, files, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        reason = describe_error(error, 200)
        raise UserError(
            f"onnxruntime {ort.__version__} cannot load {model} ({reason}); expected an exported step graph and "
            "onnxruntime 1.30 or newer"
        ) from None
