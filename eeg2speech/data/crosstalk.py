"""Sound that reached the EEG by wire: coherence of a channel with the waveform above what a brain follows.

An earphone, its cable or the stimulus computer couples the sound, or its rectified envelope, into the electrodes. A
decoder then reads the audio and not the brain. Such a route knows no upper frequency; the brain does: cortex follows
the envelope up to a few tens of Hz, and the frequency-following response to the voice's pitch, which does reach the
scalp above 50 Hz, is some hundred nanovolts (Skoe & Kraus, Ear Hear. 2010) under microvolts of EEG. So each channel
is compared above 50 Hz, whitened, with the waveform and with its magnitude at every lag within `MAX_LAG_S`. What
fails is a share of the channel's power that is both significant and above `BOUND`, more than that response can be.

The null needs no model: the same correlation at lags so long that sound and EEG have nothing to do with each other, in
windows of lags as wide as the one that is tested. A line frequency that both hold is at every lag alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from eeg2speech import audio
from eeg2speech.data.base import Recording
from eeg2speech.data.splits import Finding
from eeg2speech.files import digest, write_atomically

VERSION = 1
"""Raised whenever the same recording would give other numbers."""
CHECK = "audio crosstalk"
LOWEST_HZ = 50.0
MIN_SFREQ = 160.0
"""Hz: below it too little lies between LOWEST_HZ and the amplifier's own filter."""
BOUND = 0.01
"""Share of a channel's whitened power above LOWEST_HZ: 0.3 µV under 3 µV."""
ALPHA = 0.01
MAX_LAG_S = 0.25
GUARD_S = 1.0
"""Lags this near to the tested ones are in no null: what is periodic in the sound has side peaks there."""
MIN_S = 60.0
"""With less there are too few other lags for a p below ALPHA, and chance alone comes near BOUND."""
WORKERS = 4
"""Recordings at a time, each of which holds its EEG."""
MAX_S, MAX_VALUES = 600.0, 60_000_000
"""Of each recording, from its first sound on, and at most so many values: 240 MB."""


@dataclass(frozen=True)
class Coherence:
    """The channel and lag at which a recording follows its sound most."""

    recording: str
    channel: str
    share: float
    """Of the channel's whitened power above LOWEST_HZ."""
    lag_s: float
    """The EEG's, behind the sound."""
    p: float

    @property
    def passed(self) -> bool:
        return self.p > ALPHA or self.share < BOUND


def crosstalk(recordings: Sequence[Recording], cache: Path) -> Finding:
    """The audit's check; what is in `cache` already is not measured again."""
    from tqdm import tqdm

    refused = [_untestable(recording) for recording in recordings]
    reasons = {reason: refused.count(reason) for reason in refused if reason}
    tested = [recording for recording, reason in zip(recordings, refused, strict=True) if not reason]
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        done = pool.map(partial(_cached, cache=cache), tested)
        measured = list(tqdm(done, "crosstalk", len(tested), leave=False, disable=None))
    said = "; ".join(f"not tested in {n} recordings: {reason}" for reason, n in reasons.items())
    if not measured:
        return Finding(CHECK, True, said, tested=False)
    failed = [one for one in measured if not one.passed]
    worst = max(failed or measured, key=lambda one: one.share)
    told = (
        f"{100 * worst.share:.2g} % of the power of channel {worst.channel} above {LOWEST_HZ:g} Hz follows the sound "
        f"in {worst.recording} ({1000 * worst.lag_s:.0f} ms later, p = {worst.p:.2g}; a brain reaches "
        f"{100 * BOUND:g} % at most)"
    )
    told = f"{len(failed)} recordings, such as: {told}" if failed else f"at most {told}, {len(measured)} recordings"
    faint = [one for one in measured if one.p <= ALPHA and one.passed]
    remark = (
        f"In {len(faint)} of {len(measured)} recordings the EEG follows the sound above {LOWEST_HZ:g} Hz, faintly: so "
        "do brains, and so does crosstalk too weak to be told from them."
    )
    return Finding(CHECK, not failed, "; ".join(filter(None, [told, said])), remark=remark if faint else "")


def _untestable(recording: Recording) -> str:
    """Why nothing can be measured; empty where it can."""
    if recording.sounds["sfreq_hz"].notna().any():
        return "the study has no audio"
    if recording.sfreq < MIN_SFREQ:
        return f"sampled at {recording.sfreq:g} Hz; {MIN_SFREQ:g} Hz are needed"
    start, stop = _span(recording)
    return "" if stop - start >= MIN_S * recording.sfreq else f"less than {MIN_S:g} s of EEG with sound"


