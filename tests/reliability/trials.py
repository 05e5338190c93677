"""One fault each, upon a command in its folder: what must stand there then, and that running it again mends all."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reliability import small_disk
from reliability.jobs import Job
from reliability.watch import Fault, Outcome, killed_after, watched

LONG = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class Ground:
    """A command tried once, undisturbed.

    before: its folder as an earlier run left it; work: where it is tried; older, newer: what stands of its artefacts
    before and after; names: of all files afterwards; changes: what it asked the system for; seconds: it took.
    """

    job: Job
    before: Path
    work: Path
    older: dict[str, str]
    newer: dict[str, str]
    names: list[str]
    changes: tuple[str, ...]
    seconds: float

    def main(self) -> int:
        return self.job.main(self.work)

    def renew(self) -> None:
        """Makes the folder what it was before."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.before, self.work)


def survey(job: Job, root: Path) -> Ground:
    """Runs the command undisturbed."""
    before, work = root / "before", root / "work"
    before.mkdir(parents=True)
    made = killed_after(lambda: 0 if job.before(before) in (0, None) else 1, LONG)
    expect(made.code == 0, job, "what comes before it", made)
    shutil.copytree(before, work)
    older, started = job.whole(work), time.monotonic()
    done = watched(lambda: job.main(work), work, seconds=LONG)
    seconds = time.monotonic() - started
    expect(done.code == 0, job, "undisturbed", done)
    return Ground(job, before, work, older, job.whole(work), standing(work), done.changes, seconds)


def killed(ground: Ground, place: int) -> str:
    """Killed before the change of that number."""
    ground.renew()
    outcome = watched(ground.main, ground.work, Fault(place), LONG)
    expect(outcome.code == -signal.SIGKILL, ground.job, f"killed before change {place}", outcome)
    return settled(ground)


def killed_somewhere(ground: Ground, rng: random.Random) -> str:
    """Killed at a random moment of its time."""
    ground.renew()
    outcome = killed_after(ground.main, rng.uniform(0, ground.seconds))
    expect(outcome.code in (-signal.SIGKILL, 0), ground.job, "killed at a random moment", outcome)
    return settled(ground)


def refused(ground: Ground, error: int, place: int) -> str:
    """From that change on each fails that `error` can befall; a folder that is read-only stays as it was."""
    ground.renew()
    outcome = watched(ground.main, ground.work, Fault(place, error), LONG)
    what = f"{errno.errorcode[error]} from change {place} on"
    expect(outcome.code == 2 and one_line(outcome.err), ground.job, what, outcome)
    expect(error != errno.EROFS or standing(ground.work) == standing(ground.before), ground.job, what, outcome)
    expect(not litter(ground), ground.job, f"{what} leaves {litter(ground)}", outcome)
    return settled(ground)


def crammed(ground: Ground, free: int) -> str:
    """On a real file system with so many bytes left."""
    ground.renew()

    def inside() -> int:
        code = small_disk.with_room(ground.work, ground.before, free, ground.main)
        expect(not litter(ground), ground.job, f"{free} bytes left: {litter(ground)}", None)
        settled(ground)
        return code

    outcome = killed_after(inside, LONG)
    told = outcome.code == 0 or (outcome.code == 2 and one_line(outcome.err))
    expect(told, ground.job, f"{free} bytes left", outcome)
    return "there was room" if outcome.code == 0 else state(ground)


def settled(ground: Ground) -> str:
    """What stands there after a fault; the command run again has to end as if there had been none."""
    found = state(ground)
    again = killed_after(ground.main, LONG)
    same = again.code == 0 and ground.job.whole(ground.work) == ground.newer
    expect(same and standing(ground.work) == ground.names, ground.job, f"run again: {standing(ground.work)}", again)
    return found


def state(ground: Ground) -> str:
    """Which of its artefacts stand, each whole. Raises where one is damaged or missing."""
    found = ground.job.whole(ground.work)
    for name in ground.older.keys() | ground.newer.keys():
        known = (ground.older.get(name), ground.newer.get(name))
        expect(found.get(name) in known, ground.job, f"{name} is {found.get(name)}, of {known}", None)
    return "the newer whole" if found == ground.newer else "the older whole"


def litter(ground: Ground) -> list[str]:
    """Hidden files, as all are that are written before they are kept."""
    names = (path.relative_to(ground.work) for path in ground.work.rglob("*"))
    return sorted(str(name) for name in names if any(part.startswith(".") for part in name.parts))


def standing(folder: Path) -> list[str]:
    """Names of all that is in a folder, without hashes: TensorRT builds another engine each time."""
    return sorted(re.sub(r"-[0-9a-f]{8}\.", "-*.", str(path.relative_to(folder))) for path in folder.rglob("*"))


def one_line(err: str) -> bool:
    """Whether a refusal is the last line, behind progress bars alone."""
    told = [number for number, line in enumerate(err.splitlines(), start=1) if line.startswith("error: ")]
    return told == [len(err.splitlines())] and "Traceback" not in err


def expect(holds: bool, job: Job, what: str, outcome: Outcome | None) -> None:
    """Raises AssertionError with all that is known where something does not hold."""
    if not holds:
        raise AssertionError(f"{job.name}, {what}: {outcome}")


def together(one: Callable[[], int], other: Callable[[], int], later: float) -> tuple[int, int]:
    """The exit codes of both at the same time, the other one begun so many seconds later."""

    def both() -> int:
        process = os.fork()
        if process == 0:
            os._exit(one())
        time.sleep(later)
        code = other()
        return 10 * os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) + code

    outcome = killed_after(both, LONG)
    return divmod(outcome.code, 10)
