"""Collects a teacher's trajectories: its answers, one token per step, with the order and the state of every token.

python -m train.collect --ckpt teacher.pt --out trajectories --count 1500
python -m train.collect --ckpt teacher.pt --out answers --count 12000 --threshold 0.98    # faster, for dparallel
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from runtime import files
from runtime.cli import DONE, make_cli_parser, option, parse_at_least_1, print_json
from runtime.contract import Contract, GateSpec
from runtime.decoding.block_layout import compute_block_bounds, compute_longest_answer, count_committed
from runtime.decoding.loop import decode_steps
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import UserError

from . import checkpoint, distributed, open_checkpoint, tasks
from .cli_options import (
    DEVICE_OPTION,
    RAW_OPTION,
    add_directory_options,
    bf16_option,
    choose_bf16,
    make_overrides,
    parse_numbers,
)
from .data import prompts
from .data.trajectories import MOST_POSITIONS, NEVER_ACCEPTED, SETTINGS, Trajectory, count_right, write_shard
from .storage.output_files import replace_file
from .torch_backend import TorchBackend, derive_contract
from .trainer import run_fingerprint

ONE_A_STEP = GateSpec(rule="count", min=1)
HELP = {  # help texts that do not fit on the line of their option below
    "shard": "trajectories per file; under torchrun each process collects whole files (default: 256)",
    "threshold": (
        "confidence from which tokens are accepted, several per step, in fewer forward passes; for dparallel, which "
        "needs the answers alone (default: one token per step)"
    ),
}


@dataclass(frozen=True, slots=True)
class Shard:
    """The problems whose trajectories one file holds; `number` determines the sampling seed."""

    number: int
    task: tasks.Task
    temperature: float
    problems: list[tasks.Problem]

    @property
    def name(self) -> str:
        return f"shard-{self.number:05d}.safetensors"

    def derive_seed(self, base: int) -> int:
        """Returns this shard's sampling seed in a collection whose seed is `base`."""
        return base * 100_003 + self.number

    def select(self, prompts: Collection[str]) -> Shard:
        """Returns the shard with only the problems of these prompts; the number, and so the seed, stays the same."""
        return replace(self, problems=[problem for problem in self.problems if problem.prompt in prompts])


def plan(chosen: Sequence[tasks.Task], count: int, temperatures: Sequence[float], size: int, seed: int) -> list[Shard]:
    """Returns a collection's shards: `count` training prompts, divided among the tasks, at each temperature."""
    shards: list[Shard] = []
    for place, task in enumerate(chosen):
        share = count // len(chosen) + (place < count % len(chosen))
        problems = list(task.problems("train", share, seed + 7919))
        for temperature in temperatures:
            for first in range(0, len(problems), size):
                shards.append(Shard(len(shards), task, temperature, problems[first : first + size]))
    return shards


def collect(backend: TorchBackend, prompts: Sequence[np.ndarray], gate: GateSpec = ONE_A_STEP) -> list[Trajectory]:
    """Decodes the prompts, each [length]; returns their trajectories in the same order, not graded yet.

    If the gate accepts several tokens in a step, they are numbered from left to right, as if unmasked one by one.
    """
    contract, width = backend.contract, backend.model.config.width
    positions = compute_longest_answer(contract)
    tokens = torch.full((len(prompts), positions), contract.pad_id)
    order = torch.full((len(prompts), positions), NEVER_ACCEPTED)
    hidden = torch.zeros(len(prompts), positions, width, dtype=torch.float16)
    taken, starts = [0] * len(prompts), [compute_block_starts(contract, len(prompt)) for prompt in prompts]
    latest = torch.zeros(len(prompts), contract.block, width)  # last states; position 0's may be older with `shift`
    requests = [Request(prompt, DecodeOptions(contract.canvas, mode="block")) for prompt in prompts]
    for done in decode_steps(backend, requests, gate=gate):
        for step in done:
            assert backend.hidden is not None  # the backend has keep_hidden
            latest[step.row, step.targets] = backend.hidden[step.slot, : len(step.targets)]
            start = starts[step.row][step.block]
            for place in np.flatnonzero(step.accepted).tolist():
                position = start + place
                tokens[step.row, position] = int(step.tokens[place])
                hidden[step.row, position] = latest[step.row, place]
                order[step.row, position] = taken[step.row]
                taken[step.row] += 1
    return [
        Trajectory(tuple(prompt.tolist()), tokens[i], order[i], hidden[i], False) for i, prompt in enumerate(prompts)
    ]


