"""Runs the command `blockstep`, whose first words choose one of the commands below; each is a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .cli import DONE, run
from .errors import UserError
from .perf.conditions import find_version

OWN = ("runtime", "train", "export")  # folders of modules; `runtime` may be installed under another name
COMMANDS = {
    "generate": ("runtime.generate", "generate the answer to a prompt with a bundle"),
    "serve": ("runtime.serve", "serve a bundle over HTTP: OpenAI's API and a page"),
    "verify": ("runtime.verify", "verify a bundle's engine on this machine, without PyTorch"),
    "bench": ("runtime.bench", "time forward passes and whole answers on this machine"),
    "roofline": ("runtime.roofline", "estimate what a block costs on a device, and which block size to train for it"),
    "capi": ("runtime.capi", "build the C library and its header"),
    "check-model": ("export.check_model", "export a Hugging Face directory and compare it with its own modelling code"),
    "export onnx": ("export.onnx", "export a checkpoint for ONNX Runtime"),
    "export trt": ("export.trt", "build TensorRT engines of a checkpoint or of a copied bundle"),
    "export verify": ("export.verify", "compare a bundle with PyTorch, on prompts of your choice"),
    "export fit": ("export.fit", "estimate whether an engine fits a Jetson or an RTX card"),
    "export triton": ("export.triton", "write a model repository for Triton"),
    "train teacher": ("train.teacher", "train an autoregressive baseline or a masked-diffusion teacher"),
    "train collect": ("train.collect", "collect a teacher's trajectories"),
    "train distill": ("train.distill", "distil a few-step student"),
    "train evaluate": ("train.evaluate", "generate and grade answers to held-out problems"),
    "train calibrate": ("train.calibrate", "find the threshold that keeps a student's accuracy"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first words name and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: dispatch(words))


def dispatch(words: Sequence[str]) -> int:
    """Runs the command that `words` begin with, on the rest of them, or lists a group's commands.

    Raises UserError if there is no such command.
    """
    if words[:1] == ["--version"]:
        print(f"blockstep {find_version('blockstep') or '(not installed)'}")
        return DONE
    for count in (1, 2):
        if (name := " ".join(words[:count])) in COMMANDS:
            return int(import_command(COMMANDS[name][0]).main(list(words[count:])))
    group = words[0] if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    rest = words[1:] if group else words
    if not rest or rest[0] in ("-h", "--help"):
        print(format_help(group))
        return DONE
    names = ", ".join(name for name in COMMANDS if name.startswith(group))
    given = " ".join(words[:2] if group else words[:1])
    raise UserError(f"{given!r} is not a command; expected one of {names}; see blockstep --help")


def import_command(module: str) -> ModuleType:
    """Imports a command's module from this installation, even if the user's project has its own `train.py`.

    Raises UserError if a library that it needs is not installed.
    """
    folder, _, name = module.partition(".")
    package = Path(__file__).resolve().parent
    try:
        if folder == OWN[0]:
            return import_module(f"{__package__}.{name}")
        sys.path.insert(0, str(package.parent))  # before the user's folder and PYTHONPATH
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if missing.partition(".")[0] in (*OWN, package.name, __package__):
            raise
        raise UserError(
            f"blockstep {name_of(module)} needs {missing}, which is not installed; "
            f"pip install 'blockstep[cpu,{folder}]'"
        ) from None


def name_of(module: str) -> str:
    """Returns the words that choose a module's command, such as `export onnx`."""
    return next((words for words, (own, _) in COMMANDS.items() if own == module), module.replace(".", " "))


def format_help(group: str = "") -> str:
    """Returns the help text: a list of all commands, or of those of a group such as `train`."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{what}" for name, (_, what) in COMMANDS.items() if name.startswith(group)]
    usage = f"usage: blockstep {group} COMMAND [options]".replace("  ", " ")
    head = [usage, "", "Distil, export and run block-diffusion language models.", ""]
    return "\n".join([*head, *lines, "", "blockstep COMMAND --help lists a command's options and their defaults."])
