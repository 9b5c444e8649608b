"""Somebody else's system, by its sounds alone: a row among those of an evaluated run, with the same statistics.

A submission is a folder of sounds and a manifest that says which example of the test set each is. Its own floor
needs no model: the same sounds, each given to another stimulus of the same listener, which is what the system
would have said to that listener's other EEG.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eeg2speech import __version__, audio, environment
from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, digest, sha256
from eeg2speech.runs import SUBMISSION, RunFolder, is_done, step
from eval.assembly import Scored, assemble
from eval.metrics.base import Metric, SystemOutput, TestSet
from eval.results import RunResult, Submission
from eval.runner import EXAMPLES, MEASUREMENTS, STAGES, read_scored, score_output
from eval.systems import other_examples
from eval.yardstick import Yardstick

logger = logging.getLogger(__name__)

CLAIM, FLOOR = SUBMISSION, f"{SUBMISSION}_shuffled"
MANIFEST = "manifest.csv"
TRAINING = "training.csv"
KEYS = ("subject", "recording", "stimulus_id")
TOLERANCE_S = 0.01
"""A sound may be this much longer or shorter than the window: rounding of a resampler, and no more."""
LOUD = 1.5
"""Peaks above are of sounds in another unit; a resampler overshoots full scale by less."""


def write_template(yardstick: Yardstick, folder: Path) -> list[Path]:
    """Writes what a submitter needs to know of the split, and returns the paths.

    `manifest.csv` lists every example to be decoded, where its EEG lies, and the sound that is asked for;
    what was said there is the answer and is not in it. `training.csv` lists the windows that may be trained
    and tuned on, with their text and sound. Both say in which file the EEG of a recording lies, where it is here.

    Raises UserError where the run's tables are gone from its cache.
    """
    windows, stimuli = yardstick.windows, yardstick.stimuli
    if windows is None or stimuli is None:
        raise UserError(
            f"the tables of {yardstick.run} are not in the cache beside it: give its config by --config, not --run"
        )
    try:
        eeg = {recording.recording: _file(recording.eeg) for recording in yardstick.recordings()}
    except UserError as error:
        logger.warning("the column eeg, which says where the EEG of a recording lies, stays empty: %s", error)
        eeg = {}
    examples = yardstick.test.examples.merge(
        windows[[*KEYS, "onset_s", "length_s"]], on=list(KEYS), how="left", validate="1:1"
    )
    asked = examples[["study", *KEYS, "onset_s", "length_s"]].assign(
        eeg=examples["recording"].map(eeg), wav=[f"{number:05d}.wav" for number in range(1, len(examples) + 1)]
    )
    known = windows[windows["split"] != "test"].merge(
        stimuli[["path", "offset_s"]], left_on="stimulus", right_index=True, validate="m:1"
    )
    known = known.assign(eeg=known["recording"].map(eeg))
    known = known[["split", "study", *KEYS, "onset_s", "length_s", "eeg", "text", "path", "offset_s"]]
    paths = [folder / MANIFEST, folder / TRAINING]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists: it may be a submission's; choose another --output")
    for path, table in zip(paths, (asked, known), strict=True):
        with atomic_path(path) as partial:
            table.to_csv(partial, index=False)
    return paths


def _file(source: Any) -> str | None:
    """The file under an EEGSource, from the working directory where it lies below; None where there is no one file."""
    while hasattr(source, "source"):
        source = source.source
    path = Path(source.raw.filenames[0]) if hasattr(source, "raw") else getattr(source, "path", None)
    if path is None:
        return None
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def read_manifest(path: Path, examples: pd.DataFrame) -> list[str]:
    """The wav of each example, in the order of `examples`.

    Raises UserError naming the rows that are missing, doubled or unknown, or that name no wav.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: `python -m eval manifest` writes one to fill in") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as CSV ({' '.join(str(error).split())})") from error
    lacking = [column for column in (*KEYS, "wav") if column not in table]
    if lacking:
        raise UserError(f"{path} has no column {', '.join(lacking)}; a manifest has {', '.join((*KEYS, 'wav'))}")
    if "study" in table and (wrong := set(table["study"]) - set(examples["study"])):
        raise UserError(f"{path}: study {sorted(wrong)[0]!r} is not {examples['study'].iloc[0]!r}, which is scored")
    wanted = list(examples[list(KEYS)].itertuples(index=False, name=None))
    given = list(table[list(KEYS)].itertuples(index=False, name=None))
    known, seen, doubled = set(wanted), set(), []
    for key in given:
        doubled += [key] if key in seen else []
        seen.add(key)
    unknown, missing = [key for key in given if key not in known], [key for key in wanted if key not in seen]
    wav = dict(zip(given, table["wav"], strict=True))
    for keys, what in (
        (doubled, "listed twice; keep one row of each"),
        (unknown, "not in the test set; take the rows that `python -m eval manifest` writes"),
        (missing, "missing; a submission answers every example"),
        ([key for key in wanted if not wav.get(key, "").strip()], "listed without a wav; name one"),
    ):
        if keys:
            raise UserError(f"{path}: {_named(keys)} {'is' if len(keys) == 1 else 'are'} {what}")
    return [wav[key].strip() for key in wanted]


