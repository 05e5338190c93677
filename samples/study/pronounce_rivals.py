"""Measures other programs that pronounce English words, and our bundles, on the held-out words of task `pronounce`.

    python -m samples.study.pronounce_rivals --out samples/results/pronounce_rivals.json
    python -m samples.study.pronounce_rivals --out FILE --only g2p-en --python .rivals/bin/python
    python -m samples.study.pronounce_rivals --out FILE --ours samples/pronounce.bundle

`rival_worker.py` runs one program after the other, on one core, each in a process of the Python that it is installed
in. Programs that are not installed are left out, with the reason. A row stays in the file until it is measured again,
so programs can be measured a few at a time. `samples.study.pronounce_table` writes the page.
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
from train.tasks.pronunciation import find_stem_split, list_words, read_dictionary

from .ipa_to_arpabet import convert_to_arpabet

WORKER = Path(__file__).with_name("rival_worker.py")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
NOT_INSTALLED = 3  # the worker's exit code
SENTENCE = 20  # words per sentence
SEED = 0  # of the words' order; the default of `blockstep train evaluate`


@dataclass(frozen=True, slots=True)
class OtherProgram:
    """Describes another program.

    Attributes:
        install: the command that installs it.
        data: what it was trained on, and whether that includes the test words.
        ipa: whether it returns IPA, which is converted to ARPAbet; it is then not ranked.
        stress: whether its answers include stress.
        calls: number of words that are timed one by one, if it takes many at once; few if each call starts a process.
        trains: whether it is trained here, on our train split.
    """

    install: str
    data: str
    ipa: bool = False
    stress: bool = True
    calls: int = 200
    trains: bool = False


OTHER_PROGRAMS = {
    "g2p-en": OtherProgram(
        "pip install g2p-en",
        "CMUdict itself: all of NLTK's copy but 128 words (`train.py` of Kyubyong/g2p), so nearly all test words",
    ),
    "phonetisaurus": OtherProgram(
        "pip install phonetisaurus", "our train split alone, by the package's own command", calls=10, trains=True
    ),
    "g2p2": OtherProgram(
        "pip install g2p2 g2p2-group-germanic",
        "WikiPron, epitran and language models' data (its README); its share of the test words is unknown",
        ipa=True,
        stress=False,
    ),
    "gruut": OtherProgram("pip install gruut", "its own lexicon in IPA, which the model learned from", ipa=True),
    "espeak-ng": OtherProgram(
        "apt install espeak-ng", "rules and a lexicon, written by hand and not from our split", ipa=True, calls=50
    ),
}


def list_held_out_words() -> list[tasks.Problem]:
    """Returns every held-out word once."""
    return list(tasks.choose_tasks("pronounce")[0].problems("test", sys.maxsize, SEED))


def run_worker(python: Path, name: str, lines: Sequence[str], *options: object) -> dict[str, Any]:
    """Runs `rival_worker.py` with a program on words, one per line; returns its report.

    Raises UserError, with the reason, if the program did not run.
    """
    command = [str(python), str(WORKER), name, *map(str, options)]
    try:
        process = subprocess.run(
            command, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True,
            env={**os.environ, **ONE_THREAD},
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"--python {python} does not start ({error}); give the Python that the programs are in"
        ) from None
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"ended with code {process.returncode}"])[-1]
        raise UserError(f"{reason}; {get_install_command(name)}" if process.returncode == NOT_INSTALLED else reason)
    report: dict[str, Any] = json.loads(process.stdout)
    return report


def get_install_command(name: str) -> str:
    """Returns the command that installs a program, which may be ours."""
    return OTHER_PROGRAMS[name].install if name in OTHER_PROGRAMS else "pip install '.[cpu]'"


def train_phonetisaurus(python: Path, folder: Path) -> tuple[Path, float]:
    """Trains Phonetisaurus on our train split; returns the model's path and the CPU seconds of the training.

    A model of exactly this lexicon that is in the folder is not trained again. Raises UserError if the package is not
    installed or its training fails.
    """
    words = list_words("train", find_stem_split)
    lexicon = "".join(f"{word} {phonemes}\n" for word in words for phonemes in read_dictionary()[word])
    stem = folder / f"phonetisaurus-{hashlib.sha256(lexicon.encode()).hexdigest()[:8]}"
    model, lexicon_file, seconds_file = (stem.with_suffix(suffix) for suffix in (".fst", ".dict", ".seconds"))
    if not seconds_file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        lexicon_file.write_text(lexicon, encoding="utf-8")
        print(f"phonetisaurus trains on {len(words):,} words; some 3 minutes of one core", file=sys.stderr)
        start = os.times()
        command = [str(python), "-m", "phonetisaurus", "train", "--model", str(model), str(lexicon_file)]
        with Path(f"{stem}.log").open("w") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **ONE_THREAD}).returncode
        if code or not model.is_file():
            raise UserError(
                f"its training ended with code {code}, see {stem}.log; {OTHER_PROGRAMS['phonetisaurus'].install}"
            )
        seconds = sum(os.times()[2:4]) - sum(start[2:4])  # of child processes that have ended
        seconds_file.write_text(f"{seconds:.0f}\n", encoding="utf-8")
    return model, float(seconds_file.read_text(encoding="utf-8"))


def measure_other(name: str, python: Path, work: Path, problems: Sequence[tasks.Problem]) -> dict[str, Any]:
    """Returns another program's row. Raises UserError, with the reason, if it did not run."""
    program = OTHER_PROGRAMS[name]
    model, seconds = train_phonetisaurus(python, work) if program.trains else (None, None)
    words, options = [problem.prompt for problem in problems], ["--model", model] if model else []
    report = run_worker(python, name, words, "--calls", program.calls, *options)
    answers = report.pop("answers")
    if program.ipa:
        answers = [" ".join(convert_to_arpabet(answer)) for answer in answers]
    return {
        "name": name, "ours": False, "ranked": not program.ipa, "stress": program.stress, "data": program.data,
        "train_seconds": seconds, **compute_rates(problems, answers), **report,
    }  # fmt: skip


