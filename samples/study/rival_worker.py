"""Runs one program of the pronunciation table, with only the standard library and the program's own package.

    PYTHON samples/study/rival_worker.py NAME [--model FILE] [--engine NAME] [--together N] [--calls N] < words

`samples.study.pronounce_rivals` starts it with the Python that the program is installed in. Words are read one per
line; the report is one JSON object with the program's answer to each word, seconds, memory and bytes on disk. Our
engines, as the program `blockstep`, are measured by the same code; they may decode the words of a sentence at once.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

POLL = 0.002  # seconds between two readings of a program's memory
WEIGHTS = "weights apart"  # the name, among packages, of weights that are not part of a package
DEBIAN = ("espeak-ng", "libespeak-ng1", "espeak-ng-data")


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """Holds a program that is ready to run.

    Attributes:
        predict: takes words; returns one answer per word, as the program writes it.
        packages: versions and bytes on disk of what a minimal install needs, by name.
        batch: whether one call takes many words.
        process: whether a call starts a process, whose memory counts instead of this one's.
        count_known: returns how many of the words are in the package's own lexicon; None without a readable lexicon.
        forwards: forward passes per group of `together` words so far, if the program counts them.
    """

    predict: Callable[[Sequence[str]], list[str]]
    packages: dict[str, tuple[str, int]]
    batch: bool = False
    process: bool = False
    count_known: Callable[[Sequence[str]], int] | None = None
    forwards: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ProcessRunner:
    """Runs processes, and records the largest peak memory of all, in MB."""

    peak_mb: float = 0.0
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(self, command: Sequence[str], text: str = "") -> list[str]:
        """Returns the lines that a command prints. text: its standard input. Raises RuntimeError if it fails."""
        with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as stdout:
            stdin.write(text)
            stdin.seek(0)
            process = subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, env=self.environment
            )
            while process.poll() is None:
                # not getrusage, whose maximum includes this process's own memory at the program's start
                self.peak_mb = max(self.peak_mb, read_peak_mb(process.pid))
                time.sleep(POLL)
            if process.returncode:
                raise RuntimeError(f"{command[0]} ended with code {process.returncode}")
            stdout.seek(0)
            return stdout.read().splitlines()


PROCESSES = ProcessRunner()


def read_peak_mb(process: int | str = "self") -> float:
    """Returns a process's peak memory since its program started, in MB (1e6 bytes); 0 if it has ended."""
    try:
        match = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0.0
    return int(match[1]) * 1024 / 1e6 if match else 0.0


def blockstep(model: Path | None, engine: str | None = None, together: int = 1) -> LoadedProgram:
    """Loads an engine of our bundle `model`, with one thread, to decode `together` words at once.

    If the engine takes several sequences, the words share a batch and its forward passes; otherwise each has its own.
    """
    assert model is not None
    blockstep_model = import_module("blockstep").load(model, engine=engine, threads=1)
    slots = min(together, blockstep_model.contract.batch)
    batch = blockstep_model.batch(slots) if slots > 1 else None
    forwards: list[int] = []

    def predict(words: Sequence[str]) -> list[str]:
        answers: list[str] = []
        for first in range(0, len(words), together):
            group = words[first : first + together]
            if batch is None:
                texts, passes = decode_one_by_one(blockstep_model, group)
            else:
                texts, passes = decode_in_batch(blockstep_model, batch, group)
            answers += texts
            forwards.append(passes)
        return answers

    manifest = json.loads((model / "manifest.json").read_text())
    files = next(each["files"] for each in manifest["engines"] if each["name"] == blockstep_model.engine)
    size = sum((model / file).stat().st_size for file in [*files, manifest["tokenizer"]["file"], "manifest.json"])
    return LoadedProgram(
        predict, {**list_installed("blockstep", "onnxruntime"), WEIGHTS: ("", size)}, forwards=forwards
    )


