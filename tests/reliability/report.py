"""Runs the attempts that are too many for the suite and writes samples/results/reliability.md and .json.

Each section is a module of this folder with run(scale) -> Section; those not run now stay as they were measured before.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support"), str(HERE)]

from section import Section  # noqa: E402
from tqdm import tqdm  # noqa: E402

from runtime.cli import DONE, FAILED, Parser, print_json, run  # noqa: E402
from runtime.errors import UserError  # noqa: E402

SECTIONS = (
    "manifests", "graphs", "texts", "checkpoints", "directories", "attacks", "guided", "branches", "half_done",
    "prompts", "scores", "long_runs", "mutation",
)  # fmt: skip
LIBRARIES = ("onnxruntime", "tokenizers", "jinja2", "safetensors", "torch", "onnx", "numpy")
OUT = ROOT / "samples" / "results" / "reliability"
WRONG = "WRONG"  # begins the outcome of a row that has what must not be


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 1 where something is wrong."""
    return run(lambda: report(options(argv)))


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    p = Parser(prog="python tests/reliability/report.py", description=__doc__)
    p.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    p.add_argument("--scale", type=float, default=1.0, help="share of the attempts, above 0 (default 1)")
    p.add_argument("--out", type=Path, default=OUT, help="path without ending (default samples/results/reliability)")
    p.add_argument("--json", action="store_true", help="prints the sections as one JSON object")
    return p.parse_args(argv)


def report(args: argparse.Namespace) -> int:
    """Runs the sections one after the other, each kept as it ends."""
    if unknown := [name for name in args.sections if name not in SECTIONS]:
        raise UserError(f"there is no section {unknown[0]}; expected some of {', '.join(SECTIONS)}")
    if not args.scale > 0:
        raise UserError(f"--scale is {args.scale}; expected a number above 0")
    kept, made = read(args.out.with_suffix(".json")), {}
    for name in tqdm(args.sections or SECTIONS, unit="section", disable=None):
        started = time.perf_counter()
        section: Section = importlib.import_module(name).run(args.scale)
        seconds = round(time.perf_counter() - started)
        made[name] = {
            "title": section.title,
            "rows": section.rows,
            "scale": args.scale,
            "seconds": seconds,
            **conditions(),
        }
        write(args.out, {**kept, **made})
    wrong = [f"{name}: {row[0]}" for name, values in made.items() for row in values["rows"] if row[2].startswith(WRONG)]
    if args.json:
        print_json({"sections": made, "wrong": wrong})
    else:
        print("\n".join(wrong) or f"nothing wrong; wrote {args.out.with_suffix('.md')}")
    return FAILED if wrong else DONE


def conditions() -> dict[str, Any]:
    """What a section was run with."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "cores": os.cpu_count(), "libraries": libraries}


def conditions_of(values: dict[str, Any]) -> str:
    """How a section was run, in words."""
    libraries = "".join(f", {library} {number}" for library, number in values.get("libraries", {}).items())
    return f"{values.get('seconds', '?')} s, scale {values['scale']:g}; Python {values.get('python', '?')}{libraries}."


def read(path: Path) -> dict[str, Any]:
    """The sections of an earlier report, none where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away") from None
    return values if isinstance(values, dict) else {}


def write(out: Path, sections: dict[str, Any]) -> None:
    """Both forms of the report, in the order of SECTIONS."""
    ordered = {
        name: sections[name] for name in (*SECTIONS, *sorted(sections.keys() - set(SECTIONS))) if name in sections
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Reliability",
        "",
        "Written by `make reliability`; what a section does is in `tests/reliability/` under its name.",
        "",
    ]
    for name, values in ordered.items():
        lines += [f"## {values['title']} (`{name}`)", "", "| | count | outcome |", "|---|---|---|"]
        lines += [f"| {what} | {count:,} | {outcome} |" for what, count, outcome in values["rows"]]
        lines += ["", conditions_of(values), ""]
    out.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
