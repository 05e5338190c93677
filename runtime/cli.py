"""Holds what the commands share: the parser, common options, and `run`, which turns errors into one line and a code."""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from . import files
from .bundle import strict_json
from .contract import MODES
from .engines.registry import DEFAULT, DEVICES, KINDS
from .errors import DeviceError, NumericalError, UserError, describe_error
from .model import Model
from .open_bundle import MOST_THREADS, POLICIES, load
from .text.chat_template import check_arguments

T = TypeVar("T")
Option = tuple[str, dict[str, Any]]  # a name, and the keywords of argparse's `add_argument`
DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
HELP = {  # help texts that do not fit on the line of their option below
    "engine": (
        f"name of an engine in the bundle, a dialect such as standard, or {' or '.join(KINDS)}: the first match that "
        f"runs here (default: {DEFAULT})"
    ),
    "device": "device of an ONNX Runtime engine; cuda runs the dialect standard, and fp16 of ort (default: cpu)",
    "threads": "threads of the engine (default: the physical cores within the CPU quota; 1 for a small int8 engine)",
    "mode": (
        "decoding mode; block: the gate unmasks blocks of masked positions; causal: token by token, as an "
        "autoregressive model; speculative: the causal answer, drafted block by block (default: block if there is a "
        "threshold or a suffix, else the first mode of the model's contract)"
    ),
    "verify": (
        "loads at which the bundle is checked, by hashes of its files, an isolated load check, and a replay of forward "
        "passes that PyTorch recorded: the first on this machine, all, or none (default: first)"
    ),
    "trust-engine": (
        "load a TensorRT engine that this machine did not build; it is native code and runs as you (default: refuse it)"
    ),
    "allow-spinning": (
        "let ONNX Runtime's threads spin while they wait; --no-allow-spinning spares CPU time if other work shares the "
        "cores (default: on; figures: docs/performance.md)"
    ),
    "template-args": (
        "arguments of the chat template, as in '{\"enable_thinking\": false}' (default: those that the bundle or "
        "checkpoint records, or the model family's)"
    ),
}


class Parser(argparse.ArgumentParser):
    """Parses options; a wrong one raises UserError, which prints as one line, without argparse's usage text."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.register("type", int, expect(parse_whole, "a whole number of 64 bits"))
        self.register("type", float, expect(parse_number, "a finite number"))
        self.register("type", Path, expect(parse_path, "a path"))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def find_program_name(module: str) -> str:
    """Returns how the user called a module's command: `blockstep export onnx`, or `python -m export.onnx`."""
    if Path(sys.argv[0]).stem != "blockstep":
        return f"python -m {module}"
    from .subcommands import name_of  # imported here, since `subcommands` imports this module

    folder, _, name = module.rpartition(".")
    return f"blockstep {name_of(module if folder in ('train', 'export') else f'runtime.{name}')}"


def option(name: str, **settings: Any) -> Option:
    """Returns a row of a command's option table: an option or positional, with the keywords of `add_argument`."""
    return name, settings


def add_options(container: argparse._ActionsContainer, options: Iterable[Option]) -> None:
    """Adds a table's options to a parser or to an option group."""
    for name, settings in options:
        container.add_argument(name, **settings)


def make_cli_parser(module: str, description: str, options: Iterable[Option] = ()) -> Parser:
    """Makes a command's parser. module: the command's module, such as `export.onnx`."""
    parser = Parser(prog=find_program_name(module), description=description)
    add_options(parser, options)
    return parser


def run(command: Callable[[], int]) -> int:
    """Returns a command's exit code: its own, 1 if the model's scores are not numbers or a device failed, 2 for a
    user's mistake, 130 for an interrupt.

    If the reader of stdout closed the pipe, nothing is printed and the code is 0; if the reader of stderr did, the
    command ends early and the code is 1. An OSError that the command does not report itself, such as a full disk, is
    also reported in one line. A closed standard stream is replaced by the null device.
    """
    _open_missing_streams()
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UserError as error:
        return _report(error, MISTAKE)
    except (NumericalError, DeviceError) as error:
        return _report(error, FAILED)
    except BrokenPipeError:
        cut = _has_no_reader(sys.stderr) and not _has_no_reader(sys.stdout)  # what stdout has is not the whole output
        _silence(sys.stderr)
        _silence(sys.stdout)
        return FAILED if cut else DONE
    except UnicodeEncodeError as error:
        lacking = error.object[error.start : error.start + 1]
        advice = "set PYTHONIOENCODING=utf-8, or give --json"
        return _report(UserError(f"the output's encoding {error.encoding} has no {lacking!a}; {advice}"), MISTAKE)
    except OSError as error:
        _silence(sys.stdout)
        what, reason = error.filename or "the output", error.strerror or error
        text = f"{what} cannot be read or written ({reason}); correct that and run the command again"
        return _report(UserError(text), MISTAKE)
    except KeyboardInterrupt:
        return INTERRUPTED


def print_json(values: Mapping[str, Any]) -> None:
    """Prints one JSON object on one line of stdout, in ASCII, which every terminal's encoding has."""
    print(json.dumps(values, allow_nan=False))