def _span(recording: Recording) -> tuple[int, int]:
    """Samples that are compared: from the first sound on."""
    sounds = recording.sounds
    start_s, stop_s = float(sounds["onset_s"].min()), float((sounds["onset_s"] + sounds["duration_s"]).max())
    start = max(0, round(start_s * recording.sfreq))
    longest = min(MAX_S * recording.sfreq, MAX_VALUES // len(recording.ch_names))
    return start, int(min(recording.eeg.n_samples, round(stop_s * recording.sfreq), start + longest))


def _cached(recording: Recording, cache: Path) -> Coherence:
    sounds = recording.sounds[["path", "onset_s", "duration_s", "offset_s"]].to_numpy().tolist()
    states = [(state.st_size, state.st_mtime_ns) for state in (Path(row[0]).stat() for row in sounds)]
    key = [VERSION, recording.fingerprint, recording.sfreq, recording.ch_names, sounds, states]
    path = cache / "crosstalk" / f"{digest(key)}.json"
    if path.exists():
        return Coherence(**json.loads(path.read_text(encoding="utf-8")) | {"recording": recording.recording})
    found = measure(recording)
    write_atomically(path, json.dumps(asdict(found)))
    return found


def measure(recording: Recording) -> Coherence:
    """The strongest coherence of any channel, and how rarely lags without meaning give as much."""
    start, stop = _span(recording)
    eeg = recording.eeg.read(start, stop)
    sound = played(recording, start, stop)
    share, channel, lag, p = strongest(eeg, sound, recording.sfreq)
    return Coherence(recording.recording, recording.ch_names[channel], share, lag / recording.sfreq, p)


def played(recording: Recording, start: int, stop: int) -> np.ndarray:
    """(2, stop - start) float64: the waveform and its magnitude at the EEG's rate, silent between sounds."""
    out = np.zeros((2, stop - start))
    for row in recording.sounds.itertuples(index=False):
        first = round(row.onset_s * recording.sfreq) - start
        if first >= out.shape[1]:
            continue
        both = _forms(row.path, float(row.offset_s), float(row.duration_s), recording.sfreq)
        kept = both[:, max(0, -first) : out.shape[1] - first]
        out[:, max(0, first) : max(0, first) + kept.shape[1]] += kept
    return out


@lru_cache(maxsize=16)
def _forms(path: str, offset_s: float, duration_s: float, sfreq: float) -> np.ndarray:
    """(2, n): a sound and its magnitude at `sfreq`. Kept, for many listeners hear the same."""
    from scipy.signal import resample_poly

    ratio = Fraction(sfreq / audio.SAMPLE_RATE).limit_denominator(10_000)
    waveform = audio.load(path, offset_s, duration_s)
    return resample_poly(np.stack([waveform, np.abs(waveform)]), ratio.numerator, ratio.denominator, axis=1)


def strongest(eeg: np.ndarray, sound: np.ndarray, sfreq: float) -> tuple[float, int, int, float]:
    """(C, n), (S, n) -> (share, channel, lag in samples, p): the largest squared correlation within MAX_LAG_S.

    Each channel is whitened frequency by frequency (generalised cross-correlation with the phase transform; Knapp &
    Carter, IEEE Trans. ASSP 1976), so that a line or a strong rhythm weighs no more than its bandwidth. p is the share
    of windows of other lags that hold as large a value in any channel.
    """
    n = eeg.shape[1]
    window = 2 * round(MAX_LAG_S * sfreq) + 1
    largest, channel = np.zeros(n), np.zeros(n, dtype=np.int64)
    for number, correlation in enumerate(_correlations(eeg, sound, sfreq)):
        better = correlation > largest
        largest[better], channel[better] = correlation[better], number
    lags = np.roll(largest, window // 2)  # the tested ones first
    observed = int(lags[:window].argmax())
    guard = round(GUARD_S * sfreq)
    others = lags[window + guard : n - guard]
    null = others[: len(others) // window * window].reshape(-1, window).max(axis=1)
    p = (1 + int((null >= lags[observed]).sum())) / (1 + len(null))
    lag = observed - window // 2
    return float(lags[observed] ** 2), int(channel[lag]), lag, p


def _correlations(eeg: np.ndarray, sound: np.ndarray, sfreq: float) -> Iterator[np.ndarray]:
    """For each channel (n,): |correlation| with the sound at every circular lag, the largest of its forms."""
    from scipy.fft import irfft, rfft, rfftfreq

    n = eeg.shape[1]
    frequency = rfftfreq(n, 1 / sfreq)
    band = (frequency >= LOWEST_HZ) & (frequency <= 0.45 * sfreq)
    heard = [_unit(_limited(rfft(form - form.mean())[band])) for form in sound if np.ptp(form) > 0]
    for values in eeg:
        spectrum = rfft(values.astype(np.float64) - values.mean())[band]
        size = np.abs(spectrum)
        white = _unit(np.divide(spectrum, size, out=np.zeros_like(spectrum), where=size > 0))
        full = np.zeros(len(frequency), dtype=np.complex128)
        best = np.zeros(n)
        for form in heard:
            full[band] = white * form.conj()
            np.maximum(best, np.abs(irfft(full, n)), out=best)
        yield best * n / 2  # irfft counts every frequency twice and divides by n


def _limited(spectrum: np.ndarray, times: float = 4.0) -> np.ndarray:
    """No frequency stands out: what hums is not what is said."""
    size = np.abs(spectrum)
    limit = times * np.sqrt((size**2).mean())
    return spectrum * np.minimum(1.0, np.divide(limit, size, out=np.ones_like(size), where=size > 0))


def _unit(spectrum: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(spectrum)
    return spectrum / norm if norm > 0 else spectrum
