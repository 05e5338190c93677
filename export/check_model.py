"""Checks a Hugging Face checkpoint and prints a page to paste: python -m export.check_model Dream-v0-Instruct-7B"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from runtime.bundle.manifest import read
from runtime.cli import DONE, FAILED, fill_dataclass, make_cli_parser, option, print_json, run
from runtime.contract import Contract
from runtime.errors import UserError
from runtime.files import name_of
from runtime.perf.conditions import find_version, read_processor_name
from runtime.proof.judge import Check
from train import open_checkpoint
from train.checkpoint import Checkpoint
from train.cli_options import add_directory_options, make_overrides
from train.huggingface.reader import read_settings
from train.huggingface.weights import list_expected_shapes

from .contract_from_checkpoint import make_export_contract
from .graph.ort_graph import ORT_PRECISIONS
from .onnx import OnnxOptions, write_bundle
from .precisions import PRECISIONS
from .proof.against_own_code import Agreement, DecodedAnswer, decode, measure_agreement, run_own_code
from .proof.held_out import make_recorded_requests
from .proof.prove import sample_requests

PROMPTS = 5
EXACT = 1e-3  # nats, in fp32, since sums of all layers may be in another order; other precisions have their own bound
SHOWN = 100  # characters of an answer on the page
PACKAGES = ("blockstep", "torch", "onnx", "onnxruntime", "numpy", "tokenizers")
GPU = "--query-gpu=name,compute_cap,memory.total,driver_version"
HELP = {
    "trust": "run the modelling code in DIR in a process of its own; it runs with your rights (default: off)",
    "python": "Python executable with the torch and transformers that the code in DIR needs (default: this one)",
    "data": "file of JSON lines with prompts; the page shows no text of them (default: texts of the sample tasks)",
}
WHERE = "Where to send this page: docs/parity.md."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: check_model(parse_options(argv)))


OPTIONS = (
    option("directory", type=Path, metavar="DIR", help="Hugging Face directory of a supported family"),
    option(
        "--precision", choices=ORT_PRECISIONS, default="fp32", help="precision of the exported engine (default: fp32)"
    ),
    option("--data", type=Path, metavar="FILE.jsonl", help=HELP["data"]),
    option("--trust-remote-code", action="store_true", help=HELP["trust"]),
    option("--python", default=sys.executable, metavar="PATH", help=HELP["python"]),
    option("--out", type=Path, metavar="FILE", help="file to write the page to as well (default: none)"),
    option("--json", action="store_true", help="print one JSON object; the checks go to stderr"),
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    what = (
        "Exports a Hugging Face directory to a temporary bundle (in TMPDIR, about the size of the weights), generates "
        "answers to five prompts, compares the logits with the directory's own modelling code, and prints one page. "
        "Exit 1 if a check fails."
    )
    p = make_cli_parser("export.check_model", what, OPTIONS)
    add_directory_options(p)
    return p.parse_args(argv)


@dataclass(frozen=True, slots=True)
class Page:
    """Holds the findings. own: the report of `proof.own_code`; agreements: one per prompt, empty without comparison."""

    name: str
    facts: dict[str, Any]
    seconds: float
    size: int
    precision: str
    checks: list[Check]
    decoded: list[DecodedAnswer] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)
    agreements: list[Agreement] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """Returns the bound on the difference of a top-1 token's log-probability, in nats."""
        row = PRECISIONS[self.precision]
        return EXACT if row.exact else row.log_prob

    def agrees(self, found: Agreement) -> bool:
        """Returns whether a prompt's logits agree (not with NaN). In fp32 top-1 tokens may differ only at near ties."""
        ties = found.tokens == 0 or found.margin <= EXACT or not PRECISIONS[self.precision].exact
        return found.log_prob <= self.bound and not math.isnan(found.every_log_prob) and ties

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks) and all(map(self.agrees, self.agreements))


