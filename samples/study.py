"""Every method at every threshold on the same problems, as one table and its figures: make study

    python samples/study.py --models samples runs/study --split valid --count 400 --out samples/results

The rows are listed below; a row whose checkpoint is in none of the folders is left out and said so. What was measured
before, of the same file under the same settings, is taken from the earlier study.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import study_page
import torch

from runtime.bundle import sha256
from runtime.command import DONE, Parser, print_json
from runtime.command import run as run_command
from runtime.contract import parse_gate
from runtime.errors import UserError
from train import calibration, checkpoint, evaluate, invariance, prompts, tasks
from train.checkpoint import Checkpoint, replace_file
from train.data import Example, encode

SAMPLES = Path(__file__).resolve().parent
ONE = {"rule": "count", "min": 1}
SURE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.9}
THRESHOLDS = {"confidence": (0.7, 0.8, 0.9, 0.95, 0.97, 0.99), "entropy": (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)}
TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a checkpoint `<file>.pt`, or `<file>-seed*.pt` a line each, and how it is decoded.

    attention and gate: in place of the checkpoint's own; a gate that is no fixed count is tried at every threshold.
    """

    title: str
    file: str
    attention: str | None = None
    gate: Mapping[str, Any] = field(default_factory=dict)


ROWS = (
    Row(TEACHER, "teacher", gate=ONE),
    Row("autoregressive rival", "rival", gate=ONE),
    *(Row(f"ablation: teacher truncated to {n} tokens a step", "teacher", gate={**ONE, "min": n}) for n in (2, 4, 8)),
    Row("ablation: CAD without DSCD (the teacher)", "teacher", gate=SURE),
    Row("not distilled: the teacher's weights, block-causal", "teacher", "block_causal", SURE),
    Row("the committed student", "student"),
    Row("CDLM", "cdlm"),
    Row("CDLM, low-rank", "cdlm-lora"),
    Row("CDLM, a larger teacher", "cdlm-larger"),
    Row("ablation: CDLM, consistency without distillation", "cdlm-consistency"),
    Row("CD4LM", "cd4lm"),
    Row("CD4LM, full attention", "cd4lm-full"),
    Row("dParallel", "dparallel"),
    Row("dParallel, full attention", "dparallel-full"),
)


@dataclass(frozen=True, slots=True)
class Problems:
    """What every row answers, of one task."""

    task: tasks.Task
    split: str
    seed: int
    listed: list[tasks.Problem]


def found_rows(rows: Sequence[Row], folders: Sequence[Path]) -> Iterator[tuple[Row, Path]]:
    """Each row with its checkpoint, in the first folder that has one; further seeds under titles of their own."""
    for row in rows:
        for folder in folders:
            paths = [path for path in (folder / f"{row.file}.pt",) if path.is_file()]
            paths += sorted(folder.glob(f"{row.file}-seed*.pt"))
            if paths:
                break
        else:
            print(f"no {row.file}.pt: {row.title} is left out", file=sys.stderr)
            continue
        for path in paths:
            seed = path.stem[len(row.file) :].removeprefix("-")
            yield Row(f"{row.title}, {seed}" if seed else row.title, path.stem, row.attention, row.gate), path


def settings_of(row: Row, saved: Checkpoint) -> list[tuple[dict[str, Any], float | None]]:
    """The gates of a row: one with its fixed count, or the same one with each threshold of its metric."""
    gate = asdict(parse_gate(row.gate or saved.decoding.gate))
    if gate["rule"] == "count":
        return [(gate, None)]
    return [({**gate, "threshold": threshold}, threshold) for threshold in THRESHOLDS[gate["metric"]]]