def _named(keys: Sequence[tuple[str, ...]]) -> str:
    """Up to three examples in words, and how many more."""
    shown = "; ".join(f"subject {s}, recording {r}, stimulus_id {i}" for s, r, i in keys[:3])
    return shown + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def read_sounds(folder: Path, names: Sequence[str], window_s: float) -> np.ndarray:
    """(n, N) float32 at 16 kHz, each as long as the window.

    Raises UserError naming the sound that is missing, unreadable, of another length or not of finite numbers.
    Length is not optional: where sounds are as long as the speech, their length alone tells them apart.
    """
    import soundfile

    n_samples = round(window_s * audio.SAMPLE_RATE)
    loaded: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(names):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} does not exist: the manifest names it; put it there or correct the manifest")
        sound = audio.load(path)
        length_s = soundfile.info(str(path)).duration
        if abs(length_s - window_s) > TOLERANCE_S:
            raise UserError(
                f"{path} lasts {length_s:.3f} s: every sound lasts {window_s:g} s; pad it with silence or cut it"
            )
        if not np.isfinite(sound).all():
            raise UserError(f"{path} holds values that are no numbers; write it again")
        loaded[name] = np.pad(sound[:n_samples], (0, max(0, n_samples - len(sound))))
    return np.stack([loaded[name] for name in names])


def remarks(names: Sequence[str], waveform: np.ndarray) -> list[str]:
    """What is odd of the sounds and no reason to refuse them, with how many; each is named in a warning."""
    peak = np.abs(waveform).max(axis=1)
    found = []
    for odd, what in (
        (np.ptp(waveform, axis=1) * 32768 < 1, "silent"),
        (peak > LOUD, "louder than full scale and scaled down to it"),
    ):
        which = sorted({name for name, is_odd in zip(names, odd, strict=True) if is_odd})
        if which:
            found.append(f"{len(which)} {what}")
            logger.warning("sounds that are %s: %s%s", what, ", ".join(which[:5]), " ..." if len(which) > 5 else "")
    return found


def outputs(
    test: TestSet, waveform: np.ndarray, seed: int, remarks: Sequence[str] = ()
) -> list[tuple[SystemOutput, str, str]]:
    """(output, role, description) of the submission and of its floor."""
    n, other = len(np.unique(waveform, axis=0)), other_examples(test, seed)
    claim = SystemOutput(CLAIM, True, test.examples, waveform)
    return [
        (claim, "claim", "; ".join([f"the submitted sounds, {n} different ones", *remarks])),
        (
            replace(claim, system=FLOOR, waveform=waveform[other]),
            "floor",
            "the submitted sounds of another stimulus, same listener: is the EEG used at all?",
        ),
    ]


