"""Judges every method on the test split, by its threshold from the validation split, as a table and figures.

    python samples/study/study.py --models samples runs/study --out samples/results

Each row is tried at every threshold on `--tuning` validation problems per task. Of the thresholds that are at most half
a point below the teacher there, the one with the fewest forward passes is then judged on `--count` problems of the test
split. ROWS lists the rows. Points that an earlier study.json has for the same checkpoint file are not measured again
(delete it to measure everything anew, as after a change of the decode loop). A row whose checkpoint is in none of the
folders is kept from the earlier study.json, or left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import invariance
import study_page
from study_page import Study

from runtime.bundle.store import sha256
from runtime.cli import DONE, Parser, print_json
from runtime.cli import run as run_command
from runtime.contract import parse_gate
from runtime.errors import UserError
from train import open_checkpoint, tasks
from train.checkpoint import Checkpoint
from train.data import prompts
from train.data.batches import Example, encode
from train.evaluation import evaluated_model, evaluation_run, reliability
from train.storage.output_files import replace_file
from train.torch_backend import TorchBackend, contract_of

SAMPLES = Path(__file__).resolve().parents[1]
ONE = {"rule": "count", "min": 1}
SURE = {"rule": "threshold", "metric": "confidence", "comparator": ">=", "threshold": 0.9}
GUARDED = {**SURE, "eos_guard": 0.3}  # as in eval_gsm8k.sh of CD4LM's authors, whose `max` is the block
BOLD = 0.8  # the lowest confidence threshold that is tried, at which CAD accepts the most tokens per step
THRESHOLDS = {"confidence": (BOLD, 0.9, 0.95, 0.98, 0.99), "entropy": (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5)}
TEACHER = "teacher"
TUNING = "valid"  # the split that thresholds are chosen on


@dataclass(frozen=True, slots=True)
class Row:
    """Describes rows of the study: one of a checkpoint `<file>.pt`, or one per `<file>-seed*.pt`, and their decoding.

    attention, gate: replace the checkpoint's; a gate without a fixed count is tried at every threshold, or only at
    `threshold` if that is given. bf16: whether it runs under autocast, as every row does that runs a whole canvas per
    forward pass: in fp32 those would take hours.
    """

    title: str
    file: str
    attention: str | None = None
    gate: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | None = None
    bf16: bool = False


ROWS = (
    Row(TEACHER, "teacher", gate=ONE, bf16=True),
    Row("autoregressive rival", "rival", gate=ONE),
    Row("not distilled: the teacher's weights, block-causal", "teacher", "block_causal", SURE),
    Row("CDLM, seed 5: the committed student", "student"),
    Row("CDLM", "cdlm"),
    Row("CDLM, low-rank", "cdlm-lora"),
    Row("CDLM, a teacher of twice the size", "cdlm-larger"),
    Row("CD4LM", "cd4lm"),
    Row("CD4LM, full attention", "cd4lm-full", bf16=True),
    Row("dParallel", "dparallel"),
    Row("dParallel, low-rank", "dparallel-lora"),
    Row("dParallel, full attention", "dparallel-full", bf16=True),
    *(
        Row(f"ablation: teacher truncated to {n} tokens a step", "teacher", gate={**ONE, "min": n}, bf16=True)
        for n in (2, 4, 8)
    ),
    Row("ablation: CDLM, consistency without distillation", "cdlm-consistency"),
    Row("its control: as many updates with both, weights of CDLM's authors", "cdlm-published"),
    Row("ablation: CAD without DSCD, not distilled", "teacher", "block_causal", SURE, BOLD),
    Row("ablation: CAD with DSCD, CD4LM", "cd4lm", None, SURE, BOLD),
    Row("ablation: the same with its authors' end-token guard", "cd4lm", None, GUARDED, BOLD),
    Row("ablation: CAD without DSCD, the teacher, full attention", "teacher", "full", SURE, BOLD, True),
    Row("its control: as many updates on the answers alone", "cd4lm-full-labels", "full", SURE, BOLD, True),
    Row("ablation: CAD with DSCD, CD4LM, full attention", "cd4lm-full", "full", SURE, BOLD, True),
)


@dataclass(frozen=True, slots=True)
class Problems:
    """Holds the problems of one task that every row answers."""

    task: tasks.Task
    split: str
    seed: int
    listed: list[tasks.Problem]


@dataclass(frozen=True, slots=True)
class Plan:
    """Holds the problems to choose thresholds on (`tuning`) and to compare rows on (`judged`).

    batch: answers decoded at once.
    """

    tuning: list[Problems]
    judged: list[Problems]
    batch: int


Known = dict[str, dict[str, Any]]


def found_rows(rows: Sequence[Row], folders: Sequence[Path]) -> Iterator[tuple[Row, Path]]:
    """Yields each row with its checkpoint, from the first folder that has it; further seeds under their own titles."""
    for row in rows:
        paths: dict[str, Path] = {}
        for folder in folders:
            for path in (folder / f"{row.file}.pt", *folder.glob(f"{row.file}-seed*.pt")):
                if path.is_file():
                    paths.setdefault(path.stem, path)
        if not paths:
            print(f"no {row.file}.pt: {row.title} is not measured; samples/README.md says where the samples' own are",
                file=sys.stderr)  # fmt: skip
        for stem in sorted(paths, key=lambda stem: (len(stem), stem)):
            seed = stem[len(row.file) :].removeprefix("-seed")
            yield replace(row, title=f"{row.title}, seed {seed}" if seed else row.title, file=stem), paths[stem]


def place(title: str) -> int | None:
    """Returns the index in ROWS that a title is of, perhaps that of a further seed; None if it is not listed."""
    titles = [row.title for row in ROWS]
    own = (each for each in (title, title.rpartition(", seed ")[0]) if each in titles)
    return next(map(titles.index, own), None)


def settings_of(row: Row, saved: Checkpoint) -> list[tuple[dict[str, Any], float | None]]:
    """Returns a row's gates, each with its threshold: one gate with a fixed count and None, or one per threshold."""
    spec = parse_gate(row.gate or saved.decoding.gate)
    gate = asdict(spec)
    if spec.unit is None:
        return [(gate, None)]
    tried = THRESHOLDS[spec.metric] if row.threshold is None else (row.threshold,)
    return [({**gate, "threshold": threshold}, threshold) for threshold in tried]