def measure(row: Row, path: Path, asked: Sequence[Problems], batch: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """All points of a row, its calibration, and its divergences by mask ratio; `known` are points measured before."""
    saved, digest, points = checkpoint.load(path), sha256(path), []
    backend, tokenizer = evaluate.torch_backend(saved, batch, row.attention, False), saved.read_tokenizer()
    ask = prompts.of_checkpoint(saved, raw=False)
    for gate, threshold in settings_of(row, saved):
        for each in asked:
            where = {"task": each.task.name, "split": each.split, "seed": each.seed, "problems": len(each.listed)}
            key = json.dumps([digest, backend.contract.attention, gate, where], sort_keys=True)
            if key not in known:
                spec = parse_gate(gate)
                done = evaluate.evaluate(
                    backend, tokenizer, each.task, each.listed, gate=spec, batch=batch, ask=ask
                )  # fmt: skip
                outcome = {"right": [int(r) for r in done.right], "each": [r.forwards for r in done.results]}
                points.append({"key": key, "threshold": threshold, **where, **done.summary(), **outcome})
            else:
                points.append(known[key])
    pairs = [(problem.prompt, problem.answer) for each in asked for problem in each.listed]
    examples = encode(tokenizer, pairs, saved.decoding.eos_ids[0], ask)
    bins = calibration.reliability(*calibration.probe(backend, examples, 0))
    return {
        "title": row.title, "file": path.name, "attention": backend.contract.attention, "points": points,
        "calibration_error": calibration.expected_error(bins), "reliability": [asdict(each) for each in bins],
        "divergences": averaged(backend.model, backend.contract, examples, batch),
    }  # fmt: skip


def averaged(model: Any, contract: Any, examples: Sequence[Example], batch: int) -> list[float]:
    """`invariance.divergences` of all examples, batch by batch, those of a canvas's length at most."""
    fitting = sorted((e for e in examples if len(e.answer) <= contract.canvas), key=lambda e: len(e.prompt))
    parts = [fitting[i : i + batch] for i in range(0, len(fitting), batch)]
    rows = torch.tensor([invariance.divergences(model, contract, part, i) for i, part in enumerate(parts)])
    weight = torch.tensor([float(len(part)) for part in parts])
    return ((rows * weight[:, None]).sum(0) / weight.sum()).tolist() if parts else []


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what is not known yet, writes study.json, study.md and the figures, and returns the study."""
    path = args.out / "study.json"
    known = {point["key"]: point for row in earlier(path) for point in row["points"]}
    chosen = (tasks.from_file(args.data),) if args.data else tasks.named(args.task)
    asked = [Problems(t, args.split, args.seed, list(t.problems(args.split, args.count, args.seed))) for t in chosen]
    rows = []
    for row, file in found_rows(ROWS, args.models):
        print(f"== {row.title}: {file}", file=sys.stderr)
        rows.append(measure(row, file, asked, args.batch, known))
    if not rows or rows[0]["title"] != TEACHER:
        raise UserError(
            f"no teacher.pt in {', '.join(map(str, args.models))}; every row is compared with it: give --models"
        )
    study = {"split": args.split, "seed": args.seed, "count": args.count, "rows": rows}
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(study) + "\n", encoding="utf-8"))
    page = study_page.text(study)
    replace_file(args.out / "study.md", lambda temporary: temporary.write_text(page, encoding="utf-8"))
    study_page.draw(study, args.out)
    return study


def earlier(path: Path) -> list[dict[str, Any]]:
    """The rows of a study that is there already. Raises UserError where it cannot be read."""
    if not path.exists():
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return rows
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no study ({error}); delete it, or give another --out") from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="python samples/study.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--models", type=Path, nargs="+", default=[SAMPLES, Path("runs/study")],
        help="folders of checkpoints, the first that has one counts (default samples runs/study)")  # fmt: skip
    p.add_argument("--task", default="math,code", help="tasks (default math,code)")
    p.add_argument("--data", type=Path, help="JSON lines of prompt and answer instead of a task")
    p.add_argument("--split", default="valid", help="of the problems (default valid; test is for the last time)")
    p.add_argument("--count", type=int, default=400, help="problems a task (default 400)")
    p.add_argument("--seed", type=int, default=0, help="of the problems drawn (default 0)")
    p.add_argument("--batch", type=int, default=64, help="answers at once (default 64)")
    p.add_argument("--out", type=Path, default=SAMPLES / "results", help="folder (default samples/results)")
    p.add_argument("--json", action="store_true", help="print the summary of each row as one JSON object")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(lambda: command(parser().parse_args(argv)))


def command(args: argparse.Namespace) -> int:
    """Makes the study and prints its table."""
    study = run(args)
    if args.json:
        print_json({"rows": [asdict(line) for line in study_page.summary(study)]})
    else:
        print(study_page.table(study_page.summary(study)))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