def parse_template_args(text: str) -> dict[str, Any]:
    """Parses the arguments of a chat template, as an argparse type."""
    try:
        return check_arguments(strict_json.parse(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{text[:80]!r} is not JSON ({error}); expected an object: {{"enable_thinking": false}}'
        ) from None


def parse_threads(text: str) -> int:
    """Parses a number of threads, for argparse."""
    if not text.isascii() or not text.isdecimal() or not len(text) <= 9 or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"got {text[:20]!r}; expected 1 to {MOST_THREADS} threads")
    return int(text)


ENGINE_OPTIONS = (  # options of every command that loads a bundle
    option("--engine", metavar="NAME", help=HELP["engine"]),
    option("--device", choices=DEVICES, default="cpu", help=HELP["device"]),
    option("--threads", type=parse_threads, metavar="N", help=HELP["threads"]),
    option("--verify", choices=POLICIES, default="first", help=HELP["verify"]),
    option("--trust-engine", action="store_true", help=HELP["trust-engine"]),
    option("--allow-spinning", action=argparse.BooleanOptionalAction, default=True, help=HELP["allow-spinning"]),
)
MODE_OPTION = option("--mode", choices=MODES, help=HELP["mode"])
# An option of the commands that put prompts into a chat template.
TEMPLATE_OPTION = option("--template-args", type=parse_template_args, metavar="JSON", help=HELP["template-args"])


def fill_dataclass(kind: Callable[..., T], args: argparse.Namespace, **own: Any) -> T:
    """Returns `kind` with each field taken from the option of the same name. own: values of the other fields.

    A command does not pass its Namespace to other folders: functions there take a dataclass or plain values.
    """
    names = [field.name for field in fields(kind) if field.name not in own]  # type: ignore[arg-type]
    return kind(**{name: getattr(args, name) for name in names}, **own)


def load_model(args: argparse.Namespace) -> Model:
    """Loads a bundle's model with the parsed ENGINE_OPTIONS, and --template-args and --no-cuda-graphs if given."""
    return load(
        args.bundle,
        engine=args.engine,
        threads=args.threads,
        verify=args.verify,
        device=args.device,
        trust_engine=args.trust_engine,
        allow_spinning=args.allow_spinning,
        template_args=getattr(args, "template_args", None),
        cuda_graphs=not getattr(args, "no_cuda_graphs", False),
    )


def _open_missing_streams() -> None:
    """Replaces standard streams that were closed when the program was started; Python has None for them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # of the free numbers the lowest, which is the closed stream's: no other file gets it, and libraries' prints
            handle = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(handle, mode, encoding="utf-8"))


def _has_no_reader(stream: TextIO) -> bool:
    """Returns whether a stream is a pipe or a socket whose other end is closed."""
    try:
        events = select.poll()
        events.register(stream.fileno(), 0)
    except (OSError, AttributeError):  # not a file; a system without poll
        return False
    return any(found & (select.POLLERR | select.POLLHUP) for _, found in events.poll(0))


def _report(error: Exception, code: int) -> int:
    try:
        print("error:", describe_error(error), file=sys.stderr, flush=True)
    except OSError:  # stderr cannot be written: only the exit code reports the error
        _silence(sys.stderr)
    return code


def _silence(stream: TextIO) -> None:
    """Discards a stream's buffer if it cannot be written: otherwise the flush at interpreter exit prints an error."""
    try:
        stream.flush()
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


def choose_served_name(bundle: str | Path, name: str | None) -> str:
    """Returns the name that clients use for the model: the given one, or else the bundle's."""
    return name or files.name_of(files.resolve_path(Path(bundle))).removesuffix(".bundle")


def parse_port(text: str) -> int:
    """Parses a TCP port. Checked here, since getaddrinfo wraps a number above 65535 to another port."""
    if not text.isascii() or not text.isdecimal() or not len(text) <= 9 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a port; expected 0 to 65535")
    return int(text)


def parse_png(text: str) -> Path:
    """Parses the path of a picture to write, for argparse."""
    path = parse_path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a path that ends in .png")
    return path


def parse_at_least_1(text: str) -> int:
    """Parses a whole number from 1 to 999999999, for argparse."""
    if not text.isascii() or not text.isdecimal() or not 1 <= len(text.lstrip("0")) <= 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999999999")
    return int(text)


def parse_whole(text: str) -> int:
    """Parses a whole number; raises ValueError beyond 64 bits, which no option means and arithmetic may not hold."""
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError
    return number


def parse_number(text: str) -> float:
    """Parses a number; raises ValueError for an infinite one, as 1e400 is, and for NaN. Returns 0.0 for -0.0."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number + 0.0


def parse_path(text: str) -> Path:
    """Parses a path; raises ValueError if it is empty, which `Path` would read as the current folder."""
    if not text:
        raise ValueError
    return Path(text)


def parse_counts(text: str) -> tuple[int, ...]:
    """Parses a comma-separated list of whole numbers from 1 on."""
    found = tuple(parse_whole(word) for word in text.split(","))
    if min(found) < 1:
        raise ValueError
    return found


def expect(parse: Callable[[str], T], expected: str) -> Callable[[str], T]:
    """Returns `parse` as an argparse type whose error states what was expected."""

    def reader(text: str) -> T:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected {expected}") from None

    return reader