def measure_ours(bundle: Path, engine: str, python: Path, problems: Sequence[tasks.Problem]) -> dict[str, Any]:
    """Returns the row of a bundle's engine: words one by one, then sentences, whose words are decoded at once.

    `sentences` has the forward passes per sentence (those of its batch, or the sum over its words if the engine takes
    one sequence), sentences per second, and how many answers differ from those of words decoded one by one. Raises
    UserError, with the reason, if the engine did not run.
    """
    options, words = ("--model", bundle, "--engine", engine), [problem.prompt for problem in problems]
    report = run_worker(python, "blockstep", words, *options)
    answers = report.pop("answers")
    row = {
        "name": engine, "ours": True, "ranked": True, "stress": True, "data": "our train split", "train_seconds": None,
        **compute_rates(problems, answers), **report,
    }  # fmt: skip
    count = len(words) // SENTENCE * SENTENCE  # words of complete sentences
    together = run_worker(python, "blockstep", words[:count], *options, "--together", SENTENCE)
    row["sentences"] = {
        "problems": count // SENTENCE, "forwards": together["forwards"],
        "per_second": together["words_per_second"] / SENTENCE,
        "differing": sum(one != other for one, other in zip(answers[:count], together["answers"], strict=True)),
    }  # fmt: skip
    return row


def compute_rates(problems: Sequence[tasks.Problem], texts: Sequence[str]) -> dict[str, Any]:
    """Returns error rates with intervals, and which words are wrong, in the order of the problems."""
    figures, wrong = measure_task(tasks.choose_tasks("pronounce")[0], problems, texts)
    return {**figures, "per_problem": wrong}


def describe_conditions() -> dict[str, Any]:
    """Returns the conditions of timings: this processor's name and its load average of the last minute."""
    return {"cpu": read_processor_name(), "load": round(os.getloadavg()[0], 2)}


def read_earlier(path: Path, words: str) -> dict[str, Any]:
    """Returns the report in a file, or a new one if it does not exist.

    words: hash of the held-out words. Raises UserError if the file is of other words, or is not a report.
    """
    if not path.exists():
        return {"task": "pronounce", "split": "test", "seed": SEED, "words": words, "rows": {}, "left_out": {}}
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same_words, parts = report["words"] == words, (report["rows"], report["left_out"])
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("rows and left_out are not objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a report of this command ({error}); delete it, or give another --out") from None
    if not same_words:
        raise UserError(f"{path} is of other words; delete it, or give another --out")
    return report


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the requested programs, writes the report after each, and returns it."""
    check_file(args.out)
    problems = list_held_out_words()
    report = read_earlier(args.out, hashlib.sha256("\n".join(p.prompt for p in problems).encode()).hexdigest()[:16])
    engines = [engine.name for engine in store.read(args.ours).engines] if args.ours else []
    others = args.only or ([] if engines else list(OTHER_PROGRAMS))
    for name in tqdm([*others, *engines], unit="program", disable=None):
        try:
            if name in engines:
                row = measure_ours(args.ours, name, args.python, problems)
            else:
                row = measure_other(name, args.python, args.work, problems)
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
    option(
        "--only",
        action="append",
        choices=OTHER_PROGRAMS,
        default=[],
        help="program to measure, repeatable (default: all)",
    ),
    option(
        "--ours",
        type=Path,
        metavar="BUNDLE",
        help="our bundle, whose engines are measured instead of other programs (default: none)",
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
    """Measures the requested programs and prints a line per row of the report."""
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
