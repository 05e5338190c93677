"""Writes a bundle into a model repository of Triton's Python backend: python -m export.triton student.bundle

REPOSITORY/student/config.pbtxt     Triton's configuration: tensors, decoupled transactions, the options given here
REPOSITORY/student/1/model.py       a copy of triton_model.py
REPOSITORY/student/1/bundle/        the bundle's files
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime import files
from runtime.bundle.manifest import MANIFEST, NAME_PATTERN
from runtime.bundle.store import Bundle, read, verify_files
from runtime.cli import (
    DONE,
    ENGINE_OPTIONS,
    choose_served_name,
    make_cli_parser,
    option,
    parse_at_least_1,
    print_json,
    run,
)
from runtime.engines.registry import DEFAULT, choose_engines
from runtime.errors import UserError
from train.storage.swap import swap

from .staging import check_disk_space, make_working_folder, report_write_errors

MODEL = Path(__file__).with_name("triton_model.py")
INPUTS = {  # all optional in config.pbtxt; a request has either text_input or input_ids
    "text_input": ("TYPE_STRING", 1),
    "input_ids": ("TYPE_INT64", -1),
    "max_tokens": ("TYPE_INT32", 1),
    "threshold": ("TYPE_FP64", 1),
    "stream": ("TYPE_BOOL", 1),
}
OUTPUTS = {"text_output": ("TYPE_STRING", 1), "finish_reason": ("TYPE_STRING", 1)}
HELP = {  # help texts that do not fit on the line of their option below
    "out": "model repository to write to; other models in it stay (default: models)",
    "workers": "requests decoded at once, each with its own KV cache, the weights shared (default: 2; 1 on TensorRT)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: export(parse_options(argv)))


OPTIONS = (
    option(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="bundle, a folder that blockstep export onnx or blockstep export trt wrote",
    ),
    option("--out", type=Path, default=Path("models"), metavar="REPOSITORY", help=HELP["out"]),
    option("--name", help="name of the model in the repository (default: the bundle's name)"),
    option("--replace", action="store_true", help="replace a model of that name (default: refuse)"),
    option("--workers", type=parse_at_least_1, metavar="N", help=HELP["workers"]),
    option("--json", action="store_true", help="print one JSON object; everything else goes to stderr"),
    *ENGINE_OPTIONS,
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = "Writes a bundle as a model of a Triton repository, for Triton's Python backend. Needs neither torch nor "
    return make_cli_parser("export.triton", what + "Triton.", OPTIONS).parse_args(argv)


def export(args: argparse.Namespace) -> int:
    """Writes the model whole or not at all, and reports its path."""
    name = choose_served_name(args.bundle, args.name)
    for flag, value in (("--name", name), ("--engine", args.engine or DEFAULT)):  # config.pbtxt has both in quotes
        if not NAME_PATTERN.fullmatch(value):
            raise UserError(f"{flag} is {value!r}; expected letters, digits, '.', '_' and '-', such as student-2.5")
    place, bundle = args.out / name, read(args.bundle)
    choose_engines(bundle, args.engine, args.device)
    replaced = check_model_place(place, args.replace)
    with make_working_folder(place) as folder, report_write_errors(args.out):
        new = folder / name
        copy_bundle(bundle, new / "1" / "bundle")
        shutil.copyfile(MODEL, new / "1" / "model.py")
        (new / "config.pbtxt").write_text(format_config(name, collect_parameters(args)), encoding="ascii")
        files.flush_tree(new)
        check_model_place(place, args.replace)
        if not place.exists():
            os.rename(new, place)
        elif not swap(new, place):
            raise UserError(f"{place} cannot be replaced in one step on this file system; remove it first")
    if args.json:
        print_json({"repository": str(args.out), "model": name, "replaced": replaced})
    else:
        print(f"{'replaced' if replaced else 'wrote'} {place}; tritonserver --model-repository={args.out}")
    return DONE


def check_model_place(place: Path, replace: bool) -> bool:
    """Returns whether `place` has a model already. Raises UserError if it must not be replaced."""
    if not os.path.lexists(place):
        return False
    if not (place / "config.pbtxt").is_file():
        raise UserError(f"{place} is not a Triton model (it has no config.pbtxt); give another --out or --name")
    if not replace:
        raise UserError(f"{place} exists; give --replace to replace it, or another --name")
    return True


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copies the files that the manifest names and checks their hashes. Raises UserError if the disk has no room."""
    names = {name for engine in bundle.engines for name in engine.hashed_files} | set(bundle.texts)
    folder.mkdir(parents=True)
    check_disk_space(folder, sum((bundle.path / name).stat().st_size for name in names))
    for name in sorted({*names, MANIFEST}):
        shutil.copyfile(bundle.path / name, folder / name)
    copied = read(folder)
    for engine in copied.engines:
        verify_files(copied, engine, "always")


def collect_parameters(args: argparse.Namespace) -> dict[str, str]:
    """Returns the parameters that `triton_model.py` loads the bundle with, without options that were not given."""
    given = {
        "engine": args.engine,
        "device": args.device,
        "threads": args.threads,
        "verify": args.verify,
        "trust_engine": str(args.trust_engine).lower(),
        "allow_spinning": str(args.allow_spinning).lower(),
        "workers": args.workers,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def format_config(name: str, values: Mapping[str, str]) -> str:
    """Returns config.pbtxt, a ModelConfig of Triton's model_config.proto in protobuf's text format.

    name, values: only letters, digits, '.', '_' and '-', so that nothing needs escaping.
    """
    inputs = [_format_tensor("input", key, *kind, "optional: true ") for key, kind in INPUTS.items()]
    outputs = [_format_tensor("output", key, *kind) for key, kind in OUTPUTS.items()]
    parameters = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()]
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *inputs,
        *outputs,
        "instance_group { count: 1 kind: KIND_MODEL }  # another instance is another process with the weights again",
        *parameters,
    ]
    return "\n".join(lines) + "\n"


def _format_tensor(kind: str, name: str, data_type: str, size: int, more: str = "") -> str:
    return f'{kind} {{ name: "{name}" data_type: {data_type} dims: {size} {more}}}'


if __name__ == "__main__":
    sys.exit(main())
