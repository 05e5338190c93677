"""Counts the words that docstrings, comments, help, error texts and pages avoid, and those that engineers grep for.

python tests/support/words.py                  # a count per pattern
python tests/support/words.py --lines where    # the lines of one pattern
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("runtime", "train", "export", "samples", "docs")
UNITS = "second|minute|forward|step|update|task|token|row|block|request|word|answer|layer|problem|sequence"
VERBS = (
    "returns|runs|feeds|makes|gives|takes|has|is|as|was|does|builds|reads|writes|holds|needs|adds|ends|this|counts|samples|"
    "splits|begins|starts|costs|becomes|computes|replaces|records|decodes|predicts|fills|commits|unmasks|sends|finds|skips|"
    "keeps|closes|gets|cuts|leaves|decides|generates|encodes|puts|plots|lays|masks|asks|answers|yields|moves|sees|uses|wants|"
    "follows|shares|queues|drafts|appends|binds|copies|describes|turns|refuses|quotes|shows|defines|maps|fits|streams|measures|"
    "unless"
)
AVOIDED = {  # name: pattern
    "where": r"\bwhere\b",
    "distributive a": rf"\b(?!(?:{VERBS}) )\w+s an? (?:{UNITS})\b",
    "forward without pass": r"\b(?:a|each|every|one|per|of) forward\b(?! pass)|\bforwards\b",
    "behind": r"\bbehind\b",
    "beside": r"\bbeside\b",
    "lies, stands": r"\b(?:lies|lie|stands|stand)\b",
    "is no": r"\b(?:is|are) no\b",
    "ask, told, said": r"\b(?:asked|asks|told|tells|said|says)\b",
    "draw": r"\b(?:draw|draws|drawn)\b",
    "finalise, settle": r"\b(?:finali[sz]\w*|settle\w*)\b",
    "open position": r"\bopen (?:position|token|row)\w*",
    "sure, likeliest": r"\b(?:sure|surest|surer|likeliest)\b",
    "rival": r"\brivals?\b",
    "twin, trial, lane, crossing": r"\b(?:twin|trial|lane|crossing)s?\b",
    "pieces, workplace, lesson": r"\b(?:in pieces|workplace|lessons?)\b",
}
WANTED = {
    "forward pass": r"\bforward pass(?:es)?\b",
    "KV cache": r"\bKV[ -]cache",
    "prefix caching": r"\bprefix[ -]cach\w+",
    "chunked prefill": r"\bchunked prefill\b",
    "early stop": r"\bearly stop",
    "throughput": r"\bthroughput\b",
    "per": r"\bper\b",
}
CODE = re.compile(r"`[^`\n]*`")


def read_python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yields line numbers and texts of a module's docstrings and comments."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for place, line in enumerate(first.value.value.split("\n")):
                    yield first.lineno + place, line
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and "fmt:" not in token.string and "type:" not in token.string:
            yield token.start[0], token.string


def read_python_texts(text: str) -> Iterator[tuple[int, str]]:
    """Yields line numbers and texts of a module's help, descriptions and errors, without what an f-string inserts."""
    for node in ast.walk(ast.parse(text)):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            found = [keyword.value for keyword in node.keywords if keyword.arg in ("help", "description")]
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found += node.args if name.endswith(("Error", "Refusal")) else []
        elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["HELP"]:
            found = [node.value]
        for each in found:
            yield from literals(each)


def literals(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line numbers and texts of the strings of an expression, without the values in an f-string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif not isinstance(node, ast.FormattedValue):
        for child in ast.iter_child_nodes(node):
            yield from literals(child)


def read_page_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yields line numbers and texts of a page without its code blocks."""
    code = False
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield number, line


@cache
def prose(path: Path) -> list[tuple[int, str]]:
    """Returns line numbers and texts of a file's prose, without what is in backticks."""
    text = path.read_text(encoding="utf-8")
    python = path.suffix == ".py"
    found = chain(read_python_prose(text), read_python_texts(text)) if python else read_page_prose(text)
    return [(number, CODE.sub("`", line)) for number, line in found]


def files() -> Iterator[Path]:
    """Yields the modules and pages of the folders, and README; the log and the decisions keep their words."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md") and "results" not in path.parts:
                yield path
    yield ROOT / "README.md"


def hits(pattern: str) -> Iterator[tuple[Path, int, str]]:
    """Yields the file, line number and line of each occurrence of a pattern."""
    compiled = re.compile(pattern, re.IGNORECASE)
    for path in files():
        for number, line in prose(path):
            for _ in compiled.finditer(line):
                yield path.relative_to(ROOT), number, line.strip()


def counts() -> dict[str, int]:
    """Counts each avoided and each wanted word."""
    return {name: sum(1 for _ in hits(pattern)) for name, pattern in {**AVOIDED, **WANTED}.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the counts, or the lines of one pattern, and returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", choices=[*AVOIDED, *WANTED], help="print the lines of one pattern")
    args = parser.parse_args(argv)
    if args.lines:
        for path, number, line in hits({**AVOIDED, **WANTED}[args.lines]):
            print(f"{path}:{number}: {line}")
        return 0
    for name, count in counts().items():
        print(f"{count:>5}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
