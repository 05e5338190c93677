"""Measures other programs that pronounce English words, and bundles of ours, on the held-out words of task `pronounce`.

    python -m samples.study.pronounce_rivals --out samples/results/pronounce_rivals.json
    python -m samples.study.pronounce_rivals --out FILE --only g2p-en --python .rivals/bin/python
    python -m samples.study.pronounce_rivals --out FILE --ours samples/pronounce.bundle

`rival_worker.py` runs each alone, on one core, in a process of the Python that it is installed in. Programs that are
not installed are left out, with the reason. A row stays in the file until it is measured again, so programs can be
measured a few at a time. `samples.study.pronounce_table` makes the page.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.bundle import store
from runtime.cli import DONE, make_cli_parser, option, print_json
from runtime.cli import run as run_command
from runtime.errors import UserError
from runtime.perf.conditions import read_processor_name
from train import tasks
from train.evaluation.evaluation_run import measure_task
from train.storage.output_files import check_file, replace_file
from train.tasks.pronunciation import list_words, read_dictionary, split_by_stem

from .ipa_to_arpabet import convert_to_arpabet

WORKER = Path(__file__).with_name("rival_worker.py")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
NOT_INSTALLED = 3
SENTENCE = 20  # words per sentence
SEED = 0  # of the problems' order; the default of `blockstep train evaluate`


@dataclass(frozen=True, slots=True)
class Rival:
    """Describes another program.

    Attributes:
        install: the command that installs it.
        data: what it was trained on, and whether that has the test words.
        ipa: whether it answers in IPA, which a mapping turns into ARPAbet; then it is not ranked.
        stress: whether its answers include stress.
        calls: words that are also given one by one, if it takes many at once; few if each call starts a program.
        trains: whether it is trained here, on our train split.
    """

    install: str
    data: str
    ipa: bool = False
    stress: bool = True
    calls: int = 200
    trains: bool = False


RIVALS = {
    "g2p-en": Rival(
        "pip install g2p-en",
        "CMUdict itself: all of NLTK's copy but 128 words (`train.py` of Kyubyong/g2p), so nearly all test words",
    ),
    "phonetisaurus": Rival(
        "pip install phonetisaurus", "our train split alone, by the package's own command", calls=10, trains=True
    ),
    "g2p2": Rival(
        "pip install g2p2 g2p2-group-germanic",
        "WikiPron, epitran and language models' data (its README); its share of the test words is unknown",
        ipa=True,
        stress=False,
    ),
    "gruut": Rival("pip install gruut", "its own lexicon in IPA, which the model learned from", ipa=True),
    "espeak-ng": Rival(
        "apt install espeak-ng", "rules and a lexicon, written by hand and not from our split", ipa=True, calls=50
    ),
}


def list_held_out_words() -> list[tasks.Problem]:
    """Returns every held-out word once."""
    return list(tasks.choose_tasks("pronounce")[0].problems("test", sys.maxsize, SEED))


def run_worker(python: Path, name: str, lines: Sequence[str], *options: object) -> dict[str, Any]:
    """Returns the worker's report. Raises UserError with the reason if the program did not run."""
    command = [str(python), str(WORKER), name, *map(str, options)]
    try:
        done = subprocess.run(
            command, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True,
            env={**os.environ, **ONE_THREAD},
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"--python {python} does not start ({error}); give the Python that the programs are in"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        raise UserError(f"{last}; {install_command(name)}" if done.returncode == NOT_INSTALLED else last)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def install_command(name: str) -> str:
    """Returns the command that installs a program, or ours."""
    return RIVALS[name].install if name in RIVALS else "pip install '.[cpu]'"


def train_phonetisaurus(python: Path, folder: Path) -> tuple[Path, float]:
    """Returns a model of the train split, and the CPU seconds of its training.

    Trains only if a model of exactly this lexicon is missing. Raises UserError if the package is not installed or its
    training fails.
    """
    words = list_words("train", split_by_stem)
    lexicon = "".join(f"{word} {phonemes}\n" for word in words for phonemes in read_dictionary()[word])
    stem = folder / f"phonetisaurus-{hashlib.sha256(lexicon.encode()).hexdigest()[:8]}"
    model, listed, seconds = (stem.with_suffix(suffix) for suffix in (".fst", ".dict", ".seconds"))
    if not seconds.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        listed.write_text(lexicon, encoding="utf-8")
        print(f"phonetisaurus trains on {len(words):,} words; some 3 minutes of one core", file=sys.stderr)
        started = os.times()
        command = [str(python), "-m", "phonetisaurus", "train", "--model", str(model), str(listed)]
        with Path(f"{stem}.log").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **ONE_THREAD}).returncode
        if code or not model.is_file():
            raise UserError(f"its training ended with code {code}, see {stem}.log; {RIVALS['phonetisaurus'].install}")
        spent = sum(os.times()[2:4]) - sum(started[2:4])  # of child processes that have ended
        seconds.write_text(f"{spent:.0f}\n", encoding="utf-8")
    return model, float(seconds.read_text(encoding="utf-8"))


