"""Opens the model to evaluate that the options name: a checkpoint in PyTorch, or a bundle's engine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from runtime.backend import Backend
from runtime.cli import add_options, option, parse_threads
from runtime.contract import MODES, GateSpec, parse_gate
from runtime.errors import UserError
from runtime.text.tokenizer import read_engine
from train import checkpoint, open_checkpoint
from train.cli_options import GATE_OPTION, RAW_OPTION, add_directory_options
from train.data import prompts
from train.huggingface.families import Overrides
from train.methods import table
from train.torch_backend import TorchBackend, derive_contract, limit_threads

OWN = ("--attention", "--gate")  # options that apply to .pt files too, --gate also to bundles
BATCH = 64  # answers decoded at once in PyTorch
CANDIDATES = 128  # maximum that a decision may name per logits row in PyTorch
HELP = {  # help texts that do not fit on the line of their option below
    "threads": "threads of PyTorch or of the engine (default: the physical cores within the CPU quota)",
    "bf16": "use bf16 autocast in PyTorch: faster if the processor has bf16, not exact (default: off)",
}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The options of `add_model_options`: the model to evaluate, and how to run it; None for a default.

    overrides: the options of a Hugging Face directory without OWN; template_args applies to bundles too.
    """

    ckpt: Path | None
    bundle: Path | None
    engine: str | None
    attention: str | None
    batch: int | None
    threads: int | None
    bf16: bool | None
    raw: bool
    overrides: Overrides


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model to evaluate: its backend, prompt encoding, own gate, and how many answers are decoded at once.

    engine: its name in the bundle, `torch` for a checkpoint.
    """

    backend: Backend
    tokenizer: Tokenizer
    encode_prompts: prompts.Encode
    gate: GateSpec
    batch: int
    engine: str


def make_torch_backend(saved: checkpoint.Checkpoint, batch: int, attention: str | None, bf16: bool) -> TorchBackend:
    """Returns a checkpoint as a batched PyTorch backend; `attention` runs its weights under another mask."""
    if attention is not None:
        modes = saved.decoding.modes if attention == saved.decoding.attention else MODES[:1]
        saved = replace(saved, decoding=replace(saved.decoding, attention=attention, modes=modes))
    contract = derive_contract(saved, batch, candidates=min(CANDIDATES, saved.count_vocab() - 1))
    return TorchBackend(saved.build(), contract, bf16=bf16, barred=saved.list_missing_ids())


def open_evaluated_model(options: ModelOptions) -> EvaluatedModel:
    """Opens the model that the options name. Raises UserError for what `check_model_options` refuses."""
    check_model_options(options)
    if options.ckpt is not None:
        return _open_checkpoint(options.ckpt, options)
    assert options.bundle is not None  # one of the two is given
    from runtime.bundle.store import read  # loaded only if an engine is requested
    from runtime.open_bundle import load

    arguments = options.overrides.template_args
    model = load(options.bundle, engine=options.engine, threads=options.threads, template_args=arguments)
    tokenizer = read_engine(read(options.bundle).tokenizer)
    tokenizer.encode_special_tokens = True
    encode_prompts = (
        prompts.make_plain_encoder(tokenizer) if options.raw else prompts.make_chat_encoder(model.tokenizer)
    )
    return EvaluatedModel(model.backend, tokenizer, encode_prompts, model.gate, 1, model.engine)


def check_model_options(options: ModelOptions) -> None:
    """Raises UserError, before a model is loaded, for one that does not exist, an engine that the bundle lacks, and
    options that only the other kind of model has."""
    if options.ckpt is not None:
        if not options.ckpt.exists():
            made = "give a .pt file that blockstep train wrote, or a Hugging Face directory"
            raise UserError(f"no checkpoint at {options.ckpt}; {made}")
        if options.engine is not None:
            raise UserError("--engine was given with --ckpt, which runs in PyTorch; it is for --bundle")
        return
    assert options.bundle is not None  # one of the two is given
    from runtime.bundle.store import read  # loaded only if an engine is requested

    read(options.bundle).find_engine(options.engine)
    overrides = {name: value for name, value in asdict(options.overrides).items() if name != "template_args"}
    in_torch = {"batch": options.batch, "bf16": options.bf16, **overrides, "attention": options.attention}
    if given := next((name for name, value in in_torch.items() if value is not None), None):
        option = f"--{given.replace('_', '-')}"
        raise UserError(f"{option} was given with --bundle, whose engine is fixed; it is for --ckpt")


def _open_checkpoint(ckpt: Path, options: ModelOptions) -> EvaluatedModel:
    limit_threads(options.threads)
    saved, batch = open_checkpoint.load(ckpt, options.overrides), BATCH if options.batch is None else options.batch
    backend = make_torch_backend(saved, batch, options.attention, bool(options.bf16))
    encode_prompts = prompts.make_encoder(saved, options.raw)
    return EvaluatedModel(backend, saved.read_tokenizer(), encode_prompts, backend.contract.gate, batch, "torch")


def choose_gate(spec: GateSpec, changes: Mapping[str, Any] | None, threshold: float | None = None) -> GateSpec:
    """Returns the model's gate as --gate and --threshold change it; a changed metric sets its comparator too."""
    changed = {**(changes or {}), **({} if threshold is None else {"threshold": threshold})}
    if "metric" in changed:
        changed = {"comparator": "<=" if changed["metric"] == "entropy" else ">=", **changed}
    return parse_gate({**asdict(spec), **changed})


MODEL_OPTIONS = (
    option("--engine", help="name of an engine in the bundle (default: its first for ONNX Runtime)"),
    option(
        "--attention",
        choices=table.ATTENTIONS,
        help="attention mask to run the weights under (default: the checkpoint's)",
    ),
    option("--batch", type=int, help=f"answers decoded at once in PyTorch (default: {BATCH})"),
    option("--threads", type=parse_threads, metavar="N", help=HELP["threads"]),
    option("--bf16", action="store_true", default=None, help=HELP["bf16"]),
    RAW_OPTION,
    GATE_OPTION,
)


def add_model_options(p: argparse.ArgumentParser) -> None:
    """Adds the options that name the model to evaluate and say how to run it."""
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--ckpt", type=Path, help="checkpoint to run in PyTorch: a .pt file or a Hugging Face directory"
    )
    source.add_argument("--bundle", type=Path, help="bundle to run by its engine")
    add_options(p, MODEL_OPTIONS)
    add_directory_options(p, OWN)
