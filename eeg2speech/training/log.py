"""The metrics log of a training stage: JSON lines to read back, TensorBoard to look at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from eeg2speech.files import write_atomically

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
    """Goes on where a checkpoint stood: rows younger than `step` are dropped, so none is there twice."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / METRICS
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a row; `step` counts the steps completed."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.board.close()