def measure_rival(name: str, python: Path, work: Path, problems: Sequence[tasks.Problem]) -> dict[str, Any]:
    """Returns a program's row. Raises UserError with the reason if it did not run."""
    rival = RIVALS[name]
    model, seconds = train_phonetisaurus(python, work) if rival.trains else (None, None)
    found = run_worker(
        python,
        name,
        [problem.prompt for problem in problems],
        "--calls",
        rival.calls,
        *(["--model", model] if model else []),
    )
    texts = found.pop("answers")
    if rival.ipa:
        texts = [" ".join(convert_to_arpabet(text)) for text in texts]
    return {
        "name": name, "ours": False, "ranked": not rival.ipa, "stress": rival.stress, "data": rival.data,
        "train_seconds": seconds, **compute_rates(problems, texts), **found,
    }  # fmt: skip


def measure_ours(bundle: Path, engine: str, python: Path, problems: Sequence[tasks.Problem]) -> dict[str, Any]:
    """Returns the row of a bundle's engine: words one by one, then sentences, whose words are decoded at once.

    `sentences` has the forward passes per sentence (those of its batch, or the sum over its words if the engine takes
    one sequence), sentences per second, and how many answers differ from those of words decoded one by one. Raises
    UserError if the engine did not run.
    """
    options, words = ("--model", bundle, "--engine", engine), [problem.prompt for problem in problems]
    found = run_worker(python, "blockstep", words, *options)
    answers = found.pop("answers")
    row = {
        "name": engine, "ours": True, "ranked": True, "stress": True, "data": "our train split", "train_seconds": None,
        **compute_rates(problems, answers), **found,
    }  # fmt: skip
    whole = len(words) // SENTENCE * SENTENCE
    spoken = run_worker(python, "blockstep", words[:whole], *options, "--together", SENTENCE)
    row["sentences"] = {
        "problems": whole // SENTENCE, "forwards": spoken["forwards"],
        "per_second": spoken["words_per_second"] / SENTENCE,
        "differing": sum(one != other for one, other in zip(answers[:whole], spoken["answers"], strict=True)),
    }  # fmt: skip
    return row


def compute_rates(problems: Sequence[tasks.Problem], texts: Sequence[str]) -> dict[str, Any]:
    """Returns error rates with intervals, and which words are wrong, in the order of the problems."""
    figures, wrong = measure_task(tasks.choose_tasks("pronounce")[0], problems, texts)
    return {**figures, "per_problem": wrong}


def describe_conditions() -> dict[str, Any]:
    """Returns the conditions of timings: one core of this processor, and its load."""
    return {"cpu": read_processor_name(), "load": round(os.getloadavg()[0], 2)}


def read_earlier(path: Path, words: str) -> dict[str, Any]:
    """Returns the report in a file, or an empty one. Raises UserError if the file is of other words, or no report."""
    if not path.exists():
        return {"task": "pronounce", "split": "test", "seed": SEED, "words": words, "rows": {}, "left_out": {}}
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same, parts = before["words"] == words, (before["rows"], before["left_out"])
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("rows and left_out are not objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a report of this command ({error}); delete it, or give another --out") from None
    if not same:
        raise UserError(f"{path} is of other words; delete it, or give another --out")
    return before


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what was requested, writes each row as it comes, and returns the report."""
    check_file(args.out)
    problems = list_held_out_words()
    report = read_earlier(args.out, hashlib.sha256("\n".join(p.prompt for p in problems).encode()).hexdigest()[:16])
    engines = [engine.name for engine in store.read(args.ours).engines] if args.ours else []
    chosen = args.only or ([] if engines else list(RIVALS))
    for name in tqdm([*chosen, *engines], unit="rival", disable=None):
        try:
            if name in engines:
                row = measure_ours(args.ours, name, args.python, problems)
            else:
                row = measure_rival(name, args.python, args.work, problems)
        except UserError as error:
            report["left_out"][name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            report["left_out"].pop(name, None)
            report["rows"][name] = {**row, "conditions": describe_conditions()}
        text = json.dumps(report, separators=(",", ":")) + "\n"
        replace_file(args.out, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    return report


OPTIONS = (
    option("--out", type=Path, required=True, help="JSON file to write; rows that it already has stay"),
    option("--only", action="append", choices=RIVALS, default=[], help="program to measure, repeatable (default: all)"),
    option(
        "--ours",
        type=Path,
        metavar="BUNDLE",
        help="bundle of ours whose engines are measured instead of other programs (default: none)",
    ),
    option(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="Python executable that the programs are installed in (default: this one)",
    ),
    option(
        "--work",
        type=Path,
        default=Path("runs/rivals"),
        help="folder for the programs that are trained (default: runs/rivals)",
    ),
    option("--json", action="store_true", help="print the rows as one JSON object"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    p = make_cli_parser("samples.study.pronounce_rivals", (__doc__ or "").splitlines()[0], OPTIONS)
    return run_command(lambda: execute(p.parse_args(argv)))


def execute(args: argparse.Namespace) -> int:
    """Measures and prints a line per row."""
    report = run(args)
    rows = {name: {k: v for k, v in row.items() if k != "per_problem"} for name, row in report["rows"].items()}
    if args.json:
        print_json({**report, "rows": rows})
        return DONE
    for name, row in rows.items():
        error = f"{100 * row['word_error_without_stress']:.1f} % of words wrong without stress"
        print(f"{name:20} {error}, {row['words_per_second']:.3g} words per second, {row['peak_mb']:.0f} MB")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
