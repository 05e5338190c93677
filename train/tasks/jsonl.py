"""Reads users' own data: JSON lines of prompts and answers, in this project's layout or those of GSM8K and MBPP."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from runtime.bundle import strict_json
from runtime.errors import UserError

from .problem import Problem, find_split
from .word_problems import find_final_number

SPLITS = ("train", "valid", "test", "all")
BOM = "\ufeff"
OTHER_FILE_KINDS = {  # name and advice, by the first bytes
    b"\xff\xfe\0\0": ("UTF-32", "iconv -f UTF-32 -t UTF-8"), b"\0\0\xfe\xff": ("UTF-32", "iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8"), b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"{\0": ("UTF-16", "iconv -f UTF-16LE -t UTF-8"), b"\0{": ("UTF-16", "iconv -f UTF-16BE -t UTF-8"),
    b"BZh": ("compressed by bzip2", "bunzip2 it"), b"\xfd7zXZ": ("compressed by xz", "unxz it"),
    b"\x1f\x8b": ("compressed by gzip", "gunzip it"), b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unzstd it"),
    b"PK\x03\x04": ("a zip archive", "unzip it"),
    b"PAR1": ("a Parquet file", "pandas' to_json(orient='records', lines=True)"),
}  # fmt: skip
LAYOUTS: tuple[dict[str, type], ...] = (
    {"prompt": str, "answer": str},
    {"question": str, "answer": str},
    {"text": str, "code": str, "test_list": list},
    {"prompt": str, "code": str, "test_list": list},
)
EXAMPLE = '{"prompt": "2 + 3?", "answer": "5"}'
MAX_SHOWN_LENGTH = 60  # characters of a wrong value in an error message
Grader = Callable[[Sequence[Problem], Sequence[str]], list[bool]]


def read(path: Path) -> tuple[Problem, ...]:
    """Reads all problems of a JSON-lines file.

    Layouts, distinguished by their keys:

    * `prompt`, `answer`, optional `tests`;
    * GSM8K: `question`, `answer`;
    * MBPP: `text`, or `prompt` as in the sanitized version, `code`, `test_list`, optional `test_setup_code` or
      `test_imports`. A prompt is the text and the first test, with its setup.

    Whitespace at the end of GSM8K's and MBPP's prompts is dropped. Raises UserError naming the line.
    """
    problems = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        line = line.removeprefix(BOM).strip()  # each of several concatenated files may have one
        if line:
            try:
                problems.append(replace(_check_surrogates(_parse_problem(_parse_record(line))), line=number))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    if not any(problem.prompt for problem in problems):
        what = "prompts" if problems else "problems"
        raise UserError(f"{path} holds no {what}; expected a JSON object per line with prompt and answer")
    return tuple(problems)


def _read_text(path: Path) -> str:
    """Reads the text of a file. Raises UserError for other kinds of files, as far as they can be recognized."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); expected a file of JSON lines") from None
    for start, (what, advice) in OTHER_FILE_KINDS.items():
        if content.startswith(start):
            raise UserError(f"{path} is {what}; expected a file of JSON lines in UTF-8: {advice}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; expected a file of JSON lines in UTF-8") from None
    if text.removeprefix(BOM).lstrip().startswith("["):
        raise UserError(f"{path} begins as a JSON array; expected a JSON object per line: jq -c '.[]' makes such lines")
    return text


def _parse_record(line: str) -> dict[str, object]:
    """Parses the object in a line. Raises ValueError naming what is there instead."""
    try:
        record = json.loads(line, object_pairs_hook=strict_json.check_unique, parse_int=strict_json.parse_whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}; expected one whole JSON object") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"got {_shorten(record)}; expected an object, as in {EXAMPLE}")
    return record


