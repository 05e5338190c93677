"""Every method, its threshold chosen on the validation split and judged on the test split, as a table and figures.

    python samples/study.py --models samples samples/study --out samples/results

Each row is tried at every threshold on `--tuning` validation problems a task; the one with the fewest forwards at
most half a point below the teacher there is then judged on `--count` problems of the test split. The rows are listed
below; a row whose checkpoint is in none of the folders is left out and said so. What was measured before, of the same
file under the same settings, is taken from the earlier study.json.
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
THRESHOLDS = {"confidence": (0.8, 0.9, 0.95, 0.98, 0.99), "entropy": (0.005, 0.02, 0.05, 0.1, 0.3)}
TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a checkpoint `<file>.pt`, or `<file>-seed*.pt` a line each, and how it is decoded.

    attention and gate: in place of the checkpoint's own; a gate that is no fixed count is tried at every threshold.
    bf16: under autocast, as every row that runs a whole canvas a forward: in fp32 those would take hours.
    """

    title: str
    file: str
    attention: str | None = None
    gate: Mapping[str, Any] = field(default_factory=dict)
    bf16: bool = False


ROWS = (
    Row(TEACHER, "teacher", gate=ONE, bf16=True),
    Row("autoregressive rival", "rival", gate=ONE),
    *(
        Row(f"ablation: teacher truncated to {n} tokens a step", "teacher", gate={**ONE, "min": n}, bf16=True)
        for n in (2, 4, 8)
    ),
    Row("ablation: CAD without DSCD (the teacher)", "teacher", gate=SURE, bf16=True),
    Row("not distilled: the teacher's weights, block-causal", "teacher", "block_causal", SURE),
    Row("CDLM, seed5: the committed student", "student"),
    Row("CDLM", "cdlm"),
    Row("CDLM, low-rank", "cdlm-lora"),
    Row("CDLM, a larger teacher", "cdlm-larger"),
    Row("ablation: CDLM, consistency without distillation", "cdlm-consistency"),
    Row("CD4LM", "cd4lm"),
    Row("CD4LM, full attention", "cd4lm-full", bf16=True),
    Row("dParallel", "dparallel"),
    Row("dParallel, low-rank", "dparallel-lora"),
    Row("dParallel, full attention", "dparallel-full", bf16=True),
)


@dataclass(frozen=True, slots=True)
class Problems:
    """What every row answers, of one task."""

    task: tasks.Task
    split: str
    seed: int
    listed: list[tasks.Problem]


@dataclass(frozen=True, slots=True)
class Plan:
    """tuning: where thresholds are chosen; judged: where each row is then compared; batch: answers at once."""

    tuning: list[Problems]
    judged: list[Problems]
    batch: int


Known = Mapping[str, dict[str, Any]]


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
            yield Row(f"{row.title}, {seed}" if seed else row.title, path.stem, row.attention, row.gate, row.bf16), path


def settings_of(row: Row, saved: Checkpoint) -> list[tuple[dict[str, Any], float | None]]:
    """The gates of a row: one with its fixed count, or the same one with each threshold of its metric."""
    gate = asdict(parse_gate(row.gate or saved.decoding.gate))
    if gate["rule"] == "count":
        return [(gate, None)]
    return [({**gate, "threshold": threshold}, threshold) for threshold in THRESHOLDS[gate["metric"]]]


