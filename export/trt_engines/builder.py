"""Builds TensorRT engines from step graphs through Polygraphy, in both flavors, and parses graphs without building."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.contract import CANDIDATE_INPUT, Contract
from runtime.engines.trt.bindings import BINDING_ERRORS
from runtime.engines.trt.engine import INSTALL_ADVICE, NEEDS_NEWER_DRIVER
from runtime.errors import DeviceError

from .gpu_support import import_libraries
from .parsed_network import Network, inspect, remove_unit_scales

NEEDS_DECOMPOSING = "dedicated kernel"  # in TensorRT's error for an attention without a fused kernel
Profiles = tuple[tuple[int, int], ...]  # least and most tokens of a forward pass, one pair per profile


@dataclass(frozen=True, slots=True)
class BuilderSettings:
    """Holds what a build needs besides the graph.

    flavor: tensorrt | rtx; targets: compute capabilities such as 89, only for TensorRT for RTX, empty for the GPU here;
    workspace: MiB, None for the library's limit; optimization_level: the builder's 0 to 5, None for its default;
    version_compatible: whether later TensorRT versions can load the engine; hardware_compatibility: whether all GPUs
    from Ampere on can; timing_cache: a file that is read and added to; max_prompt: the longest prompt, None for what
    the capacity holds.
    """

    flavor: str
    targets: tuple[int, ...] = ()
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: bool = False
    timing_cache: Path | None = None
    max_prompt: int | None = None


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """Holds an engine's bytes, its network, and whether its attention was decomposed because no fused kernel exists."""

    content: memoryview
    network: Network
    decomposed: bool


ShowProgress = Callable[[str, int, int], None]  # phase, steps done, steps in all


def plan_profiles(contract: Contract, capacity: int, max_prompt: int | None = None) -> Profiles:
    """Returns ranges of widths (tokens per forward pass): one for each of `list_fixed_widths`, buckets for prefills.

    max_prompt: the longest prompt, None for what the capacity holds. A model without a KV cache has one range.
    """
    if not contract.has_cache:
        return ((contract.canvas + 1, capacity),)
    block = contract.block
    widest = min(capacity, (max_prompt or capacity) + block)  # a fused prefill ends with the first block
    fixed = [(width, width) for width in list_fixed_widths(contract) if width <= capacity]
    edges, edge = [], max(128, 2 * block)
    while edge < widest:
        edges.append(edge)
        edge *= 4
    return (*fixed, *zip([1, *(edge + 1 for edge in edges)], [*edges, widest], strict=True))


def list_fixed_widths(contract: Contract) -> list[int]:
    """Returns the widths, in tokens, of the forward passes that decoding repeats.

    First one block; then, as the model's modes need them, two blocks for a fused commit, two blocks less one token to
    verify a draft and make the next, and one token.
    """
    block, widths = contract.block, [contract.block]
    if contract.attention != "causal" and not contract.seeded:
        widths.append(2 * block)
    if "speculative" in contract.modes and contract.drafts_ahead:
        widths.append(2 * block - 1)
    return widths + [1] * ("causal" in contract.modes and block > 1)


def count_logits_rows(contract: Contract) -> int:
    """Returns how many logits rows an engine has: a block, or as many as verify a draft and make the next.

    With fewer, the engine would run twice in nearly every speculative forward pass.
    """
    drafting = 2 * contract.block - 1
    return drafting if drafting in list_fixed_widths(contract) else contract.block


def build_engine(
    model: Path, contract: Contract, profiles: Profiles, settings: BuilderSettings, progress: ShowProgress | None = None
) -> BuiltEngine:
    """Parses the step graph and builds its engine.

    If TensorRT lacks a fused kernel for the attention, builds again with it decomposed. Raises DeviceError with
    TensorRT's message if TensorRT rejects the graph or builds no engine.
    """
    trt, polygraphy = import_libraries(settings.flavor)
    with collect_errors() as messages, redirect_native_output():
        decompose = False
        while True:
            try:
                made = _build(trt, polygraphy, model, contract, profiles, settings, progress, decompose)
                return BuiltEngine(*made, decompose)
            except (polygraphy.exception.PolygraphyException, *BINDING_ERRORS) as error:
                reason = format_error(messages, error)
            if settings.flavor == "tensorrt" and NEEDS_NEWER_DRIVER in reason:
                reason += f"; {INSTALL_ADVICE['tensorrt']}"
            if decompose or NEEDS_DECOMPOSING not in reason:
                raise DeviceError(f"TensorRT does not build {model.name}: {reason}")
            messages.clear()
            decompose = True


def parse_network(model: Path, flavor: str) -> Network:
    """Returns what TensorRT's parser makes of a graph, without building it. Raises DeviceError if the parser fails."""
    trt, polygraphy = import_libraries(flavor)
    with collect_errors() as messages, redirect_native_output():
        try:
            _, network, _ = polygraphy.backend.trt.network_from_onnx_path(str(model), strongly_typed=True)
        except (polygraphy.exception.PolygraphyException, *BINDING_ERRORS) as error:
            raise DeviceError(f"TensorRT does not take {model.name}: {format_error(messages, error)}") from None
        return inspect(trt, network)