def check_model(args: argparse.Namespace) -> int:
    """Exports, generates, compares, and prints the page."""
    if not (args.directory / "config.json").is_file():
        what = "has no config.json" if args.directory.is_dir() else "is not a directory"
        raise UserError(f"{args.directory} {what}; expected a directory of config.json and safetensors")
    if shutil.which(args.python) is None:
        raise UserError(f"--python is {args.python}, which is not a program; give the path of a Python")
    if args.out is not None and not args.out.parent.is_dir():  # reported before the hours of work
        raise UserError(f"--out is {args.out}, whose folder is not there; make it, or name another file")
    stream = sys.stderr if args.json else sys.stdout
    source = open_checkpoint.load(args.directory, make_overrides(args))
    with TemporaryDirectory(prefix="check-model-") as folder:
        page = examine(args, source, make_export_contract(source, None), Path(folder))
    text = "\n".join(format_lines(page)) + "\n"
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    print(text, file=stream)
    if args.json:
        print_json(
            {**to_plain(page), "ok": page.ok, "verdict": format_verdict(page), "versions": dict(list_versions())}
        )
    return DONE if page.ok else FAILED


def examine(args: argparse.Namespace, source: Checkpoint, contract: Contract, folder: Path) -> Page:
    """Makes everything that the page reports, in a folder that the caller removes."""
    requests = [*make_recorded_requests(source, contract, None, args.data), *sample_requests(contract)][:PROMPTS]
    started, bundle, inputs = time.perf_counter(), folder / "model.bundle", folder / "inputs"
    options = fill_dataclass(
        OnnxOptions, args, ckpt=args.directory, overrides=make_overrides(args), dialect="ort", parity="layers",
        capacity=None, task=None, top_k=0, candidates=0,
    )  # fmt: skip
    checks = write_bundle(options, bundle, sys.stderr)
    seconds = round(time.perf_counter() - started, 1)
    name, facts = name_of(args.directory.resolve()), collect_facts(args, source, contract)
    if not all(check.ok for check in checks):
        return Page(name, facts, seconds, 0, args.precision, checks)
    size = sum(file.stat().st_size for file in bundle.iterdir())
    inputs.mkdir()
    decoded = decode(bundle, read(bundle).find_engine(), contract, requests, inputs)
    tokenizer = source.read_tokenizer()
    texts = [tokenizer.decode(list(each.tokens), skip_special_tokens=False) for each in decoded]
    own = try_own_code(args, inputs)
    compared = "form" in own
    barred = source.list_missing_ids()
    agreements = [measure_agreement(inputs, each.inputs, contract, barred) for each in decoded] if compared else []
    shown = [text if args.data is None else "" for text in texts]
    return Page(name, facts, seconds, size, args.precision, checks, decoded, shown, own, agreements)


def try_own_code(args: argparse.Namespace, inputs: Path) -> dict[str, Any]:
    """Runs the directory's own modelling code, unless an adapter was merged into the exported weights."""
    if args.adapter is not None:
        return {"refused": "an adapter was merged into the weights, which the directory's code knows nothing of"}
    print("running the directory's modelling code ...", file=sys.stderr, flush=True)
    return run_own_code(args.python, args.directory, inputs, args.trust_remote_code)


def collect_facts(args: argparse.Namespace, source: Checkpoint, contract: Contract) -> dict[str, Any]:
    """Returns the model's facts from config.json, tokenizer and family."""
    settings, shape = read_settings(args.directory, make_overrides(args)), source.model
    names = ("block", "canvas", "attention", "alignment", "shift", "mask_id", "eos_ids", "pad_id", "vocab")
    gate = {name: value for name, value in source.decoding.gate.items() if value is not None}
    return {
        "family": settings.family.name,
        "model_type": settings.values.get("model_type"),
        "parameters": sum(math.prod(each) for each in list_expected_shapes(shape).values()),
        **{name: value for name, value in asdict(shape).items() if name != "vocab"},
        "embeddings": shape.vocab,
        **{name: getattr(contract, name) for name in names},
        "gate": gate,
        "chat_template": source.chat_template is not None,
        "written_by": settings.values.get("transformers_version"),
    }