def score(yardstick: Yardstick, wavs: Path, manifest: Path, folder: RunFolder, metrics: list[Metric]) -> Path:
    """Scores a submission beside the rows of `yardstick` into a run folder of its own; returns `results.json`.

    A second call for the same sounds does nothing. Raises UserError where the submission is not complete, or the
    folder holds a run that is no submission, evaluated or not.
    """
    names = read_manifest(manifest, yardstick.test.examples)
    waveform = read_sounds(wavs, names, yardstick.window_s)
    hashes = {name: sha256(wavs / name) for name in sorted(set(names))}
    about = Submission(
        sounds=wavs.resolve().name,
        n_sounds=len(set(hashes.values())),
        manifest_sha256=sha256(manifest),
        sounds_sha256=hashlib.sha256("\n".join(hashes[name] for name in names).encode()).hexdigest(),
        beside=yardstick.name,
    )
    depends = digest([__version__, yardstick.depends, about.model_dump(mode="json")])
    path = folder.path / "results.json"
    with folder.lock():
        _require_no_run(folder)
        if path.exists() and is_done(folder.evaluation, depends):
            print(f"nothing to do: results are in {path}")
            return path
        shutil.rmtree(folder.evaluation, ignore_errors=True)
        with step(folder.evaluation, depends) as record:
            rows = yardstick.scored(metrics, folder.evaluation)
            _link_sounds(yardstick, rows, folder.path)
            made = outputs(yardstick.test, waveform, yardstick.evaluation.seed, remarks(names, waveform))
            for output, role, description in made:
                place = folder.evaluation / output.system
                score_output(output, yardstick.test, yardstick.sampling_seed, metrics, place)
                rows.append(read_scored(place, output.system, role, description))
            _write(yardstick, rows, folder, about, manifest)
            record.files = ["../results.json", f"../{EXAMPLES}"]
    print(f"results are in {path}")
    return path


def _require_no_run(folder: RunFolder) -> None:
    """Raises UserError where a run was evaluated here, or as much as begun: one would overwrite the other."""
    made = [folder.config, folder.pipeline, *map(folder.stage, STAGES)]
    held = next((path.name for path in made if path.exists()), None)
    if held is None and (folder.path / "results.json").exists() and RunResult.load(folder.path).submission is None:
        held = "results.json"
    if held is not None:
        raise UserError(f"{folder.path} holds a run that is no submission ({held}): give this one another --name")


def _link_sounds(yardstick: Yardstick, rows: Sequence[Scored], folder: Path) -> None:
    """The sounds and measurements of a run's rows, as they are there: linked where the disk allows it."""
    if yardstick.run is None:
        return
    for row in rows:
        stored = Path("evaluation") / row.name
        for name in [*row.examples["wav"].dropna(), stored / EXAMPLES, stored / MEASUREMENTS]:
            source, target = yardstick.run / name, folder / name
            if not source.exists():
                raise UserError(f"{source} is missing: evaluate the run again, or score against another --run")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)


def _write(yardstick: Yardstick, rows: list[Scored], folder: RunFolder, about: Submission, manifest: Path) -> None:
    examples = pd.concat([row.examples for row in rows], ignore_index=True)
    with atomic_path(folder.path / EXAMPLES) as partial:
        examples.to_parquet(partial)
    fields = yardstick.about | {
        "name": folder.path.name,
        "training_seeds": [],
        "signature": digest([__version__, yardstick.depends, about.sounds_sha256]),
        "stages": [],
        "environment": environment.describe(),
        "provenance": {"submission": about.model_dump(mode="json"), "beside": yardstick.provenance},
        "submission": about,
    }
    assemble(rows, examples, fields, yardstick.evaluation, CLAIM).save(folder.path)