def _build(
    trt: Any,
    polygraphy: Any,
    model: Path,
    contract: Contract,
    profiles: Profiles,
    settings: BuilderSettings,
    progress: ShowProgress | None,
    decompose: bool,
) -> tuple[memoryview, Network]:
    loaders = polygraphy.backend.trt
    builder, network, parser = loaders.network_from_onnx_path(str(model), strongly_typed=True)
    found = inspect(trt, network)
    remove_unit_scales(trt, network)
    if decompose:
        loaders.set_decomposable_attentions((builder, network, parser))
    config = make_configuration(trt, settings, profiles, contract, network, progress)
    cache = str(settings.timing_cache) if settings.timing_cache else None
    content = loaders.engine_bytes_from_network((builder, network), config, save_timing_cache=cache)
    return memoryview(content).cast("B"), found  # TensorRT's own memory, not copied: it is as large as the weights


def make_configuration(
    trt: Any,
    settings: BuilderSettings,
    profiles: Profiles,
    contract: Contract,
    network: Any,
    progress: ShowProgress | None,
) -> Callable[..., Any]:
    """Returns a Polygraphy loader of the builder's configuration."""
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    common: dict[str, Any] = {"profiles": []}
    for least, most in profiles:
        profile = Profile()
        for name, shapes in list_shapes(network, contract, least, most):
            profile.add(name, *shapes)
        common["profiles"].append(profile)
    if settings.workspace is not None:
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: settings.workspace << 20}
    if progress is not None:
        common["progress_monitor"] = make_monitor(trt, progress)
    if settings.flavor == "rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capabilities = [divmod(target, 10) for target in settings.targets]
        made: Callable[..., Any] = PostprocessConfig(
            CreateConfigRTX(compute_capabilities=capabilities or None, use_gpu=not capabilities, **common),
            # Without this flag a context may allocate while it runs and so cannot be captured as a CUDA graph.
            lambda builder, network, config: config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION),
        )
        return made
    common |= {
        "builder_optimization_level": settings.optimization_level,
        "version_compatible": settings.version_compatible,
    }
    if settings.hardware_compatibility:
        common["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    cache = settings.timing_cache
    made = CreateConfig(load_timing_cache=str(cache) if cache and cache.is_file() else None, **common)
    return made


def list_shapes(network: Any, contract: Contract, least: int, most: int) -> Iterator[tuple[str, Sequence[list[int]]]]:
    """Yields the smallest, usual and largest shape of each input with an open axis.

    `rows` has one length: the host fills it up. Candidates per row range from 1, the least that TensorRT
    takes, to the contract's count, with which the host always runs.
    """
    rows = count_logits_rows(contract)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if tensor.name == CANDIDATE_INPUT:
            sizes = [1, contract.candidates, contract.candidates]
            yield tensor.name, [[contract.batch, rows, size] for size in sizes]
        elif -1 in shape:
            widths = [rows] * 3 if tensor.name == "rows" else [least, most, most]
            yield tensor.name, [[width if size == -1 else size for size in shape] for width in widths]


def make_monitor(trt: Any, progress: ShowProgress) -> Any:
    """Returns a TensorRT progress monitor that calls a function."""
    phases: dict[str, int] = {}

    def start(self: Any, phase: str, parent: str | None, steps: int) -> None:
        phases[phase] = steps
        progress(phase, 0, steps)

    def step(self: Any, phase: str, done: int) -> bool:
        progress(phase, done + 1, phases[phase])
        return True

    def finish(self: Any, phase: str) -> None:
        progress(phase, phases[phase], phases[phase])

    body: dict[str, Any] = {"phase_start": start, "step_complete": step, "phase_finish": finish}
    body["__init__"] = lambda self: trt.IProgressMonitor.__init__(self)
    return type("Monitor", (trt.IProgressMonitor,), body)()


@contextmanager
def collect_errors() -> Iterator[list[str]]:
    """Collects the errors that TensorRT and Polygraphy would print in the body of the `with`; drops warnings."""
    from polygraphy.logger import G_LOGGER

    messages: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    before, colors = G_LOGGER.use_python_logging_system, G_LOGGER.colors
    G_LOGGER.use_python_logging_system, G_LOGGER.colors = True, False
    logger = G_LOGGER.python_logger
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Polygraphy calls functions that TensorRT for RTX deprecates
            yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        G_LOGGER.use_python_logging_system, G_LOGGER.colors = before, colors


@contextmanager
def redirect_native_output() -> Iterator[None]:
    """Sends to stderr what native code prints to stdout: with --json, stdout must hold one object and nothing else."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def format_error(messages: Sequence[str], error: Exception) -> str:
    """Returns what went wrong, in one line."""
    return " ".join(" ".join(messages or [str(error)]).split())[:400]