def decode_one_by_one(model: Any, words: Sequence[str]) -> tuple[list[str], int]:
    """Returns the answers to words and the sum of their forward passes. model: a `blockstep.Model`."""
    answers = [model.generate(word) for word in words]
    return [answer.text for answer in answers], sum(answer.result.forwards for answer in answers)


def decode_in_batch(model: Any, batch: Any, words: Sequence[str]) -> tuple[list[str], int]:
    """Returns the answers to words and the forward passes of the batch that they share. Raises any answer's error."""
    numbers = [batch.add(model.request(word)) for word in words]
    texts: dict[int, str] = {}
    passes = 0
    while batch.busy:
        outcome = batch.step()
        for error in outcome.failed.values():
            raise error
        passes += not outcome.steps or any(step.slot >= 0 for step in outcome.steps)
        for step in outcome.steps:
            if (result := step.result) is not None:
                ids = result.token_ids[:-1] if result.finish == "eos" else result.token_ids
                texts[step.row] = model.tokenizer.decode(ids)
    return [texts[number] for number in numbers], passes


def g2p_en(model: Path | None) -> LoadedProgram:
    """Loads the network of g2p-en, with an empty dictionary: the real one would have to be downloaded."""
    nltk = import_module("nltk")
    nltk.download = lambda *names, **options: False
    nltk.data.find = lambda *names, **options: None
    import_module("nltk.corpus").cmudict = SimpleNamespace(dict=dict)  # type: ignore[attr-defined]
    network = import_module("g2p_en").G2p()
    return LoadedProgram(lambda words: [" ".join(network.predict(word)) for word in words], list_installed("g2p-en"))


def phonetisaurus(model: Path | None) -> LoadedProgram:
    """Prepares the decoder of Phonetisaurus, with a model that was trained here, as the package's `predict` does."""
    PROCESSES.environment = import_module("phonetisaurus").guess_environment()
    command = shutil.which("phonetisaurus-g2pfst", path=PROCESSES.environment["PATH"])
    settings = ["--nbest=1", "--beam=10000", "--thresh=99", "--accumulate=false", "--pmass=0.0", "--nlog_probs=true"]

    def predict(words: Sequence[str]) -> list[str]:
        with tempfile.NamedTemporaryFile("w") as word_list:
            word_list.write("".join(f"{word}\n" for word in words))
            word_list.flush()
            lines = PROCESSES.run([str(command), f"--model={model}", *settings, f"--wordlist={word_list.name}"])
        # a line has a word, its score and its phonemes; a word that cannot be aligned has no line
        columns = [line.split("\t") for line in lines if line.count("\t") == 2]
        by_word = {word: phonemes for word, _, phonemes in columns}
        return [by_word.get(word, "") for word in words]

    assert model is not None
    parts = {**list_installed("phonetisaurus"), WEIGHTS: ("", model.stat().st_size)}
    return LoadedProgram(predict, parts, batch=True, process=True)


def g2p2(model: Path | None) -> LoadedProgram:
    """Loads the English model of g2p2 from its package of Germanic languages."""
    file = distribution("g2p2-group-germanic").locate_file("g2p2_group_germanic/en.g2p.xz")
    network = import_module("g2p2").Model.from_bytes(lzma.decompress(Path(str(file)).read_bytes()))
    return LoadedProgram(network.phonemize_many, list_installed("g2p2", "g2p2-group-germanic"), batch=True)


def gruut(model: Path | None) -> LoadedProgram:
    """Loads the conditional random field of gruut's English data; gruut's lexicon is not looked up."""
    folder = Path(str(distribution("gruut-lang-en").locate_file("gruut_lang_en")))
    tag = import_module("gruut.g2p").GraphemesToPhonemes(folder / "g2p" / "model.crf")

    def count_known(words: Sequence[str]) -> int:
        lexicon = sqlite3.connect(f"file:{folder}/lexicon.db?mode=ro", uri=True)
        return len({*words} & {word for (word,) in lexicon.execute("SELECT word FROM word_phonemes")})

    return LoadedProgram(
        lambda words: [" ".join(tag(word)) for word in words], list_installed("gruut"), count_known=count_known
    )


