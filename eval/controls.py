"""Rows against routes that are not neural, beside the ten of every table: named in `evaluation.controls`.

Both are floors, so that the claim must beat them as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eeg2speech.batch import Batch
from eeg2speech.data.channels import eye_channels
from eeg2speech.errors import UserError
from eval.systems import BATCH_SIZE, EEG, Bench, System


class Shifted(EEG):
    """A circular shift keeps all that a recording is, its drifts, rhythms and artefacts, and only parts it from the
    speech; unlike `shuffled`, whose windows begin with a stimulus as well, it also breaks what is locked to onsets."""

    name, role = "shifted", "floor"
    description = "the EEG of the same recording, shifted round in time: does it matter when it was recorded?"

    def heard(self, bench: Bench) -> Iterator[Batch]:
        starts = shifted_starts(bench)
        for i in range(0, len(starts), BATCH_SIZE):
            yield bench.trained.data.batch(bench.windows[i : i + BATCH_SIZE], starts[i : i + BATCH_SIZE])


def shifted_starts(bench: Bench) -> np.ndarray:
    """(n,) first samples of the test windows after each recording was shifted by a quarter to three quarters of it.

    Raises UserError where a recording is too short for a window to move off itself.
    """
    data = bench.trained.data
    starts, recordings = data.starts(bench.windows), data.windows["recording"].to_numpy()[bench.windows]
    moved = np.empty_like(starts)
    for number, name in enumerate(sorted(set(recordings))):
        length = data.eeg[name].shape[1] - data.n_times + 1
        if length < 4 * data.n_times:
            raise UserError(
                f"recording {name} is too short to be shifted: four windows are needed; leave shifted out of "
                "evaluation.controls"
            )
        shift = int(np.random.default_rng([bench.seed, 2, number]).integers(length // 4, 3 * length // 4))
        rows = recordings == name
        moved[rows] = (starts[rows] + shift) % length
    return moved


class Eyes(EEG):
    """Listeners move their eyes and blink with speech, and every electrode sees it. The encoder is the one trained on
    all channels; `preprocessing.channels: eyes` trains one on these alone."""

    name, role = "eyes", "floor"
    description = "the true EEG of the channels at the eyes alone, the others missing: is it the brain?"

    def no_sound(self, bench: Bench) -> str | None:
        return super().no_sound(bench) or _without_eyes(bench)

    def estimate(self, bench: Bench) -> Tensor | None:
        return None if _without_eyes(bench) else super().estimate(bench)

    def heard(self, bench: Bench) -> Iterator[Batch]:
        data = bench.trained.data
        for batch in super().heard(bench):
            eyes = torch.zeros(batch.eeg.shape[:2], dtype=torch.bool)
            for kept, positions in zip(eyes, batch.positions, strict=True):
                kept[eye_channels(data.ch_names, positions.numpy())] = True
            missing = ~eyes[..., None]
            eeg, positions = batch.eeg.masked_fill(missing, 0.0), batch.positions.masked_fill(missing, torch.nan)
            yield replace(batch, eeg=eeg, positions=positions)


def _without_eyes(bench: Bench) -> str | None:
    """Which recording has no channel at the eyes, in words; None where all have."""
    data = bench.trained.data
    for name in sorted(set(data.windows["recording"].to_numpy()[bench.windows])):
        if not eye_channels(data.ch_names, data.recording_positions[name]):
            return f"recording {name} has no channel named EOG and none of the sites nearest to the eyes"
    return None


CONTROLS: dict[str, System] = {system.name: system for system in (Shifted(), Eyes())}
