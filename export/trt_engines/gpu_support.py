"""Finds which GPUs can run a precision, which GPUs the installed TensorRT builds for, and how to install TensorRT."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from export.precisions import PRECISIONS
from runtime.engines.registry import KINDS
from runtime.engines.trt.engine import INSTALL_ADVICE, LIBRARIES
from runtime.errors import UserError

TRT_DIALECTS = KINDS["trt"].dialects
FIRST_TRT = (10, 15)  # the first TensorRT with the operators of the dialect `trt`
JETSON = Path("/etc/nv_tegra_release")


@dataclass(frozen=True, slots=True)
class TrtLibrary:
    """Holds an installed TensorRT's flavor and version, and for RTX the compute capabilities that it can build for."""

    flavor: str
    version: str
    capabilities: tuple[int, ...]

    def list_dialects(self) -> tuple[str, ...]:
        """Returns the step-graph dialects that this TensorRT takes, the better one first."""
        number = tuple(int(part) for part in self.version.split(".")[:2])
        return TRT_DIALECTS if self.flavor == "rtx" or number >= FIRST_TRT else TRT_DIALECTS[1:]


def find_library(flavor: str) -> TrtLibrary:
    """Returns the installed TensorRT of a flavor; `auto`: standard TensorRT if it is installed, else TensorRT for RTX.

    Raises UserError, with the command that installs it, if there is none.
    """
    wanted = tuple(LIBRARIES) if flavor == "auto" else (flavor,)
    found = [each for each in wanted if find_spec(LIBRARIES[each]) is not None]
    if not found:
        names = " or ".join(LIBRARIES[each] for each in wanted)
        jetson = flavor == "rtx" and JETSON.exists()
        advice = "give --flavor tensorrt, RTX is not for a Jetson" if jetson else install_line(wanted[-1])
        raise UserError(f"no TensorRT is installed here ({names}); {advice}")
    trt, _ = import_libraries(found[0])
    return TrtLibrary(found[0], str(trt.__version__), list_capabilities(trt) if found[0] == "rtx" else ())


def import_libraries(flavor: str) -> tuple[Any, Any]:
    """Returns the TensorRT module of a flavor, and Polygraphy set to that flavor.

    Raises UserError if either is missing, or if this process uses the other flavor already: Polygraphy reads its flavor
    from the environment once per process.
    """
    rtx = flavor == "rtx"
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(rtx))
    try:
        if rtx:
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
        import polygraphy.backend.trt
        import polygraphy.config
        import polygraphy.exception
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs is missing
        raise UserError(f"{LIBRARIES[flavor]} cannot be used here ({error}); {install_line(flavor)}") from None
    if rtx != getattr(polygraphy.config, "USE_TENSORRT_RTX", False):
        raise UserError("this process built with the other flavor of TensorRT already; use one flavor per process")
    return trt, polygraphy


def install_line(flavor: str) -> str:
    """Returns how to install TensorRT of a flavor on this machine."""
    if JETSON.exists():
        return "on a Jetson: sudo apt-get install python3-libnvinfer, then pip install polygraphy cuda-python"
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "TensorRT is for Linux on x86_64 and aarch64; build there"
    return INSTALL_ADVICE[flavor]


def list_capabilities(trt: Any) -> tuple[int, ...]:
    """Returns the compute capabilities, such as 89, that TensorRT for RTX can build for."""
    names = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(sorted(int(name) for name in names))


def check_library(library: TrtLibrary, dialect: str, standard_only: Mapping[str, object]) -> None:
    """Raises UserError for a dialect that the library lacks, and with RTX for a given option of `standard_only`.

    standard_only: values of the options that TensorRT for RTX does not have, by flag; None and False are not given.
    """
    if library.flavor == "rtx":
        for name, value in standard_only.items():
            if value is not None and value is not False:
                raise UserError(f"{name} is for standard TensorRT, here is the one for RTX; leave it out")
    if dialect == "trt" and "trt" not in library.list_dialects():
        raise UserError(
            f"the dialect trt needs TensorRT {'.'.join(map(str, FIRST_TRT))}, here is {library.version}; "
            "give --dialect plain"
        )


def find_least_capability(precision: str, flavor: str) -> int:
    return PRECISIONS[precision].rtx if flavor == "rtx" else PRECISIONS[precision].capability


def choose_targets(library: TrtLibrary, precision: str, requests: Sequence[int]) -> tuple[int, ...]:
    """Returns the compute capabilities to build for: the requested ones, or all known ones that run the precision.

    None of standard TensorRT, which builds for the GPU here. Raises UserError if any is requested of it, and for one
    that the library does not know or that cannot run the precision.
    """
    if library.flavor != "rtx":
        if requests:
            raise UserError(
                "--compute-capability is for TensorRT for RTX; the standard one builds for the GPU here, leave it out"
            )
        return ()
    for target in requests:
        if target not in library.capabilities:
            known = ", ".join(map(str, library.capabilities))
            raise UserError(f"TensorRT for RTX {library.version} does not build for SM{target}; it knows {known}")
        check_precision(precision, target, library.flavor)
    if requests:
        return tuple(sorted(set(requests)))
    least = find_least_capability(precision, library.flavor)
    return tuple(each for each in library.capabilities if each >= least)


def check_precision(precision: str, target: int, flavor: str) -> None:
    """Raises UserError if a GPU of that compute capability cannot run the precision."""
    least = find_least_capability(precision, flavor)
    if target < least:
        others = ("int4", "int8", "fp16") if PRECISIONS[precision].weights else ("fp16", "int8", "int4")
        instead = next((each for each in others if find_least_capability(each, flavor) <= target), None)
        advice = f"give --precision {instead}, or build for a newer GPU" if instead else "build for a newer GPU"
        raise UserError(
            f"{precision} needs a GPU of compute capability {least} or newer, and SM{target} is to run it; {advice}"
        )
