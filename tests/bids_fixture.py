"""BIDS folders in small: EEG in BrainVision files, MEG in FIF, events and sounds written by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pybv
import soundfile

SFREQ = 250.0
NAMES = ("Fz", "Cz", "Pz", "Oz")


def write_root(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "small", "BIDSVersion": "1.9.0"}))


def write_tsv(path: Path, *rows: dict[str, Any]) -> None:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["\t".join(keys), *("\t".join(str(row.get(key, "n/a")) for key in keys) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_sound(path: Path, duration_s: float, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.05 * np.random.default_rng(seed).standard_normal(round(duration_s * 16_000))
    soundfile.write(path, noise, 16_000)


def write_eeg(root: Path, subject: str, task: str, duration_s: float, *events: dict[str, Any]) -> np.ndarray:
    """(5, samples) in µV; the last channel is an EOG, as its channels.tsv says."""
    write_root(root)
    folder, stem = root / subject / "eeg", f"{subject}_task-{task}"
    folder.mkdir(parents=True, exist_ok=True)
    eeg = np.random.default_rng(len(events)).standard_normal((5, round(duration_s * SFREQ))).round(3)
    pybv.write_brainvision(
        data=eeg * 1e-6, sfreq=SFREQ, ch_names=[*NAMES, "VEOG"], fname_base=f"{stem}_eeg", folder_out=folder,
        events=np.zeros((0, 3), dtype=int), unit="µV", resolution=0.001, overwrite=True,
    )  # fmt: skip
    kinds = zip([*NAMES, "VEOG"], ["EEG"] * 4 + ["EOG"], strict=True)
    write_tsv(folder / f"{stem}_channels.tsv", *({"name": n, "type": kind, "units": "µV"} for n, kind in kinds))
    sidecar = {"TaskName": task, "SamplingFrequency": SFREQ, "RecordingDuration": duration_s, "PowerLineFrequency": 50}
    (folder / f"{stem}_eeg.json").write_text(json.dumps(sidecar))
    if events:
        write_tsv(folder / f"{stem}_events.tsv", *events)
    return eeg


def write_meg(root: Path, subject: str, session: str, task: str, duration_s: float, *events: dict[str, Any]) -> None:
    """Eight magnetometers on a sphere of 10 cm, and a reference far away."""
    write_root(root)
    folder = root / subject / f"ses-{session}" / "meg"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{subject}_ses-{session}_task-{task}"
    names = [f"MEG {k:03d}" for k in range(8)]
    info = mne.create_info([*names, "STI"], SFREQ, ["mag"] * 8 + ["stim"])
    rng = np.random.default_rng(0)
    for channel, direction in zip(info["chs"], rng.standard_normal((8, 3)), strict=False):
        channel["loc"][:3] = 0.1 * direction / np.linalg.norm(direction) + (0.0, 0.0, 0.04)
    raw = mne.io.RawArray(1e-13 * rng.standard_normal((9, round(duration_s * SFREQ))), info, verbose="error")
    raw.save(folder / f"{stem}_meg.fif", verbose="error", overwrite=True)
    (folder / f"{stem}_meg.json").write_text(json.dumps({"TaskName": task, "RecordingDuration": duration_s}))
    write_tsv(folder / f"{stem}_events.tsv", *events)