def compute_block_starts(contract: Contract, prompt: int) -> list[int]:
    """Returns each block's start relative to the prompt's end; the first is negative if it has tokens of the prompt."""
    begins = compute_block_bounds(contract, prompt, compute_longest_answer(contract))[0][
        count_committed(contract, prompt) :
    ]
    found: list[int] = (np.unique(begins) - prompt).tolist()
    return found


def grade_trajectories(
    found: Sequence[Trajectory], shard: Shard, tokenizer: Tokenizer, contract: Contract
) -> list[Trajectory]:
    """Returns the same trajectories with `right` set by the task's own grading."""
    texts = []
    for trajectory in found:
        ids = trajectory.tokens[: contract.canvas].tolist()
        ends = [i for i, token in enumerate(ids) if token in contract.eos_ids]
        texts.append(tokenizer.decode(ids[: ends[0]] if ends else ids, skip_special_tokens=False))
    verdicts = shard.task.grade_many(shard.problems, texts)
    return [Trajectory(t.prompt, t.tokens, t.order, t.hidden, v) for t, v in zip(found, verdicts, strict=True)]


def encode_prompts(shards: Sequence[Shard], encode_prompts: prompts.Encode, contract: Contract) -> dict[str, list[int]]:
    """Returns token ids by prompt, without prompts that leave no room for a whole canvas."""
    different = {(problem.prompt, problem.line): problem for shard in shards for problem in shard.problems}
    problems = list(different.values())
    ids = encode_prompts([problem.prompt for problem in problems])
    kept = prompts.find_fitting(ids, [problem.line for problem in problems], contract, contract.canvas)
    return {problems[place].prompt: ids[place] for place in kept}


def gather(args: argparse.Namespace) -> dict[str, int]:
    """Collects the shards that `--out` lacks. Returns the numbers of trajectories, right ones, new ones and shards.

    Each of several processes collects its own shards. Every shard has its own seed and batches, so the result does not
    depend on which process collects it.
    """
    saved = open_checkpoint.load(args.ckpt, make_overrides(args))
    contract = derive_contract(saved, args.batch)
    check_teacher(contract)
    chosen = tasks.choose_tasks(args.task, args.data)
    planned = plan(chosen, args.count, parse_numbers(args.temperatures, "--temperatures"), args.shard, args.seed)
    settings = collect_settings(args, [task.name for task in chosen], saved)
    if not args.data:
        settings["problems_sha256"] = run_fingerprint.hash_problems(chosen)
    distributed.check_same(settings)
    distributed.run_in_first_process(lambda: write_settings(args.out / SETTINGS, settings))
    gate = make_gate(args.threshold)
    encoded = encode_prompts(planned, prompts.make_encoder(saved, args.raw), contract)
    shards = [shard for each in planned if (shard := each.select(encoded)).problems]
    model = saved.build().to(args.device)
    how = {"keep_hidden": True, "bf16": args.bf16, "barred": saved.list_missing_ids()}
    tokenizer = saved.read_tokenizer()
    right = total = new = 0
    for shard in tqdm(distributed.take_own_rows(shards), unit="shard", desc="collect"):
        path = args.out / shard.name
        if not path.exists():
            backend = TorchBackend(
                model, contract, temperature=shard.temperature, seed=shard.derive_seed(args.seed), **how
            )
            found = decode_prompts(backend, [encoded[p.prompt] for p in shard.problems], args.batch, gate)
            write_shard(path, grade_trajectories(found, shard, tokenizer, contract))
            new += len(found)
        else:
            files.sweep(path)
        shard_right, shard_total = count_right(path)
        right, total = right + shard_right, total + shard_total
    counts = distributed.add_up({"collected": total, "right": right, "new": new})
    return {**{name: int(number) for name, number in counts.items()}, "shards": len(shards)}


