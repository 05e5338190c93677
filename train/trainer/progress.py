"""Reports a training run's progress: throughput, the log `<out>.log.jsonl`, and TensorBoard's curves."""

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
ENTRY = re.compile(r'\{"step": (\d+), .*\}\n')  # a complete line of the log
TAGS = {"norm": "gradient_norm", "rate": "learning_rate"}  # a figure's name in the log: its name in TensorBoard
NOT_PLOTTED = ("step", "seconds", "seconds_left")  # keys of a log entry; TensorBoard has steps and times of its own


class Pace:
    """Measures a run's throughput, and how long the remaining updates will take."""

    def __init__(self) -> None:
        # By update: seconds by the clock at its end, and tokens since the start.
        self._marks = deque([(time.perf_counter(), 0.0)], maxlen=WINDOW + 1)
        self._start = self._marks[0][0]

    def count(self, tokens: float) -> None:
        """Records the end of an update, in which all processes together saw `tokens` tokens."""
        self._marks.append((time.perf_counter(), self._marks[-1][1] + tokens))

    def compute_tokens_per_second(self) -> float:
        """Returns the throughput over the last WINDOW updates, in tokens per second."""
        (first_seconds, first_tokens), (last_seconds, last_tokens) = self._marks[0], self._marks[-1]
        return round((last_tokens - first_tokens) / max(last_seconds - first_seconds, 1e-9), 1)

    def report(self, updates_left: int) -> dict[str, float]:
        """Returns figures for the log: tokens per second, and the seconds that the remaining updates will take."""
        seconds_per_update = (self._marks[-1][0] - self._marks[0][0]) / max(len(self._marks) - 1, 1)
        seconds_left = round(updates_left * seconds_per_update, 1)
        return {"tokens_per_second": self.compute_tokens_per_second(), "seconds_left": seconds_left}

    def compute_mean(self) -> float:
        """Returns the throughput since the start, in tokens per second."""
        seconds, tokens = self._marks[-1]
        return round(tokens / max(seconds - self._start, 1e-9), 1)


def format_postfix(figures: Mapping[str, float], pace: Pace) -> dict[str, str]:
    """Returns the texts that the progress bar shows next to the time left."""
    texts = {name: f"{value:.3f}" for name, value in figures.items()}
    return {**texts, "tokens/s": f"{pace.compute_tokens_per_second():.0f}"}


class Log:
    """Writes JSON lines and TensorBoard's curves; only the first process writes.

    A line's `seconds` are those since the run was started or last resumed.
    """

    def __init__(self, path: Path, tensorboard: Path | None, first: int) -> None:
        """Opens the log; a resumed run drops the updates that it will log again.

        first: the update that the run resumes from, 0 at its start. tensorboard: the folder of its curves, None for no
        curves.
        """
        self.path, self._start = path, time.perf_counter()
        self.board: Any = None
        if distributed.get_rank():
            return
        text = "".join(_read_log(path, first))
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        if tensorboard is not None:
            self.board = import_board_class()(str(tensorboard), purge_step=first + 1)  # hides what is logged again

    def add(self, entry: dict[str, float]) -> None:
        """Logs the figures of an update, whose number is `step`. Raises UserError if they cannot be written."""
        if distributed.get_rank():
            return
        seconds = round(time.perf_counter() - self._start, 1)
        # JSON has no NaN, which a share of nothing is.
        json_entry = {name: value if math.isfinite(value) else None for name, value in entry.items()}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({**json_entry, "seconds": seconds}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); mend that to go on") from None
        if self.board is not None:
            for name, value in entry.items():
                if name not in NOT_PLOTTED:
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
    """Returns a log's lines up to the update `first`, without incomplete ones, which a full disk leaves.

    Raises UserError if the log cannot be read.
    """
    if not first or not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a log to continue ({error}); delete it to go on without") from None
    return [line for line in lines if (match := ENTRY.fullmatch(line)) and int(match[1]) <= first]