def _parse_problem(record: dict[str, object]) -> Problem:
    match record:
        case {"prompt": str(prompt), "answer": str(answer)}:
            return Problem(prompt, answer, "file", _check_strings(record, "tests"))
        case {"question": str(question), "answer": str(answer)}:
            return Problem(question.rstrip(), answer, "gsm8k")
        case {"text": str(text), "code": str(code), "test_list": list()} | {
            "prompt": str(text),
            "code": str(code),
            "test_list": list(),
        }:
            code_before = record.get("test_setup_code") or ""
            if not isinstance(code_before, str):
                raise ValueError(f"test_setup_code is {_shorten(code_before)}; expected a string, in quotes")
            setup = "\n".join((*_check_strings(record, "test_imports"), code_before)).strip()
            checks = tuple(f"{setup}\n{test}" if setup else test for test in _check_strings(record, "test_list"))
            prompt = "\n".join((text.rstrip(), *checks[:1]))
            return Problem(prompt.rstrip(), code.replace("\r\n", "\n").rstrip(), "mbpp", checks)
    keys = ", ".join(sorted(record)) or "nothing"
    for layout in LAYOUTS:
        for name, kind in layout.items() if layout.keys() <= record.keys() else ():
            if not isinstance(record[name], kind):
                expected = "a string, in quotes" if kind is str else "a list of strings"
                raise ValueError(f"got the keys {keys}, but {name} is {_shorten(record[name])}; expected {expected}")
    raise ValueError(
        f"got the keys {keys}; expected prompt and answer, question and answer, or text or prompt, code and test_list"
    )


def _check_surrogates(problem: Problem) -> Problem:
    """Returns the problem. Raises ValueError if JSON's escapes left half a surrogate pair in its texts."""
    texts = [("the prompt", problem.prompt), ("the answer", problem.answer), *(("a test", t) for t in problem.tests)]
    for name, text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"at character {error.start + 1}"
            raise ValueError(f"{name} has half a surrogate pair {where}; expected Unicode") from None
    return problem


def _shorten(value: object) -> str:
    """Returns a value as JSON writes it, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}..."


def _check_strings(record: dict[str, object], name: str) -> tuple[str, ...]:
    values = record.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} is {_shorten(values)}; expected a list of strings")
    return tuple(values)


def sample_problems(lines: Sequence[Problem], split: str, count: int, seed: int) -> Iterator[Problem]:
    """Yields `count` problems of a split in an order that depends on the seed.

    `train` starts over in another order once all its lines were yielded; `valid` and `test` end there. `all` yields the
    file's first `count` lines in their order, as a published test file is graded; the seed has no effect on it. Raises
    UserError for an unknown split, and for a split without lines.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the splits of one's own data are {', '.join(SPLITS)}")
    if split == "all":
        return itertools.islice(lines, count)
    chosen = [line for line in lines if find_split(line.prompt) == split]
    if not chosen:
        raise UserError(f"no line of the data falls into the split {split!r} (of {len(lines)} lines); add more lines")
    rng = random.Random(f"{split}-{seed}")
    rounds = itertools.count() if split == "train" else range(1)
    shuffled = (line for _ in rounds for line in rng.sample(chosen, len(chosen)))
    return itertools.islice(shuffled, count)


def grade_many(
    problems: Sequence[Problem], texts: Sequence[str], grade_numbers: Grader, grade_programs: Grader
) -> list[bool]:
    """Grades each answer as its problem demands: runs tests, compares the N of `#### N`, or compares the whole text.

    Args:
        problems: lines of the file.
        texts: one answer per problem.
        grade_numbers: grades the answers whose last `####` is followed by a number.
        grade_programs: grades the answers of problems with tests.
    """
    right = [problem.answer.strip() == text.strip() for problem, text in zip(problems, texts, strict=True)]
    for kind, grader in (("tests", grade_programs), ("number", grade_numbers)):
        places = [i for i, problem in enumerate(problems) if _find_grading(problem) == kind]
        graded = grader([problems[i] for i in places], [texts[i] for i in places]) if places else []
        for place, verdict in zip(places, graded, strict=True):
            right[place] = verdict
    return right


def _find_grading(problem: Problem) -> str:
    """Returns how a problem is graded: by tests, number or text. `#### 2.5` is text: not a whole number."""
    if problem.tests:
        return "tests"
    return "text" if find_final_number(problem.answer) is None else "number"