def espeak_ng(model: Path | None) -> LoadedProgram:
    """Prepares espeak-ng, which has rules and a lexicon; each call starts it, and it reads a word per line."""
    if not (command := shutil.which("espeak-ng")):
        raise ModuleNotFoundError("no program espeak-ng")
    lines = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version} ${Installed-Size}\n", *DEBIAN], capture_output=True, text=True
    ).stdout.split("\n")
    parts = {name: (version, 1024 * int(size)) for name, version, size in (line.split() for line in lines if line)}

    def predict(words: Sequence[str]) -> list[str]:
        return PROCESSES.run([command, "-q", "-v", "en-us", "--ipa"], "".join(f"{word}\n" for word in words))

    return LoadedProgram(predict, parts, batch=True, process=True)


LOADERS: dict[str, Callable[[Path | None], LoadedProgram]] = {
    each.__name__.replace("_", "-"): each for each in (blockstep, g2p_en, phonetisaurus, g2p2, gruut, espeak_ng)
}


def list_installed(*names: str) -> dict[str, tuple[str, int]]:
    """Returns versions and bytes on disk of distributions and all their dependencies, by name."""
    sizes: dict[str, tuple[str, int]] = {}
    queue = [*names]
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in sizes:
            continue
        try:
            part = distribution(name)
        except PackageNotFoundError:
            if name in names:
                raise
            continue  # needed on other systems or by other Pythons
        sizes[name] = (part.version, count_bytes(part))
        queue += [re.split(r"[^\w.-]", needed)[0] for needed in part.requires or () if "extra ==" not in needed]
    return sizes


def count_bytes(part: Distribution) -> int:
    """Returns the bytes of a distribution's files, compiled ones included."""
    paths = [Path(str(file.locate())) for file in part.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def report(
    name: str, words: Sequence[str], model: Path | None, calls: int, engine: str | None, together: int = 1
) -> dict[str, Any]:
    """Loads a program, runs it on all words, and returns the report.

    If the program takes many words at once, it also runs on the first `calls` words one by one.
    """
    load_start = time.perf_counter()
    program = LOADERS[name](model) if engine is None else blockstep(model, engine, together)
    start = time.perf_counter()
    answers = program.predict(words)
    per_second, forwards = len(words) / (time.perf_counter() - start), program.forwards.copy()
    per_second_batch = per_second if program.batch else None
    if program.batch:
        calls_start = time.perf_counter()
        for word in words[:calls]:
            program.predict([word])
        per_second = calls / (time.perf_counter() - calls_start)
    if len(answers) != len(words):
        raise RuntimeError(f"{name} answered {len(answers)} times to {len(words)} words")
    return {
        "answers": answers,
        "load_seconds": start - load_start,
        "words_per_second": per_second,
        "words_per_second_batch": per_second_batch,
        "program_per_call": program.process,
        "peak_mb": PROCESSES.peak_mb if program.process else read_peak_mb(),
        "packages": {part: {"version": version, "bytes": size} for part, (version, size) in program.packages.items()},
        "forwards": sum(forwards) / len(forwards) if forwards else None,
        "known": program.count_known(words) if program.count_known else None,
        "python": sys.version.split()[0],
    }


def main() -> int:
    """Prints the report and returns 0; if the program is not installed, prints one line and returns 3."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("name", choices=LOADERS, help="program to run")
    p.add_argument("--model", type=Path, help="model file that the program loads (default: none)")
    p.add_argument("--calls", type=int, default=200, help="words that are timed one by one (default: 200)")
    p.add_argument("--engine", help="engine of our bundle, which --model then names (default: none)")
    p.add_argument("--together", type=int, default=1, help="words that our bundle decodes at once (default: 1)")
    args = p.parse_args()
    words = sys.stdin.read().splitlines()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    try:
        values = report(args.name, words, args.model, args.calls, args.engine, args.together)
    except (ImportError, PackageNotFoundError) as error:
        print(f"not installed: {error}", file=sys.stderr)
        return 3
    json.dump(values, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
