"""Work that is killed, that a full disk or a read-only folder refuses, and that is done twice at once.

PYTHONPATH=.:tests:tests/support python tests/reliability/half_done.py SCALE [JOB ...]
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from reliability import jobs, small_disk, trials, watch
from reliability.section import Section
from tqdm import tqdm

TITLE = "Half-done work"
ROOT = Path(__file__).parents[2]
QUICK = ("directory", "collect", "distil")  # the others export, which takes seconds
KILLS = 100  # at random moments, over all commands
TWICE = 10  # two exports into one bundle
ROOMS = [4096 * pages for pages in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]  # bytes left on a disk
Row = tuple[str, int, str]


def run(scale: float) -> Section:
    """All of it at 1, a part below: exports from a tenth on, the richest of the others alone below a fiftieth.

    In an interpreter of its own, as its children are forked.

    Raises CalledProcessError where an artefact is lost, a re-run ends otherwise, or an error is not one line.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "support"))),
    }
    names = () if scale >= 0.1 else QUICK if scale >= 0.02 else QUICK[:1]
    words = [sys.executable, __file__, str(scale), *names]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return Section(TITLE, tuple((what, count, outcome) for what, count, outcome in rows))


def rows_of(scale: float, names: Sequence[str]) -> Iterator[Row]:
    """The rows of these commands, all by default."""
    torch.set_num_threads(1)  # what is forked has no other threads
    with tempfile.TemporaryDirectory() as made:
        root = Path(made).resolve()
        given = root / "given"
        given.mkdir()
        os.environ |= {"XDG_CACHE_HOME": str(root / "cache"), "TOKENIZERS_PARALLELISM": "false"}
        jobs.prepare(given)
        known = jobs.jobs(given)
        grounds = [trials.survey(known[name], root / name) for name in names or known]
        for ground in grounds:
            yield from faults(ground, scale)
        rng = random.Random(1)
        what = "all of them: kill -9 at a random moment"
        yield several(what, lambda i: trials.killed_somewhere(grounds[i % len(grounds)], rng), range(KILLS), scale)
        for ground in grounds:
            if ground.job.name == "export.onnx":
                twice = partial(at_once, ground, given / "student.pt", rng)
                yield several("two exports into one bundle at once", twice, range(TWICE), scale)


def faults(ground: trials.Ground, scale: float) -> Iterator[Row]:
    """Killed before every change; each write refused by a full disk, each fsync failing; a folder that is read-only."""
    name, kinds = ground.job.name, [change.split(maxsplit=1)[0] for change in ground.changes]
    every = range(len(kinds))
    yield several(f"{name}: killed before a change of the disk", partial(trials.killed, ground), every, scale)
    for error, what in ((errno.ENOSPC, "the disk full from a write on"), (errno.EIO, "fsync fails from one on")):
        met = [place for place in every if kinds[place] in watch.BEFALLS[error]]
        yield several(f"{name}: {what}", partial(trials.refused, ground, error), met, scale)
    yield several(f"{name}: a read-only folder", partial(trials.refused, ground, errno.EROFS), [0], 1)
    if small_disk.possible(ground.work):
        yield several(f"{name}: 0 to 128 KiB left of a tmpfs", partial(trials.crammed, ground), ROOMS, scale)


def at_once(ground: trials.Ground, ckpt: Path, rng: random.Random, _: int) -> str:
    """Two precisions exported into one bundle: who succeeds is in it, nothing else, and it is whole."""
    ground.renew()
    chosen = ("fp32", "fp16")
    one, other = (lambda p=p: jobs.export(ckpt, ground.work, "--precision", p) for p in chosen)
    codes = trials.together(one, other, rng.uniform(0, ground.seconds))
    made = jobs.bundle(ground.work)[jobs.BUNDLE]
    there = tuple(0 if f"ort-{p} " in made else 2 for p in chosen)
    trials.expect(codes == there and not trials.litter(ground), ground.job, f"twice at once: {codes}, {made}", None)
    return "both in it" if codes == (0, 0) else "one in it, the other refused"


def several(what: str, trial: Callable[[int], str], places: Sequence[int], scale: float) -> Row:
    """A row: the trial at a part of the places, evenly spread, and how often each thing came of it."""
    count = math.ceil(len(places) * scale)
    chosen = [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]
    found = Counter(trial(place) for place in tqdm(chosen, desc=what, leave=False))
    return what, count, ", ".join(f"{result} {times}" for result, times in sorted(found.items()))


if __name__ == "__main__":
    for row in rows_of(float(sys.argv[1]), sys.argv[2:]):
        print(json.dumps(row), flush=True)
