"""The metrics log of a training stage: JSON lines to read back, TensorBoard to look at."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

from eeg2speech.files import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a stage's log, oldest first: `step`, and values named `train/..` or `valid/..`."""
    path = folder / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the process ended while it wrote this line; no checkpoint is as young as that
    return rows


def remove_metrics(folder: Path) -> None:
    (folder / METRICS).unlink(missing_ok=True)
    shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)


class MetricsLog:
    """Rows of `metrics.jsonl` and the same values on TensorBoard; `enabled` on the first process alone."""

    def __init__(self, folder: Path, *, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled
        self.purge_step: int | None = None
        self.board: SummaryWriter | None = None

    def keep_until(self, step: int) -> None:
        """Drops the rows younger than a checkpoint, so that resumed training writes none twice."""
        if self.enabled:
            kept = [row for row in read_metrics(self.folder) if row["step"] <= step]
            write_atomically(self.folder / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
            self.purge_step = step + 1

    def __enter__(self) -> Self:
        if self.enabled:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=self.purge_step)
        return self

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a row; `step` counts the steps completed."""
        if self.board is None:
            return
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def __exit__(self, *exception: object) -> None:
        if self.board is not None:
            self.board.close()


def progress_bar(stage: str, steps: int, done: int, shown: bool) -> tqdm:
    """A line that redraws itself on a terminal, a line now and then in a log file."""
    every_s = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=steps, initial=done, desc=stage, unit="step", mininterval=every_s, disable=not shown)
