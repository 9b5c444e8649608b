"""What a plain linear decoder reads from the simulated EEG, over a ladder of SNRs.

Published before any network is trained: where even the right lags and a closed form cannot tell the
bands of the speech apart, no result at that SNR can mean anything; where they can at -inf, the
simulation leaks. The decoder is the backward model of Crosse et al., Front. Hum. Neurosci. 10:604
(2016): ridge regression from the EEG 0 to 400 ms after a moment to the 16 band levels of that moment.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from eeg2speech import environment
from eeg2speech.data import matrix, simulation, speech_corpus
from eeg2speech.data.forward_model import N_BANDS, TRF_DURATION_S
from eeg2speech.data.simulation import Session
from eeg2speech.errors import UserError
from eeg2speech.files import sha256, write_atomically

LEVELS_DB = (-math.inf, -20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 20.0)
DECIMATION = 2
"""The decoder works at 64 Hz: levels change from syllable to syllable, an octave below that suffices."""
SHARES = {"fit": 0.65, "choose": 0.15, "test": 0.2}
"""Of the sentences, in the order heard: to fit on, to choose the penalty on, to test on."""
MIN_SENTENCES = 20
PENALTIES = 10.0 ** np.arange(-6.0, 2.5, 0.5)
"""Candidate ridge penalties, in units of the mean eigenvalue of the predictors' covariance."""
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Frames:
    """The frames of sentences, one sentence after the other; C channels, L lags."""

    eeg: np.ndarray
    """(n, C * L) float32: the EEG at and after each frame."""
    levels: np.ndarray
    """(n, N_BANDS): what was heard."""
    sentence: np.ndarray
    """(n,) int, ascending: the place of the frame's sentence in the order heard."""

    def part(self, start: int, stop: int) -> Frames:
        """Of the sentences from `start` to before `stop`."""
        rows = slice(*np.searchsorted(self.sentence, (start, stop)))
        return Frames(self.eeg[rows], self.levels[rows], self.sentence[rows])


@dataclass(frozen=True)
class Score:
    """A correlation between decoded and true levels, averaged over bands, with its 95 % interval."""

    r: float
    low: float
    high: float


def climb(n_sentences: int, seed: int, levels_db: Sequence[float] = LEVELS_DB) -> pd.DataFrame:
    """A row per SNR for the first listener of the matrix study, who hears `n_sentences` in one session.

    Columns: snr_db; penalty, the chosen one of PENALTIES; band_r, band_low, band_high: the mean over
    bands of the correlation between decoded and true level; contrast_r, contrast_low, contrast_high:
    the same after the mean over bands is taken off each frame of both, which is 0 where a decoder
    knows only how loud the speech is. The background is the same on every rung.
    """
    from tqdm import tqdm

    if n_sentences < MIN_SENTENCES or seed < 0:
        raise UserError(f"--sentences must be at least {MIN_SENTENCES} and --seed at least 0")
    sfreq = matrix.MatrixStudyConfig(n_sentences=n_sentences, seed=seed).sfreq
    with matrix.threads() as pool, tempfile.TemporaryDirectory() as folder:
        texts = speech_corpus.sentences(n_sentences, seed)
        table = speech_corpus.synthesise(texts, seed, Path(folder), pool)
        features = speech_corpus.features(table, Path(folder), sfreq, pool)
        (session,) = simulation.listen(features, matrix.sensor_positions(), sfreq, 1, seed, 0, pool)
    rows = []
    for level in tqdm(levels_db, "ladder", leave=False, disable=None):
        eeg = session.eeg(simulation.gain(level, [session]))
        penalty, band, contrast = decode(cut(eeg, session, features, sfreq), n_sentences)
        row: dict[str, float] = {"snr_db": level, "penalty": penalty}
        for name, score in (("band", band), ("contrast", contrast)):
            row |= {f"{name}_r": score.r, f"{name}_low": score.low, f"{name}_high": score.high}
        rows.append(row)
    return pd.DataFrame(rows)