def to_plain(page: Page) -> dict[str, Any]:
    """Returns the page as plain values for JSON, null for figures that are NaN or infinite."""
    values = asdict(page)
    for each in values["agreements"]:
        each |= {name: None for name, value in each.items() if not math.isfinite(value)}
    return values


def format_verdict(page: Page) -> str:
    """Returns the verdict of the page's first line, in a few words."""
    if not all(check.ok for check in page.checks):
        return "the export failed its own checks"
    if not page.agreements:
        return "exported and proved by layers; not compared with its own code"
    where = "the directory's own code" if page.own["own"] else "transformers' class"
    return f"exported, verified by layers, and {'agrees with' if page.ok else 'DIFFERS FROM'} {where}"


def format_lines(page: Page) -> Iterator[str]:
    """Yields the lines of the page."""
    yield f"# blockstep check-model: {page.name}: {format_verdict(page)}"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in page.facts.items() if value not in (None, {}))
    yield ""
    yield f"export in {page.precision}: {page.seconds} s, {page.size / 1e6:.1f} MB"
    yield from map(str, page.checks)
    if page.decoded:
        yield ""
        yield from format_own_code_lines(page)
    for number, each in enumerate(page.decoded):
        yield ""
        text = f": {page.texts[number][:SHOWN]!r}" if page.texts[number] else ""
        yield (
            f"prompt {number + 1}, {each.prompt} tokens: {len(each.tokens)} tokens in {each.forwards} forward passes "
            f"({each.finish}){text}"
        )
        if page.agreements:
            yield format_agreement(page, page.agreements[number])
    yield ""
    yield ", ".join(f"{name} {found}" for name, found in list_versions())
    yield from describe_machine()
    yield ""
    yield WHERE


def format_own_code_lines(page: Page) -> Iterator[str]:
    """Yields how the directory's code was run, or why it was not and how to run it."""
    own, name = page.own, page.name
    about = f"torch {own['torch']}, transformers {own['transformers']}" if "torch" in own else ""
    if "form" in own:
        of = "the directory's code" if own["own"] else "transformers"
        yield f"own code: {own['class']} of {of}, {about}, masked {own['form']}, {own['seconds']} s"
    elif "untrusted" in own:
        yield (
            f"own code: not run. transformers has no class of model_type {own['untrusted']}, so its code is in the "
            f"directory and may do whatever you may. To compare: blockstep check-model {name} --trust-remote-code"
        )
    else:
        yield f"own code: not compared: {own['refused']}{f' ({about})' if about else ''}"
        if written := page.facts["written_by"]:
            yield f"config.json was written by transformers {written}; --python takes a Python that has it"


def format_agreement(page: Page, found: Agreement) -> str:
    """Returns the line about a prompt's comparison."""
    tokens = f"{found.tokens} of {found.rows} top-1 tokens differ"
    if found.tokens:
        tokens += f", there its own two most probable tokens were within {found.margin:.1e}"
    return (
        f"[{'ok' if page.agrees(found) else 'x'}] max |d log p| of the top-1 token {found.log_prob:.1e} (bound "
        f"{page.bound:.0e}), of every token {found.every_log_prob:.1e} (no bound); {tokens}, in {found.inputs} inputs"
    )


def list_versions() -> Iterator[tuple[str, str]]:
    """Yields names and versions of Python and of the packages installed here."""
    yield "python", platform.python_version()
    yield from ((name, found) for name in PACKAGES if (found := find_version(name)))


def describe_machine() -> Iterator[str]:
    """Yields lines about processor and memory, and about the GPU as its driver reports it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield f"{read_processor_name()}, {os.cpu_count()} logical cores, {memory / 1e9:.0f} GB, {platform.platform()}"
    if tool := shutil.which("nvidia-smi"):
        done = subprocess.run([tool, GPU, "--format=csv,noheader"], capture_output=True, text=True, check=False)
        yield from done.stdout.strip().splitlines()
    else:
        yield "no GPU with nvidia-smi"


if __name__ == "__main__":
    sys.exit(main())
