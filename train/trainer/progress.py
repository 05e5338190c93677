"""Reports a training run's progress: its throughput, `<out>.log.jsonl`, and TensorBoard's curves."""

from __future__ import annotations

import json
import math
import re
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from train import distributed
from train.storage.output_files import replace_file

WINDOW = 50  # updates over which throughput is measured
ENTRY = re.compile(r'\{"step": (\d+), .*\}\n')  # a whole line of the log
TAGS = {"norm": "gradient_norm", "rate": "learning_rate"}  # names in the log, and longer ones for TensorBoard
LEFT_OUT = ("step", "seconds", "seconds_left")  # keys of a log entry that are not plotted: TensorBoard has its own


class Pace:
    """Measures throughput over the last WINDOW updates, and how long the remaining updates will take."""

    def __init__(self) -> None:
        self._marks = deque([(time.perf_counter(), 0.0)], maxlen=WINDOW + 1)  # seconds, tokens since the start
        self._started = self._marks[0][0]

    def count(self, tokens: float) -> None:
        """Records the end of an update, and the tokens that all processes saw in it."""
        self._marks.append((time.perf_counter(), self._marks[-1][1] + tokens))

    def compute_tokens_per_second(self) -> float:
        """Returns the throughput over the last WINDOW updates, in tokens per second."""
        (began, before), (now, seen) = self._marks[0], self._marks[-1]
        return round((seen - before) / max(now - began, 1e-9), 1)

    def report(self, left: int) -> dict[str, float]:
        """Returns figures for the log: tokens per second, and the seconds that the `left` remaining updates take."""
        each = (self._marks[-1][0] - self._marks[0][0]) / max(len(self._marks) - 1, 1)
        return {"tokens_per_second": self.compute_tokens_per_second(), "seconds_left": round(left * each, 1)}

    def compute_mean(self) -> float:
        """Returns the tokens per second since the start."""
        now, seen = self._marks[-1]
        return round(seen / max(now - self._started, 1e-9), 1)


def format_postfix(figures: Mapping[str, float], pace: Pace) -> dict[str, str]:
    """Returns what the progress bar shows next to the time left."""
    shown = {name: f"{value:.3f}" for name, value in figures.items()}
    return {**shown, "tokens/s": f"{pace.compute_tokens_per_second():.0f}"}


class Log:
    """Writes JSON lines and TensorBoard's curves in the first process; a resumed run drops what it will log again.

    A line's `seconds` are those since the run was started or last resumed.
    """

    def __init__(self, path: Path, tensorboard: Path | None, first: int) -> None:
        """Opens the log. first: the update that the run resumes from. tensorboard: the folder of its curves."""
        self.path, self.started = path, time.perf_counter()
        self.board: Any = None
        if distributed.get_rank():
            return
        kept = "".join(_read_log(path, first))
        replace_file(path, lambda temporary: temporary.write_text(kept, encoding="utf-8"))
        if tensorboard is not None:
            self.board = import_board_class()(str(tensorboard), purge_step=first + 1)  # hides what will be logged again

    def add(self, entry: dict[str, float]) -> None:
        """Logs the figures of an update, whose number is `step`. Raises UserError if they cannot be written."""
        if distributed.get_rank():
            return
        seconds = round(time.perf_counter() - self.started, 1)
        # a share of nothing is not a number, and JSON has none such
        written = {name: value if math.isfinite(value) else None for name, value in entry.items()}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**written, "seconds": seconds}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); mend that to go on") from None
        if self.board is not None:
            for name, value in entry.items():
                if name not in LEFT_OUT:
                    self.board.add_scalar(TAGS.get(name, name), value, int(entry["step"]))
            self.board.flush()

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self.board is not None:
            self.board.close()


def import_board_class() -> Any:
    """Returns torch's writer of TensorBoard's files. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard, which is not installed; pip install tensorboard"
        ) from None
    return SummaryWriter


def _read_log(path: Path, first: int) -> list[str]:
    """Returns a log's lines up to the update that a run resumes from, without incomplete ones, as from a full disk.

    Raises UserError if the log cannot be read.
    """
    if not first or not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a log to continue ({error}); delete it to go on without") from None
    return [line for line in lines if (whole := ENTRY.fullmatch(line)) and int(whole[1]) <= first]
