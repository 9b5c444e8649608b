"""Five-word matrix sentences, synthesised: the speech of the embedded study.

The form is that of the Matrix Sentence Test (Hagerman, Scand. Audiol. 1982; Kollmeier et al.,
Int. J. Audiol. 2015): name, verb, number, adjective, object, ten words a slot, so that guessing
gets one word in ten. The word list is this project's own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from eeg2speech import audio
from eeg2speech.data.forward_model import speech_features
from eeg2speech.errors import UserError

SLOTS: dict[str, tuple[str, ...]] = {
    "name": ("Peter", "Lucy", "Thomas", "Rachel", "William", "Nina", "David", "Emma", "Oscar", "Susan"),
    "verb": ("wants", "bought", "sold", "gives", "found", "paints", "ordered", "washed", "keeps", "needs"),
    "number": ("three", "five", "six", "seven", "nine", "ten", "eleven", "twelve", "twenty", "fifty"),
    "adjective": ("green", "old", "large", "cheap", "heavy", "lovely", "yellow", "broken", "quiet", "dark"),
    "object": ("chairs", "boats", "windows", "flowers", "apples", "shoes", "tables", "bottles", "pictures", "spoons"),
}
MAX_SENTENCES = 20_000
"""A fifth of those that exist: beyond, balanced draws without repetition become rare."""
MAX_READING_S = 2.6
PITCH_FACTORS = (0.96, 0.98, 1.0, 1.02, 1.04)
LEAD_S = 0.05
"""Silence kept before a reading, so that its onset is not cut."""


def sentences(n: int, seed: int) -> list[str]:
    """n distinct sentences in which every word of a slot is equally frequent (to within one).

    Raises UserError where more are asked for than MAX_SENTENCES.
    """
    if not 1 <= n <= MAX_SENTENCES:
        raise UserError(f"study.n_sentences is {n}: choose between 1 and {MAX_SENTENCES}")
    rng = np.random.default_rng([seed, 1])
    chosen: dict[str, None] = {}
    while len(chosen) < n:
        # Ten sentences use every word once; a ten that repeats a sentence is drawn again as a whole.
        columns = [rng.permutation(words) for words in SLOTS.values()]
        ten = [" ".join(words) for words in zip(*columns, strict=True)]
        if not any(sentence in chosen for sentence in ten):
            chosen.update(dict.fromkeys(ten))
    return list(chosen)[:n]


def synthesise(texts: list[str], seed: int, folder: Path, pool: ThreadPoolExecutor) -> pd.DataFrame:
    """Reads every sentence aloud into `folder` as 16 kHz wavs; one row each: sentence_id, text, path, duration_s.

    Speaking rate and pitch vary a little from sentence to sentence, from (seed, position) alone, so
    the same call writes the same samples, however many threads share the work. A reading that
    outlasts MAX_READING_S is read again faster.
    """
    from tqdm import tqdm

    try:
        from hibari import Hibari
    except ModuleNotFoundError as error:
        raise UserError(
            "the matrix study needs the speech synthesiser hibari-tts: pip install 'eeg2speech[matrix]'"
        ) from error
    voice = Hibari()
    voice("Ready.", seed=0)  # loads its dictionaries, before threads share them
    folder.mkdir(parents=True, exist_ok=True)

    def read(index: int) -> tuple[str, str, str, float]:
        rng = np.random.default_rng([seed, 2, index])
        pitch, speed = float(rng.choice(PITCH_FACTORS)), float(rng.uniform(0.78, 0.92))
        waveform = _read(voice, texts[index], speed, pitch, seed=index)
        while (excess := len(waveform) / (MAX_READING_S * audio.SAMPLE_RATE)) > 1.0:
            speed *= 1.02 * excess
            waveform = _read(voice, texts[index], speed, pitch, seed=index)
        path = folder / f"{index:05d}.wav"
        audio.save(path, waveform)
        return path.stem, texts[index], path.name, len(waveform) / audio.SAMPLE_RATE

    done = pool.map(read, range(len(texts)))
    rows = list(tqdm(done, "speech", len(texts), unit="sentence", leave=False, disable=None))
    return pd.DataFrame(rows, columns=["sentence_id", "text", "path", "duration_s"])


def _read(voice: object, text: str, speed: float, pitch: float, seed: int) -> np.ndarray:
    """(N,) at 16 kHz: one reading, silence trimmed, 0.06 RMS. Pitch and rate change together by `pitch`."""
    raw = voice(f"{text}.", speed=speed / pitch, seed=seed)  # type: ignore[operator]
    waveform = audio.resample(raw, round(24_000 * pitch))
    loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max())
    lead = round(LEAD_S * audio.SAMPLE_RATE)
    waveform = waveform[max(0, loud[0] - lead) : loud[-1] + lead]
    waveform = waveform * (0.06 / np.sqrt(np.mean(waveform**2)))
    return (waveform / max(1.0, np.abs(waveform).max() / 0.99)).astype(np.float32)


def features(sentences: pd.DataFrame, folder: Path, sfreq: float, pool: ThreadPoolExecutor) -> list[np.ndarray]:
    """What the simulated ear takes from each wav that `synthesise` wrote into `folder`, at `sfreq`."""
    return list(pool.map(lambda name: speech_features(audio.load(folder / name), sfreq), sentences["path"]))


def word_times(text: str, duration_s: float) -> list[tuple[str, float, float]]:
    """(word, onset_s, duration_s) within a reading, time shared out by letters.

    An estimate, good to about a syllable: the synthesiser does not say when it speaks which word.
    Windows of this study hold whole sentences, so nothing finer is used.
    """
    words = text.split()
    ends = np.cumsum([len(word) for word in words]) / sum(len(word) for word in words) * duration_s
    onsets = np.concatenate([[0.0], ends[:-1]])
    return [(w, float(a), float(b - a)) for w, a, b in zip(words, onsets, ends, strict=True)]