def make_gate(threshold: float | None) -> GateSpec:
    """Returns the gate: one token per step, or every token whose confidence reaches the threshold.

    Raises UserError unless the threshold is above 0 and at most 1.
    """
    if threshold is None:
        return ONE_A_STEP
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold is {threshold:g}; expected a confidence above 0 and at most 1")
    return GateSpec(rule="threshold", metric="confidence", comparator=">=", threshold=threshold)


def decode_prompts(
    backend: TorchBackend, encoded: Sequence[Sequence[int]], batch: int, gate: GateSpec = ONE_A_STEP
) -> list[Trajectory]:
    """Decodes prompts, `batch` at a time; returns their trajectories in the same order."""
    rows = [np.array(ids, np.int64) for ids in encoded]
    parts = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    return [found for part in parts for found in collect(backend, part, gate)]


def collect_settings(args: argparse.Namespace, names: list[str], saved: checkpoint.Checkpoint) -> dict[str, object]:
    """Returns the settings that a collection's trajectories depend on: teacher, tasks, data and options."""
    overrides = make_overrides(args)
    settings: dict[str, object] = {
        "ckpt_sha256": open_checkpoint.compute_fingerprint(args.ckpt, overrides),
        "tasks": names,
        "count": args.count,
        "temperatures": args.temperatures,
        "shard": args.shard,
        "batch": args.batch,
        "seed": args.seed,
        "bf16": args.bf16,
    }
    if args.threshold is not None:
        settings["threshold"] = args.threshold
    if args.data:
        settings["data_sha256"] = open_checkpoint.compute_fingerprint(args.data)
    if given := {name: str(value) for name, value in asdict(overrides).items() if value is not None}:
        settings["overrides"] = given
    if saved.chat_template is not None and not args.raw:
        settings["chat_template"] = True
    return settings


def check_teacher(contract: Contract) -> None:
    """Raises UserError for a teacher that does not fill blocks, such as an autoregressive one, or for answers with more
    positions than a shard can number.
    """
    if contract.autoregressive:
        raise UserError("the teacher decodes token by token and has no states between; give a masked-diffusion one")
    if (positions := compute_longest_answer(contract)) > MOST_POSITIONS:
        raise UserError(f"answers have {positions:,} positions; expected at most {MOST_POSITIONS:,}; lower --canvas")


def write_settings(path: Path, settings: dict[str, object]) -> None:
    """Writes a collection's settings; raises UserError if the folder was collected with other settings."""
    text = json.dumps(settings, indent=1)
    try:
        other = path.exists() and path.read_text(encoding="utf-8") != text
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give --out another folder") from None
    if other:
        raise UserError(f"{path.parent} holds trajectories of other settings; give another --out or delete it")
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


OPTIONS = (
    option("--ckpt", type=Path, required=True, help="teacher: a .pt file or a Hugging Face directory"),
    option("--out", type=Path, required=True, help="folder of shards to write; a second run continues"),
    option("--task", default="math,code", help="sample tasks, with commas (default: math,code)"),
    option("--data", type=Path, help="file of JSON lines with prompt and answer, instead of a task (default: none)"),
    option("--count", type=parse_at_least_1, default=1500, help="number of prompts, over all tasks (default: 1500)"),
    option(
        "--temperatures",
        default="0,0.5",
        help="sampling temperatures, with commas; each prompt is answered at each (default: 0,0.5)",
    ),
    option("--batch", type=parse_at_least_1, default=64, help="answers decoded at once (default: 64)"),
    option("--shard", type=parse_at_least_1, default=256, help=HELP["shard"]),
    option("--threshold", type=float, metavar="P", help=HELP["threshold"]),
    option("--seed", type=int, default=0, help="seed of prompts and sampling (default: 0)"),
    DEVICE_OPTION,
    option("--json", action="store_true", help="print the counts as one JSON object"),
    RAW_OPTION,
)


def make_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    p = make_cli_parser("train.collect", (__doc__ or "").splitlines()[0], (*OPTIONS, bf16_option()))
    add_directory_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return distributed.run(lambda: execute(make_parser().parse_args(argv)))


def execute(args: argparse.Namespace) -> int:
    """Collects and prints the counts."""
    with distributed.join_processes(args.device):
        choose_bf16(args)
        report = gather(args)
    if args.json:
        print_json(report)
    else:
        print(f"{report['collected']} collected, {report['new']} of them now; {report['right']} right")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
