"""A study of Brennan & Hale's size, written in their format, read and served by a process of its own.

`python -m benchmarks.scale ROOT WORK CORES` reads what `write` has written and prints JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.sizes import ROOT, StudySize

DISTINCT = 3
"""So many listeners are made up, and the others are copies of their files: compressing noise takes long."""
WORDS_PER_SOUND = 177
SERVE_S = 4.0
BATCHES = (64, 256)


def write(root: Path, size: StudySize) -> None:
    """FieldTrip `.mat` (v5, compressed), proc files, wavs at 44.1 kHz and a word table."""
    from studies_fixture import AliceFixture

    sound_s = size.minutes * 60 / 12
    alice = AliceFixture(root, table=_words(sound_s), durations_s=(sound_s,) * 12, rate=44_100)
    names = [f"S{number:02d}" for number in range(1, size.subjects + 1)]
    for number, name in enumerate(names):
        if number < DISTINCT:
            alice.add(name, n_channels=size.channels, compressed=True)
            continue
        for folder in ("", "proc"):
            shutil.copy(root / folder / f"{names[number % DISTINCT]}.mat", root / folder / f"{name}.mat")


def _words(sound_s: float) -> pd.DataFrame:
    """As the story's: 177 words a minute, sentences of 25."""
    spacing = (sound_s - 1.0) / WORDS_PER_SOUND
    rows = [
        (f"w{k % 97}", k // WORDS_PER_SOUND + 1, 0.2 + spacing * (k % WORDS_PER_SOUND), k + 1, 1 + k // 25)
        for k in range(12 * WORDS_PER_SOUND)
    ]
    table = pd.DataFrame(rows, columns=["Word", "Segment", "onset", "Order", "Sentence"])
    return table.assign(offset=table["onset"] + 0.8 * spacing)


def apart(root: Path, work: Path, cores: int) -> dict[str, Any]:
    """`run` in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.scale", str(root), str(work), str(cores)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run(root: Path, work: Path, cores: int) -> dict[str, Any]:
    """Seconds and memory of preparing the study from its files, then windows a second from the warm cache."""
    import torch

    from eeg2speech import environment
    from eeg2speech.config import load
    from eeg2speech.data.loader import StudyData

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    sets = [f"study.root={root}", "study.subjects=all", "splits.strict=false"]
    config = load(ROOT / "configs" / "brennan2019.yaml", sets, "scale")
    parts = (config.preprocessing, config.windows, config.splits)
    begun, worked = time.monotonic(), time.process_time()
    data = StudyData.prepare(config.study.build(), work / "study", *parts, work / "cache")
    found = {
        "prepare_s": time.monotonic() - begun,
        "prepare_cpu_s": time.process_time() - worked,
        "prepare_peak_gb": (environment.peak_memory_gib() or 0.0) * 2**30 / 1e9,
        "recordings": len(data.eeg),
        "windows": len(data.windows),
    }
    rows, rng = data.indices("train"), np.random.default_rng(0)
    for start in range(0, len(rows), 256):
        data.batch(rows[start : start + 256])
    for size in BATCHES:
        served, begun, worked = 0, time.monotonic(), time.process_time()
        while time.monotonic() - begun < SERVE_S:
            data.batch(rng.choice(rows, size))
            served += size
        found[f"windows_per_s_{size}"] = served / (time.monotonic() - begun)
        found[f"windows_per_cpu_s_{size}"] = served / (time.process_time() - worked)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found["anonymous_gb"] = next(int(line.split()[1]) * 1024 / 1e9 for line in status if line.startswith("RssAnon"))
    return found


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
