"""Opens a bundle: chooses its engine, checks its files, loads them, and makes a model of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import load_check
from .engines.registry import OpenOptions, choose_engines
from .errors import UserError
from .model import Model

if TYPE_CHECKING:
    from .backend import Backend
    from .bundle.manifest import Bundle, Engine

MOST_THREADS = 1024  # more take seconds to start, and no machine here has as many cores
POLICIES = ("first", "always", "never")  # when a bundle's files are verified


def load(
    path: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    verify: str = "first",
    device: str = "cpu",
    trust_engine: bool = False,
    allow_spinning: bool = True,
    template_args: Mapping[str, Any] | None = None,
    cuda_graphs: bool = True,
) -> Model:
    """Opens the model in a bundle's folder, ready to generate.

    Args:
        engine: A name in the manifest, or a kind (`ort`, `trt`) or dialect for the first such engine that runs here; by
            default `ort`.
        threads: Threads of a forward pass; by default the physical cores within the CPU quota, or one for a small int8
            engine.
        verify: `first`: at the first load, check the files' hashes, try the files in a child process, on the CPU
            whatever the device, and prove the engine with a part of its recorded reference; `always`: at every load;
            `never`: not at all.
        device: `cpu` or `cuda`, for ONNX Runtime engines; `cuda` takes the first engine that CUDA has kernels for.
        trust_engine: Whether to load a TensorRT engine, which is native code, even if this machine did not build it.
        allow_spinning: Whether ONNX Runtime's threads spin while they wait for the next operator or forward pass;
            otherwise they sleep, which leaves the cores to others.
        template_args: Default arguments of the chat template, such as {"enable_thinking": False}; they override the
            bundle's.
        cuda_graphs: False launches every kernel of a TensorRT engine by itself, to measure what replaying CUDA graphs
            saves.

    Raises:
        UserError: For a bundle, engine, package, driver or GPU that is missing or does not fit, for files that crash,
            hang or take all memory, and for an engine that does not compute on this machine what PyTorch computed at
            its export.
    """
    from .bundle.manifest import check_regular
    from .bundle.store import read
    from .text.chat_template import add_arguments
    from .text.tokenizer import Tokenizer

    if not str(path):  # Path("") is the current folder
        raise UserError("the bundle's path is empty; expected the folder of a bundle")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UserError(f"threads is {threads}; expected 1 to {MOST_THREADS}")
    bundle = read(Path(path))
    template = add_arguments(bundle.chat_template, template_args) if template_args else bundle.chat_template
    engines = choose_engines(bundle, engine, device)
    kind, first = engines[0].kind, engines[0]
    kind.import_library(device)
    if not cuda_graphs and not kind.native_code:
        raise UserError(f"{first.name} runs without CUDA graphs anyway; leave --no-cuda-graphs out")
    options = OpenOptions(device, threads, trust_engine, allow_spinning, cuda_graphs)
    if verify not in POLICIES:
        raise UserError(f"verify is {verify!r}; expected {', '.join(POLICIES[:-1])} or {POLICIES[-1]}")
    if verify == "never":  # nothing below looks at what the files are
        named = {*bundle.texts, *(name for each in engines for name in each.hashed_files)}
        for file in (bundle.path / name for name in sorted(named)):
            if file.exists():
                check_regular(file)
    proved = verify == "never" or _try_files(bundle, first, options, verify)
    chosen, backend = kind.open(bundle, engines, options)
    if not proved:
        _prove_here(bundle, chosen, backend, options, verify)
    tokenizer = Tokenizer(bundle.tokenizer, template)
    gate, shown = chosen.gate or bundle.contract.gate, None if chosen.reference is None else verify != "never"
    return Model(backend, tokenizer, gate, chosen.name, chosen.precision, shown, chosen.decision_temperature)


def _try_files(bundle: Bundle, engine: Engine, options: OpenOptions, verify: str) -> bool:
    """Checks hashes; if files or engine are not known yet, a child process tries the files and proves the engine.

    Returns whether the engine needs no further proof. The child runs on the CPU: engines on other devices, and native
    code, which is either trusted or not loaded, are proved in this process (`_prove_here`).
    """
    from .bundle.store import verify_files
    from .proof import first_load
    from .text.chat_template import can_render

    outside = engine.kind.native_code or options.device != "cpu"
    known = not outside and verify == "first" and first_load.is_proved(engine, options.device)
    proving = not outside and not known and engine.reference is not None
    tried = None if engine.kind.native_code else engine
    attempts = list[bool]()

    def attempt() -> bool:
        attempts.append(load_check.attempt(bundle, tried, options.threads, proving))
        return attempts[-1]

    # A child without jinja2 does not render the template, so that it is tried at the first load with jinja2.
    left = [*bundle.texts][-1:] if bundle.chat_template is not None and not can_render() else []
    verify_files(bundle, tried or replace(engine, files={}, reference=None), verify, attempt, left)
    if proving and not attempts:  # the files were tried before, on another machine or with another library
        attempt()
    if proving and attempts[-1]:
        first_load.remember(engine, options.device)
    return known or (proving and attempts[-1])


def _prove_here(bundle: Bundle, engine: Engine, backend: Backend, options: OpenOptions, verify: str) -> None:
    """Proves an engine that no child process has proved. Raises UserError if it differs from its reference."""
    from .proof import first_load

    if verify == "first" and first_load.is_proved(engine, options.device):
        return
    if refused := first_load.find_refusal(bundle, engine, backend, options):
        raise UserError(refused)
    first_load.remember(engine, options.device)
