"""Measures linear classifiers on the held-out families of the task `intents`: one for the intent, one per slot.

    python -m samples.study.intents_linear --sizes 1250,5000,20000 --out intents_linear.json

They are logistic regressions, one per value against the rest, on TF-IDF of n-grams: of 1 to 3 words, and of 2 to 5
characters within words. They are trained on the first utterances of the split `train`. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.cli import DONE, make_cli_parser, option, print_json
from runtime.cli import run as run_command
from runtime.errors import UserError
from runtime.perf.conditions import find_version, read_processor_name
from train.cli_options import parse_numbers
from train.evaluation.intervals import estimate_proportion
from train.storage.output_files import check_file, replace_file
from train.tasks import Problem, intents

SIZES, COUNT, REGULARIZATION = "1250,5000,20000", 2000, 10.0  # defaults of the options
SPLITS = ("valid", "test", "test_surface")
TIMED = 200  # utterances of the split `test` that are timed, one by one
INSTALL = "samples.study.intents_linear needs scikit-learn, which is not installed: pip install scikit-learn"

Labels = dict[str, list[str]]  # by field, a value per problem, as JSON


def collect_labels(problems: Sequence[Problem], fields: Sequence[str]) -> Labels:
    """Returns the right labels of problems."""
    answers = [json.loads(problem.answer) for problem in problems]
    return {field: [json.dumps(answer[field]) for answer in answers] for field in fields}


def make_vectorizer() -> Any:
    """Returns what turns texts into features: TF-IDF of words and marks, and of characters.

    Raises UserError without scikit-learn.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_union
    except ModuleNotFoundError as error:
        raise UserError(f"{INSTALL} (missing: {error.name})") from None
    words = TfidfVectorizer(ngram_range=(1, 3), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    return make_union(words, characters)


def make_classifier(regularization: float) -> Any:
    """Returns an untrained linear classifier for the values of one field."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    binary = LogisticRegression(C=regularization, solver="liblinear", dual=True, max_iter=200, random_state=0)
    return OneVsRestClassifier(binary)


def compute_shares(predictions: Labels, right: Labels) -> dict[str, Any]:
    """Returns the shares of problems in which each field, all slots, and all fields are right, with 95 % intervals."""
    verdicts = {name: [a == b for a, b in zip(predictions[name], right[name], strict=True)] for name in predictions}
    by_figure = {"intent_accuracy" if name == "intent" else f"slot_{name}": each for name, each in verdicts.items()}
    if verdicts.keys() == {*intents.FIELDS}:
        slots = [all(each) for each in zip(*(verdicts[slot] for slot in intents.SLOTS), strict=True)]
        exact = [a and b for a, b in zip(slots, verdicts["intent"], strict=True)]
        by_figure |= {"slots_accuracy": slots, "exact": exact}
    shares = dict[str, Any]()
    for name, each in by_figure.items():
        share = estimate_proportion(each)
        shares[name], shares[f"{name}_95"] = round(share.mean, 5), [round(share.low, 5), round(share.high, 5)]
    return shares


def measure(size: int, count: int, fields: Sequence[str], regularization: float, seed: int = 0) -> dict[str, Any]:
    """Trains classifiers on `size` utterances; returns their figures on `count` utterances of each held-out split."""
    start, vectorizer = time.process_time(), make_vectorizer()
    train = [*intents.sample_problems("train", size, seed)]
    held_out = {split: [*intents.sample_problems(split, count, seed)] for split in SPLITS}
    train_features = vectorizer.fit_transform([problem.prompt for problem in train])
    features = {split: vectorizer.transform([each.prompt for each in problems]) for split, problems in held_out.items()}
    train_labels, predictions = collect_labels(train, fields), {split: Labels() for split in SPLITS}
    models = list[Any]()
    for field in fields:
        values = {*train_labels[field]}
        model = make_classifier(regularization).fit(train_features, train_labels[field]) if len(values) > 1 else None
        models += [model] if model else []
        for split, rows in features.items():
            predicted = model.predict(rows) if model else [*values] * len(held_out[split])
            predictions[split][field] = [str(each) for each in predicted]
    results = {split: compute_shares(predictions[split], collect_labels(held_out[split], fields)) for split in SPLITS}
    seconds = round(time.process_time() - start, 1)
    milliseconds = measure_milliseconds(vectorizer, models, held_out["test"][:TIMED])
    return {"size": size, "features": train_features.shape[1], "cpu_seconds": seconds, "ms": milliseconds, **results}


def measure_milliseconds(vectorizer: Any, models: Sequence[Any], problems: Sequence[Problem]) -> float:
    """Returns the median time, in ms, in which all classifiers together answer one utterance, features included."""
    times = []
    for problem in problems:
        start = time.perf_counter()
        row = vectorizer.transform([problem.prompt])
        for model in models:
            model.predict(row)
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 3)


def execute(args: argparse.Namespace) -> int:
    """Measures every size, prints a line per size and split, and writes the report."""
    if args.out:
        check_file(args.out)
    if args.count < 1 or not args.regularization > 0:
        values = f"--count is {args.count} and --regularization {args.regularization}"
        raise UserError(f"{values}; expected at least one problem and a number above 0")
    sizes = [int(size) for size in parse_numbers(args.sizes, "--sizes")]
    if min(sizes) < 1:
        raise UserError(f"--sizes is {args.sizes}; expected numbers of utterances, as {SIZES}")
    make_vectorizer()
    fields, rows = intents.FIELDS if args.slots else intents.FIELDS[:1], []
    for size in sizes:
        row = measure(size, args.count, fields, args.regularization)
        rows.append(row)
        for split in SPLITS:
            texts = [f"{name} {row[split][name]:.4f} {row[split][f'{name}_95']}" for name in list_main(row[split])]
            print(f"{size:>7} {split:<13} {', '.join(texts)}", file=sys.stderr if args.json else sys.stdout, flush=True)
    report = {"count": args.count, "regularization": args.regularization, "rows": rows} | {
        "scikit-learn": find_version("scikit-learn"), "cpu": read_processor_name()
    }  # fmt: skip
    if args.out:
        text = json.dumps(report, indent=1) + "\n"
        replace_file(args.out, lambda path: path.write_text(text, encoding="utf-8"))
    if args.json:
        print_json(report)
    return DONE


def list_main(figures: dict[str, Any]) -> list[str]:
    """Returns the names of the main figures, which are printed."""
    return [name for name in ("intent_accuracy", "slots_accuracy", "exact") if name in figures]


OPTIONS = (
    option("--sizes", default=SIZES, help=f"numbers of training utterances, with commas (default: {SIZES})"),
    option("--count", type=int, default=COUNT, help=f"utterances per held-out split (default: {COUNT})"),
    option(
        "--slots",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fit a classifier for each slot as well (default: on)",
    ),
    option(
        "--regularization", type=float, default=REGULARIZATION, help="inverse regularization strength C (default: 10)"
    ),
    option("--out", type=Path, help="file to write the JSON report to (default: none)"),
    option("--json", action="store_true", help="print the report as one JSON object"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    p = make_cli_parser("samples.study.intents_linear", (__doc__ or "").splitlines()[0], OPTIONS)
    return run_command(lambda: execute(p.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
