"""One process for very long: memory, answers, threads on one model, forks.

PYTHONPATH=.:tests:tests/support python tests/reliability/long_runs.py SCALE [LEAK]
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reliability.section import Section
from tqdm import tqdm

from runtime import Model, load
from runtime.errors import UserError

TITLE = "Long runs"
ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "samples" / "student.bundle"
GENERATIONS, THREADS, FORKS = 20_000, 8, 20
KINDS = 20  # different requests, asked in turn
FAIR = 2 << 20  # bytes that a process may grow by once every kind was asked twice
Row = tuple[str, int, str]


def run(scale: float, leak: int = 0) -> Section:
    """All of it at 1, a part below, in an interpreter of its own. leak: bytes lost a generation, to see the measure
    see them. Raises CalledProcessError where memory grows, an answer changes, or a child of a fork hangs.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "support"))),
    }
    words = [sys.executable, __file__, str(scale), str(leak)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return Section(TITLE, tuple((what, count, outcome) for what, count, outcome in rows))


def main(scale: float, leak: int) -> None:
    """Prints the rows."""
    model = load(BUNDLE, threads=1)
    asked = requests(model, random.Random(5))
    expected = [outcome(model, request) for request in asked]
    count = math.ceil(GENERATIONS * scale)
    for row in (
        generations(model, asked, expected, count, leak),
        threads(asked, expected, max(KINDS, count // 10)),
        forks(asked, expected, math.ceil(FORKS * scale)),
    ):
        print(json.dumps(row), flush=True)


def requests(model: Model, rng: random.Random) -> list[dict[str, Any]]:
    """Prompts and answers of many lengths, so of many shapes; every tenth does not fit and is refused."""
    made = []
    for kind in range(KINDS):
        prompt = [rng.randrange(3, model.contract.vocab) for _ in range(rng.choice((1, 15, 16, 17, 40, 90, 200)))]
        request = {"prompt": prompt, "max_new_tokens": rng.choice((1, 16, 17, 40)), "fused": rng.random() < 0.7}
        request |= rng.choice(({}, {"threshold": 0.5}, {"threshold": 0.9}, {"max_new_tokens": 9, "suffix": [40, 41]}))
        made.append(request if kind % 10 else {**request, "max_new_tokens": 10_000})
    return made


def outcome(model: Model, request: dict[str, Any]) -> object:
    """What a request gives, without its times."""
    try:
        answer = model.generate(**request)
    except UserError as error:
        return str(error)
    return answer.result.token_ids, answer.text, answer.result.finish, answer.result.steps, answer.result.forwards


def generations(model: Model, asked: list[dict[str, Any]], expected: list[object], count: int, leak: int) -> Row:
    """The requests in turn; after every answer a stream is begun and left.

    Python keeps up to 2,000 freed tuples of each short length, 3 MB in all here, until its next full collection.
    """
    lost, before = [], 0
    for turn in tqdm(range(2 * KINDS + count), desc="generations", leave=False):
        if turn % 200 == 0:
            gc.collect()
        if turn == 2 * KINDS:
            before = resident()
        kind = turn % KINDS
        assert outcome(model, asked[kind]) == expected[kind], f"generation {turn} differs"
        stream = model.steps(**asked[1])
        next(stream)
        stream.close()
        lost.append(b"x" * leak)
    grown = resident() - before
    assert grown <= FAIR, f"{count} generations grew the process by {grown} bytes"
    return (
        "generations in one process",
        count,
        f"each as the first of its kind; resident memory {grown / 1024:+.0f} KiB",
    )


def threads(asked: list[dict[str, Any]], expected: list[object], count: int) -> Row:
    """Threads that all ask one model are answered or refused as busy; each with a share of it is answered."""
    model = load(BUNDLE, threads=1)
    shares = [model.share() for _ in range(THREADS)]

    def ask(turn: int, which: Model) -> str:
        got = outcome(which, asked[turn % KINDS])
        return "as alone" if got == expected[turn % KINDS] else "busy" if "another answer" in str(got) else f"{got}"

    with ThreadPoolExecutor(THREADS) as pool:
        one = Counter(pool.map(lambda turn: ask(turn, model), range(count)))
        workers = pool.map(lambda w: [ask(t, shares[w]) for t in range(w, count, THREADS)], range(THREADS))
        own = Counter(told for part in workers for told in part)
    assert set(one) <= {"as alone", "busy"} and one["as alone"] and set(own) == {"as alone"}, (one, own)
    told = f"as alone {one['as alone']}, refused as busy {one['busy']}; with a share each, as alone {own.total()}"
    return f"requests of {THREADS} threads to one model", count, told


def forks(asked: list[dict[str, Any]], expected: list[object], count: int) -> Row:
    """A child of a fork is refused the parent's model, in the middle of an answer too; its own one answers."""
    model = load(BUNDLE, threads=2)  # the second thread is the engine's, which a child has not

    def child(turn: int) -> bool:
        told = (outcome(model, asked[1]), refusal(model.share))
        own = outcome(load(BUNDLE, threads=2), asked[turn % KINDS])
        return all("forked" in str(each) for each in told) and own == expected[turn % KINDS]

    for turn in range(count):
        stream = model.steps(**asked[1])
        next(stream)
        assert forked(lambda turn=turn: child(turn)), f"fork {turn}"
        stream.close()
        assert outcome(model, asked[2]) == expected[2]
    return "forks in the middle of an answer", count, "the child is refused the model, and answers with one of its own"


def forked(what: Callable[[], bool]) -> bool:
    """What a child of a fork says, within a minute."""
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        os._exit(0 if what() else 1)
    return os.waitpid(process, 0)[1] == 0


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "none"


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
