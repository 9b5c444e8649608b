"""How often the test set of a run folder was looked at, and by what."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from eeg2speech.errors import UserError
from eeg2speech.runs import RunFolder
from eval.results import RunResult

EVALUATIONS = "evaluations.jsonl"


def log_evaluation(folder: RunFolder, result: RunResult) -> None:
    """A line for every evaluation that came to its end: a test set that was looked at twice must not look fresh."""
    end, evaluation = result.endpoint, result.config["evaluation"]
    line = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "primary": end.metric,
        "gain": end.gain,
        "seed": evaluation["seed"],
        "max_stimuli": evaluation["max_stimuli"],
        "systems": [system.name for system in result.systems],
        "signature": result.signature,
    }
    with (folder.path / EVALUATIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of `log_evaluation`, in their order. Raises UserError where one cannot be read."""
    path = folder.path / EVALUATIONS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged: give the run another --name, or restore it") from error