def measure(row: Row, path: Path, plan: Plan, base: Mapping[str, Any] | None, known: Known) -> dict[str, Any]:
    """Measures a row: at each threshold on the validation problems, at the chosen one on the judged ones; calibration.

    base: the teacher's row, against which the threshold is chosen; None for the teacher itself. known: what was
    measured before; new results are added to it.
    """
    saved, digest = open_checkpoint.load(path), sha256(path)
    backend, tokenizer = (
        evaluated_model.torch_backend(saved, plan.batch, row.attention, row.bf16),
        saved.read_tokenizer(),
    )
    encode_prompts = prompts.of_checkpoint(saved, raw=False)

    def point(gate: dict[str, Any], threshold: float | None, each: Problems) -> dict[str, Any]:
        where = {"task": each.task.name, "split": each.split, "seed": each.seed, "problems": len(each.listed)}
        key = json.dumps([digest, backend.contract.attention, row.bf16, gate, where], sort_keys=True)
        if key in known:
            return known[key]
        spec = parse_gate(gate)
        done = evaluation_run.evaluate(
            backend, tokenizer, each.task, each.listed, gate=spec, batch=plan.batch, encode_prompts=encode_prompts
        )
        outcome = {"right": [int(r) for r in done.right], "each": [r.forwards for r in done.results]}
        known[key] = {"key": key, "threshold": threshold, **where, **done.summary(), **outcome}
        return known[key]

    settings = settings_of(row, saved)
    tuned = [point(gate, threshold, each) for gate, threshold in settings for each in plan.tuning]
    lines = study_page.lines(row.title, backend.contract.attention, tuned, base["tuned"] if base else tuned)
    best = study_page.choose_line(lines).threshold
    gate = next(gate for gate, threshold in settings if threshold == best)
    pairs = [(problem.prompt, problem.answer) for each in plan.tuning for problem in each.listed]
    examples = encode(tokenizer, pairs, saved.decoding.eos_ids[0], encode_prompts)
    where = [[each.task.name, each.split, each.seed, len(each.listed)] for each in plan.tuning]
    key = json.dumps(["probe", digest, backend.contract.attention, row.bf16, where], sort_keys=True)
    if key not in known:
        known[key] = {"key": key, **probe(backend, examples, plan.batch)}
    return {
        "title": row.title, "file": path.name, "attention": backend.contract.attention, "tuned": tuned,
        "judged": [point(gate, best, each) for each in plan.judged], "probe": known[key],
    }  # fmt: skip


def probe(backend: TorchBackend, examples: Sequence[Example], batch: int) -> dict[str, Any]:
    """Returns what does not depend on the gate: calibration, and how much predictions change as more is masked."""
    bins = reliability.reliability(*reliability.probe(backend, examples, 0))
    contract = backend.contract
    fitting = sorted((e for e in examples if len(e.answer) <= contract.canvas), key=lambda e: len(e.prompt))
    return {
        "calibration_error": reliability.compute_expected_error(bins), "reliability": [asdict(each) for each in bins],
        "divergences": invariance.divergences(backend.model, contract, fitting, 0, batch=batch),
    }  # fmt: skip