def cut(eeg: np.ndarray, session: Session, features: Sequence[np.ndarray], sfreq: float) -> Frames:
    """The frames with sound of every sentence, in the order heard; `eeg` (C, T) at `sfreq`."""
    from scipy.signal import resample_poly

    slow = resample_poly(eeg, 1, DECIMATION, axis=1)
    slow = ((slow - slow.mean(axis=1, keepdims=True)) / slow.std(axis=1, keepdims=True)).astype(np.float32)
    lags = sliding_window_view(slow, int(TRF_DURATION_S * sfreq / DECIMATION) + 1, axis=1)
    frames, levels, sentence = [], [], []
    for place, (which, onset) in enumerate(zip(session.sentences, session.onsets, strict=True)):
        first = -(-onset // DECIMATION)
        heard = features[which][:N_BANDS, first * DECIMATION - onset :: DECIMATION].T
        frames.append(np.arange(first, first + len(heard)))
        levels.append(heard)
        sentence.append(np.full(len(heard), place))
    predictors = lags[:, np.concatenate(frames)].transpose(1, 0, 2).reshape(-1, lags.shape[0] * lags.shape[2])
    return Frames(predictors, np.concatenate(levels).astype(np.float64), np.concatenate(sentence))


def decode(frames: Frames, n_sentences: int) -> tuple[float, Score, Score]:
    """The chosen penalty, and on the test sentences the scores of the bands and of their contrast."""
    first, second = (round(n_sentences * share) for share in (SHARES["fit"], SHARES["fit"] + SHARES["choose"]))
    fit, choose, test = (frames.part(a, b) for a, b in ((0, first), (first, second), (second, n_sentences)))
    mean, scale = fit.levels.mean(axis=0), fit.levels.std(axis=0)
    weights = ridge(fit.eeg, (fit.levels - mean) / scale, PENALTIES)
    truth = (choose.levels - mean) / scale
    chosen = int(np.argmax([correlation(truth, choose.eeg @ w, choose.sentence).r for w in weights]))
    truth, estimate = (test.levels - mean) / scale, test.eeg @ weights[chosen]
    band = correlation(truth, estimate, test.sentence)
    truth, estimate = (x - x.mean(axis=1, keepdims=True) for x in (truth, estimate))
    contrast = correlation(truth, estimate, test.sentence)
    return float(PENALTIES[chosen]), band, contrast


def ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """(len(penalties), p, q): minimisers of |y - x w|^2 / n + penalty * m |w|^2, all from one eigendecomposition.

    `x` (n, p), `y` (n, q), both about centred; m is the mean eigenvalue of x'x / n.
    """
    from scipy.linalg import eigh

    joint = np.zeros((x.shape[1] + y.shape[1],) * 2)
    for start in range(0, len(x), 4096):  # in double precision, without a second copy of everything
        rows = slice(start, start + 4096)
        block = np.hstack([x[rows], y[rows]], dtype=np.float64)
        joint += block.T @ block / len(x)
    eigenvalues, axes = eigh(joint[: x.shape[1], : x.shape[1]])
    along = axes.T @ joint[: x.shape[1], x.shape[1] :]
    shrunk = eigenvalues + penalties[:, None] * eigenvalues.mean()
    return (axes @ (along / shrunk[:, :, None])).astype(x.dtype)


def correlation(truth: np.ndarray, estimate: np.ndarray, sentence: np.ndarray) -> Score:
    """The mean over columns of the correlation over all rows; `sentence` (n,) ascending is resampled."""
    starts = np.flatnonzero(np.diff(sentence, prepend=-1))
    x, y = truth.astype(np.float64), estimate.astype(np.float64)
    moments = np.stack([np.add.reduceat(m, starts) for m in (np.ones_like(x), x, y, x * x, y * y, x * y)])

    def mean_r(counts: np.ndarray) -> np.ndarray:
        """(..., sentences) -> (...): where each sentence is taken so many times."""
        n, sx, sy, sxx, syy, sxy = np.moveaxis(np.tensordot(counts, moments, axes=(-1, 1)), -2, 0)
        return np.mean((n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2)), axis=-1)

    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(starts), np.full(len(starts), 1 / len(starts)), size=N_RESAMPLES)
    low, high = np.percentile(mean_r(counts), (2.5, 97.5))
    return Score(float(mean_r(np.ones(len(starts)))), float(low), float(high))


def publish(folder: Path, n_sentences: int, seed: int) -> pd.DataFrame:
    """Climbs, and writes `ridge.csv` and, with what it was made of, `ridge.json` into `folder`."""
    start = time.monotonic()
    table = climb(n_sentences, seed)
    write_atomically(folder / "ridge.csv", table.to_csv(index=False, float_format="%.4g"))
    study = matrix.MatrixStudyConfig(n_sentences=n_sentences, seed=seed, n_subjects=1, recordings_per_subject=1)
    provenance = {
        "study": study.model_dump(mode="json", exclude={"snr_db"}) | {"format": matrix.FORMAT},
        "decoder": {
            "sfreq_hz": study.sfreq / DECIMATION,
            "lags_s": [0.0, TRF_DURATION_S],
            "bands": N_BANDS,
            "share_of_sentences": SHARES,
            "interval": f"95 %, percentile bootstrap over test sentences, {N_RESAMPLES} resamples",
        },
        "wall_s": round(time.monotonic() - start, 1),
        "environment": environment.describe(),
        "sha256": {"ridge.csv": sha256(folder / "ridge.csv")},
    }
    write_atomically(folder / "ridge.json", json.dumps(provenance, indent=1))
    return table