def measure(row: Row, path: Path, plan: Plan, base: Mapping[str, Any] | None, known: Known) -> dict[str, Any]:
    """A row on the validation problems at every threshold, on the judged ones at the chosen one, and its calibration.

    base: the teacher's row, which the threshold is chosen against; None for itself. known: what was measured before.
    """
    saved, digest = checkpoint.load(path), sha256(path)
    backend, tokenizer = evaluate.torch_backend(saved, plan.batch, row.attention, row.bf16), saved.read_tokenizer()
    ask = prompts.of_checkpoint(saved, raw=False)

    def point(gate: dict[str, Any], threshold: float | None, each: Problems) -> dict[str, Any]:
        where = {"task": each.task.name, "split": each.split, "seed": each.seed, "problems": len(each.listed)}
        key = json.dumps([digest, backend.contract.attention, row.bf16, gate, where], sort_keys=True)
        if key in known:
            return known[key]
        spec = parse_gate(gate)
        done = evaluate.evaluate(backend, tokenizer, each.task, each.listed, gate=spec, batch=plan.batch, ask=ask)
        outcome = {"right": [int(r) for r in done.right], "each": [r.forwards for r in done.results]}
        return {"key": key, "threshold": threshold, **where, **done.summary(), **outcome}

    settings = settings_of(row, saved)
    tuned = [point(gate, threshold, each) for gate, threshold in settings for each in plan.tuning]
    lines = study_page.lines(row.title, backend.contract.attention, tuned, base["tuned"] if base else tuned)
    best = study_page.chosen(lines).threshold
    gate = next(gate for gate, threshold in settings if threshold == best)
    pairs = [(problem.prompt, problem.answer) for each in plan.tuning for problem in each.listed]
    examples = encode(tokenizer, pairs, saved.decoding.eos_ids[0], ask)
    where = [[each.task.name, each.split, each.seed, len(each.listed)] for each in plan.tuning]
    key = json.dumps(["probe", digest, backend.contract.attention, row.bf16, where], sort_keys=True)
    return {
        "title": row.title, "file": path.name, "attention": backend.contract.attention, "tuned": tuned,
        "judged": [point(gate, best, each) for each in plan.judged],
        "probe": known[key] if key in known else {"key": key, **probe(backend, examples, plan.batch)},
    }  # fmt: skip


def probe(backend: Any, examples: Sequence[Example], batch: int) -> dict[str, Any]:
    """What does not depend on the gate: calibration, and how far predictions move as more is masked."""
    bins = calibration.reliability(*calibration.probe(backend, examples, 0))
    return {
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
    before = earlier(path)
    known = {found["key"]: found for row in before for found in [*row["tuned"], *row["judged"], row["probe"]]}
    chosen = (tasks.from_file(args.data),) if args.data else tasks.named(args.task)
    plan = Plan(
        [Problems(t, "valid", args.seed, list(t.problems("valid", args.tuning, args.seed))) for t in chosen],
        [Problems(t, args.split, args.seed, list(t.problems(args.split, args.count, args.seed))) for t in chosen],
        args.batch,
    )
    study: dict[str, Any] = {"split": args.split, "seed": args.seed, "count": args.count, "tuning": args.tuning}
    rows: list[dict[str, Any]] = []
    for row, file in found_rows(ROWS, args.models):
        if not rows and row.title != TEACHER:
            break
        print(f"== {row.title}: {file}", file=sys.stderr)
        rows.append(measure(row, file, plan, rows[0] if rows else None, known))
        titles = [each["title"] for each in rows]
        keep(path, study | {"rows": rows + [each for each in before if each["title"] not in titles]})
    if not rows:
        raise UserError(
            f"no teacher.pt in {', '.join(map(str, args.models))}; every row is compared with it: give --models"
        )
    study["rows"] = rows
    keep(path, study)
    page = study_page.text(study)
    replace_file(args.out / "study.md", lambda temporary: temporary.write_text(page, encoding="utf-8"))
    study_page.draw(study, args.out)
    return study


def keep(path: Path, study: dict[str, Any]) -> None:
    """Writes a study; each row as soon as it is measured, so that one that was stopped goes on where it was."""
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(study) + "\n", encoding="utf-8"))


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
    p.add_argument("--models", type=Path, nargs="+", default=[SAMPLES, SAMPLES / "study", Path("runs/study")],
        help="folders of checkpoints, the first that has one counts (default samples, samples/study, "
        "runs/study)")  # fmt: skip
    p.add_argument("--task", default="math,code", help="tasks (default math,code)")
    p.add_argument("--data", type=Path, help="JSON lines of prompt and answer instead of a task")
    p.add_argument("--tuning", type=int, default=400, help="validation problems a task, where each row's threshold is "
        "chosen (default 400)")  # fmt: skip
    p.add_argument("--split", default="test", help="of the problems that rows are judged on (default test)")
    p.add_argument("--count", type=int, default=2000, help="of those, problems a task (default 2000)")
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