def fitting(teacher: Path, task: tasks.Task, split: str, count: int, seed: int) -> Problems:
    """Samples problems; returns those that leave the teacher, and so its students, room for an answer."""
    saved, drawn = open_checkpoint.load(teacher), list(task.problems(split, count, seed))
    encoded = prompts.of_checkpoint(saved, raw=False)([problem.prompt for problem in drawn])
    kept = prompts.find_fitting(encoded, [problem.line for problem in drawn], contract_of(saved))
    return Problems(task, split, seed, [drawn[place] for place in kept])


def run(args: argparse.Namespace) -> Study:
    """Measures what is not known yet, writes study.json, study.md and the figures, and returns the study."""
    if args.split == TUNING:
        raise UserError(f"--split is {TUNING}, on which thresholds are chosen; judge on another, as on test")
    path, chosen = args.out / "study.json", tasks.choose_tasks(args.task, args.data)
    study: Study = {
        "split": args.split, "count": args.count, "judged_seed": args.judged_seed, "tuning": args.tuning,
        "seed": args.seed, "batch": args.batch, "tasks": [task.name for task in chosen],
        "data": open_checkpoint.fingerprint(args.data) if args.data else None,
    }  # fmt: skip
    found = list(found_rows(ROWS, args.models))
    if not found or found[0][0].title != TEACHER:
        raise UserError(
            f"no teacher.pt in {', '.join(map(str, args.models))}; every row is compared with it: give --models"
        )
    study["teacher"] = sha256(found[0][1])
    known, recorded = earlier(path, study)
    if known:
        print(f"{len(known)} points of {path} are not measured again; delete it to measure all anew", file=sys.stderr)
    plan = Plan(
        [fitting(found[0][1], t, TUNING, args.tuning, args.seed) for t in chosen],
        [fitting(found[0][1], t, args.split, args.count, args.judged_seed) for t in chosen], args.batch,
    )  # fmt: skip
    measured: dict[str, dict[str, Any]] = {}
    for row, file in found:
        print(f"== {row.title}: {file}", file=sys.stderr)
        measured[row.title] = measure(row, file, plan, measured.get(TEACHER), known)
        study["rows"] = order_rows({**recorded, **measured})
        replace_file(path, lambda temporary: temporary.write_text(json.dumps(study) + "\n", encoding="utf-8"))
    page = study_page.text(study)
    replace_file(args.out / "study.md", lambda temporary: temporary.write_text(page, encoding="utf-8"))
    study_page.draw(study, args.out)
    return study


def order_rows(rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows that ROWS lists, in its order; rows of several seeds by title."""
    places = {title: place(title) for title in rows}
    titles = [title for title, at in places.items() if at is not None]
    return [rows[title] for title in sorted(titles, key=lambda title: (places[title], title))]


def earlier(path: Path, settings: Mapping[str, Any]) -> tuple[Known, dict[str, dict[str, Any]]]:
    """Reads the points and probes of an existing study, by key, and its rows by title.

    Raises UserError if the study cannot be read, or was made with other settings: its results would be lost.
    """
    if not path.exists():
        return {}, {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["title"]: row for row in before["rows"]}
        found = [each for row in rows.values() for each in (*row["tuned"], *row["judged"], row["probe"])]
        known = {each["key"]: each for each in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a study ({error}); delete it, or give another --out") from None
    if other := next((name for name, value in settings.items() if before.get(name) != value), None):
        raise UserError(
            f"{path} was made with {other} {before.get(other)}, here it is {settings[other]}; give another --out"
        )
    return known, rows


def parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    p = Parser(prog="python samples/study/study.py", description=(__doc__ or "").splitlines()[0])
    p.add_argument(
        "--models",
        type=Path,
        nargs="+",
        default=[SAMPLES, Path("runs/study")],
        help="folders of checkpoints; the first one that has a checkpoint counts (default: samples, runs/study)",
    )
    p.add_argument("--task", default="math,code", help="sample tasks, with commas (default: math,code)")
    p.add_argument(
        "--data", type=Path, help="file of JSON lines with prompt and answer, instead of a task (default: none)"
    )
    p.add_argument(
        "--tuning",
        type=int,
        default=400,
        help="validation problems per task, on which each row's threshold is chosen (default: 400)",
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the validation problems (default: 0)")
    p.add_argument("--split", default="test", help="split of the problems that rows are judged on (default: test)")
    p.add_argument("--count", type=int, default=2000, help="problems per task that rows are judged on (default: 2000)")
    p.add_argument(
        "--judged-seed",
        type=int,
        default=1,
        help="seed of the problems that rows are judged on (default: 1, since recipes were chosen on some of seed 0)",
    )
    p.add_argument("--batch", type=int, default=64, help="answers decoded at once (default: 64)")
    p.add_argument(
        "--out", type=Path, default=SAMPLES / "results", help="folder to write to (default: samples/results)"
    )
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
