"""Tiny data sets on disk in the formats in which real studies are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pybv
import scipy.io
import scipy.signal
import soundfile

Interval = tuple[float, float, str]


def write_textgrid(path: Path, tiers: dict[str, Sequence[Interval]], duration_s: float, short: bool = False) -> None:
    """Praat's long text form, or its short one, which leaves all names of fields out."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    if short:
        lines += ["0", str(duration_s), "<exists>", str(len(tiers))]
    else:
        lines += ["xmin = 0 ", f"xmax = {duration_s} ", "tiers? <exists> ", f"size = {len(tiers)} ", "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        if short:
            lines += ['"IntervalTier"', f'"{name}"', "0", str(duration_s), str(len(intervals))]
            for start, stop, label in intervals:
                lines += [str(start), str(stop), '"' + label.replace('"', '""') + '"']
            continue
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f'        name = "{name}" ']
        lines += ["        xmin = 0 ", f"        xmax = {duration_s} ", f"        intervals: size = {len(intervals)} "]
        for row, (start, stop, label) in enumerate(intervals, start=1):
            quoted = label.replace('"', '""')
            lines += [f"        intervals [{row}]:", f"            xmin = {start} ", f"            xmax = {stop} "]
            lines += [f'            text = "{quoted}" ']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_v73(path: Path, values: dict[str, Any]) -> None:
    """A MATLAB v7.3 file: HDF5 below a block with MATLAB's header. Structures are dicts, cells are lists."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            _put(file, file, name, value)
    header = b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM"
    with path.open("r+b") as raw:
        raw.write(header)


def _put(file: h5py.File, parent: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, dict):
        group = parent.create_group(name)
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for key, inner in value.items():
            _put(file, group, key, inner)
        return
    if isinstance(value, list):
        cells = file.require_group("#refs#")
        references = np.empty((len(value), 1), dtype=h5py.ref_dtype)
        for number, inner in enumerate(value):
            key = f"c{len(cells)}"
            _put(file, cells, key, inner)
            references[number, 0] = cells[key].ref
        parent.create_dataset(name, data=references, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")
        return
    if isinstance(value, str):
        letters = np.array([[ord(letter)] for letter in value], dtype=np.uint16)
        data = parent.create_dataset(name, data=letters)
        data.attrs["MATLAB_class"], data.attrs["MATLAB_int_decode"] = np.bytes_("char"), 2
        return
    array = np.atleast_2d(np.asarray(value, dtype=float))
    parent.create_dataset(name, data=array.T).attrs["MATLAB_class"] = np.bytes_("double")


ALICE_SFREQ = 500
ALICE_NAMES = [str(number) for number in range(1, 62) if number != 29]
NO_FIRST_MARKER = {"S26", "S34", "S35", "S36"}
SEGMENT_S = 5.0
WORDS_PER_SEGMENT = 8


class AliceFixture:
    """The release of Brennan & Hale in small: 12 sounds of 5 s, 8 words each, in sentences of 4.

    Markers and epochs come about as in the authors' scripts (get_alice2_trials.m of
    cnllab/alice-eeg-shared): a marker precedes its sound by 60 ms (first segment) or 50 ms; an
    epoch reaches from 150 samples before to 500 after its word; passages are counted, so that without
    the first marker each is called one too low.
    """

    def __init__(
        self,
        root: Path,
        table_columns: int = 16,
        table: pd.DataFrame | None = None,
        durations_s: Sequence[float] = (SEGMENT_S,) * 12,
        rate: int = 16_000,
    ) -> None:
        """`table` and `durations_s`: of the real story, in place of 96 words in 60 s. `rate`: Hz of the wavs."""
        self.root, self.rate = root, rate
        (root / "audio").mkdir(parents=True)
        (root / "proc").mkdir()
        self.sounds = [self._sound(number, duration_s) for number, duration_s in enumerate(durations_s, start=1)]
        self.table = self._table(table_columns) if table is None else table
        self.table.to_csv(root / "AliceChapterOne-EEG.csv", index=False)

    def add(
        self,
        subject: str,
        release: str = "mat",
        audio: str | None = "AUD",
        proc: bool = True,
        late_by_s: float = 0.0,
        n_channels: int = 8,
        v73: bool = False,
        compressed: bool = False,
    ) -> np.ndarray:
        """Writes a subject; returns its EEG (channels, samples) in µV. `late_by_s`: an error of the onsets."""
        rng = np.random.default_rng(int(subject[1:]))
        lengths = [round((len(sound) / 16_000 + 0.5) * ALICE_SFREQ) for sound in self.sounds]
        began = 300 + np.cumsum([0, *lengths[:-1]]) + rng.integers(0, 100, 12)
        lags = np.where(np.arange(12) == 0, 30, 25)  # 60 and 50 ms in samples
        n_samples = int(began[-1]) + lengths[-1] + round(1.5 * ALICE_SFREQ)
        eeg = rng.standard_normal((n_channels, n_samples)).round(3)
        rows, names = [eeg, rng.standard_normal((1, n_samples))], [*ALICE_NAMES[:n_channels], "VEOG"]
        if audio is not None:
            rows, names = [*rows, self._channel(began, n_samples)[None]], [*names, audio]
        shift = round(late_by_s * ALICE_SFREQ)
        times = [int(s - lag) + shift for s, lag in zip(began, lags, strict=True)]
        markers = list(zip(times, range(1, 13), strict=True))
        if subject in NO_FIRST_MARKER:
            markers = markers[1:]
        self.began_s = began / ALICE_SFREQ
        if release == "mat":
            self._write_mat(subject, np.concatenate(rows), names, v73, compressed)
        else:
            self._write_vhdr(subject, np.concatenate(rows), names, markers)
        if proc:
            self._write_proc(subject, markers)
        return eeg

    def _sound(self, number: int, duration_s: float) -> np.ndarray:
        rng = np.random.default_rng(100 + number)
        loudness = np.repeat(rng.uniform(0.0, 1.0, round(5 * duration_s)) ** 2, 3_200)
        tone = np.sin(2 * np.pi * 120 * np.arange(len(loudness)) / 16_000)
        sound = 0.5 * loudness * tone
        at_rate = sound if self.rate == 16_000 else scipy.signal.resample_poly(sound, self.rate // 100, 160)
        soundfile.write(self.root / "audio" / f"DownTheRabbitHoleFinal_SoundFile{number}.wav", at_rate, self.rate)
        return sound

    def _table(self, n_columns: int) -> pd.DataFrame:
        rows = []
        for order in range(12 * WORDS_PER_SEGMENT):
            segment, position = divmod(order, WORDS_PER_SEGMENT)
            onset = 0.2013 + 0.5571 * position
            rows.append((f"w{order}", segment + 1, onset, onset + 0.5, order + 1 + order // 40, 1 + order // 4))
        table = pd.DataFrame(rows, columns=["Word", "Segment", "onset", "offset", "Order", "Sentence"])
        if n_columns == 17:
            table.insert(1, "Trigger", 1)
        return table

    def _channel(self, began: np.ndarray, n_samples: int) -> np.ndarray:
        channel = np.zeros(n_samples)
        for start, sound in zip(began, self.sounds, strict=True):
            kept = sound.reshape(-1, 32).mean(axis=1) * 200  # 16 kHz to 500 Hz
            channel[start : start + len(kept)] += kept
        return channel

    def _write_mat(self, subject: str, data: np.ndarray, names: list[str], v73: bool, compressed: bool) -> None:
        n_samples = data.shape[1]
        raw = {
            "label": list(names) if v73 else np.array(names, dtype=object)[:, None],
            "trial": [data] if v73 else _cell(data),
            "time": [np.arange(n_samples)[None] / ALICE_SFREQ] if v73 else _cell(np.arange(n_samples) / ALICE_SFREQ),
            "fsample": float(ALICE_SFREQ),
            "sampleinfo": np.array([[1.0, n_samples]]),
            "hdr": {"Fs": float(ALICE_SFREQ), "nChans": len(names), "nSamples": n_samples},
        }
        path = self.root / f"{subject}.mat"
        if v73:
            write_v73(path, {"raw": raw})
        else:
            scipy.io.savemat(path, {"raw": raw}, do_compression=compressed)

    def _write_vhdr(self, subject: str, data: np.ndarray, names: list[str], markers: list[tuple[int, int]]) -> None:
        pybv.write_brainvision(
            data=data * 1e-6,
            sfreq=ALICE_SFREQ,
            ch_names=names,
            fname_base=subject,
            folder_out=self.root,
            events=np.array([(sample, 1, number) for sample, number in markers]),
            unit="µV",
            resolution=0.001,
        )

    def _write_proc(self, subject: str, markers: list[tuple[int, int]]) -> None:
        passages = [sample + (30 if k == 0 else 25) for k, (sample, _) in enumerate(markers)]
        rows = []
        for row in self.table.itertuples():
            if row.Segment <= len(passages):
                word = passages[row.Segment - 1] + int(np.ceil(row.onset * ALICE_SFREQ))
                rows.append((word - 150, word + 500, -150, row.Segment, row.onset, row.Order))
        trl = np.array(sorted(rows), dtype=float)
        names = np.array(["segment", "tmin", "Order"], dtype=object)
        proc = {"trl": trl, "varnames": names[None], "tot_trials": len(trl), "tot_chans": 61}
        scipy.io.savemat(self.root / "proc" / f"{subject}.mat", {"proc": proc})


def _cell(value: np.ndarray) -> np.ndarray:
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = value
    return cell


OLD_MAN = [
    ["he", "was", "an", "old", "man", "who", "fished", "alone"],
    ["in", "the", "first", "forty", "days", "a", "boy", "had", "been", "with", "him"],
    ["it", "made", "the", "boy", "sad", "to", "see", "the", "old", "man", "come", "in"],
    ["the", "sail", "was", "patched", "with", "flour", "sacks"],
]


class OldManFixture:
    """The Old Man and the Sea in small: runs of 22 s whose words take 0.4 s each, 0.5 s between sentences."""

    seconds = 22.0

    def __init__(self, root: Path) -> None:
        self.root = root

    def words(self, number: int) -> list[tuple[str, float, float, int]]:
        """(word, onset, offset, sentence); each run tells the sentences in another order."""
        rows, time = [], 0.25 * number
        for sentence in range(4):
            for word in OLD_MAN[(sentence + number) % 4]:
                rows.append((word, round(time, 3), round(time + 0.4, 3), sentence))
                time += 0.4
            time += 0.5
        return rows

    def write_stimuli(self, folder: Path, runs: Sequence[int]) -> None:
        """wavs and TextGrids as in ds004408."""
        folder.mkdir(parents=True, exist_ok=True)
        for number in runs:
            sound = 0.1 * np.random.default_rng(number).standard_normal(round(self.seconds * 16_000))
            soundfile.write(folder / f"audio{number:02d}.wav", np.stack([sound, sound], axis=1), 16_000)
            rows, time = [], 0.0
            for word, onset, offset, _ in self.words(number):
                rows += [(time, onset, "sp")] * (onset > time) + [(onset, offset, word.upper())]
                time = offset
            write_textgrid(folder / f"audio{number:02d}.TextGrid", {"phone": [], "word": rows}, self.seconds)

    def add_mat(self, subject: int, runs: Sequence[int], v73: bool = False) -> dict[int, np.ndarray]:
        """Run -> (128, samples) in µV, as recorded; the mastoids are channels 0 and 1 plus 1 µV."""
        eeg_folder = self.root / "Natural Speech" / "EEG" / f"Subject{subject}"
        stimuli = self.root / "Natural Speech" / "Stimuli"
        for folder in (eeg_folder, stimuli / "Envelopes", stimuli / "Text"):
            folder.mkdir(parents=True, exist_ok=True)
        written = {}
        for number in runs:
            rng = np.random.default_rng([subject, number])
            eeg = rng.standard_normal((round((self.seconds + 0.5) * 128), 128)).astype(np.float32)
            values = {"eegData": eeg, "mastoids": eeg[:, :2] + 1, "fs": np.array([[128.0]])}
            path = eeg_folder / f"Subject{subject}_Run{number}.mat"
            if v73:
                write_v73(path, values)
            else:
                scipy.io.savemat(path, values)
            written[number] = eeg.T
            envelope = np.random.default_rng(number).random((round(self.seconds * 128), 1))
            scipy.io.savemat(stimuli / "Envelopes" / f"audio{number}_128Hz.mat", {"env": envelope})
            said = self.words(number)
            ends = [rows[-1] for rows in ([w for w in said if w[3] == k] for k in range(4))]
            text = {
                "wordVec": np.array([[row[0]] for row in said], dtype=object),
                "onset_time": np.array([[row[1]] for row in said]),
                "offset_time": np.array([[row[2]] for row in said]),
                "sentence_boundaries": np.array([[round(row[2], 2) for row in ends]]),
            }
            scipy.io.savemat(stimuli / "Text" / f"Run{number}.mat", text)
        return written

    def add_bids(self, subject: str, runs: Sequence[int], channels: Sequence[str]) -> dict[int, np.ndarray]:
        """Run -> (128, samples) in µV."""
        folder = self.root / subject / "eeg"
        (self.root / "dataset_description.json").parent.mkdir(parents=True, exist_ok=True)
        (self.root / "dataset_description.json").write_text('{"Name": "old man", "BIDSVersion": "1.7.0"}')
        self.write_stimuli(self.root / "stimuli", runs)
        written = {}
        for number in runs:
            rng = np.random.default_rng([int(subject[-3:]), number])
            eeg = rng.standard_normal((len(channels), round((self.seconds + 1) * 512)))
            pybv.write_brainvision(
                data=eeg * 1e-6,
                sfreq=512,
                ch_names=list(channels),
                fname_base=f"{subject}_task-listening_run-{number:02d}_eeg",
                folder_out=folder,
                events=np.zeros((0, 3), dtype=int),
                unit="µV",
                resolution=0.001,
            )
            written[number] = eeg
        return written
