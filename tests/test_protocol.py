"""brainmagick's protocol by name: its blocks, its windows, its numbers, and who is unseen."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from data_fixture import ListedStudy, recording, sounds, words

from eeg2speech import audio
from eeg2speech.config import ExperimentConfig, load
from eeg2speech.data.base import Recording
from eeg2speech.data.loader import StudyData
from eeg2speech.data.protocol import LEAD_S, SPAN_S, story_blocks, window_starts
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.textgrid import read_tiers
from eeg2speech.data.windows import Cut, cut
from eeg2speech.errors import UserError

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("EEG2SPEECH_REALDATA", ROOT.parent / "shared" / "realdata")) / "alice"
STAGE = {"steps": 1, "batch_size": 2, "learning_rate": 0.001}
VALUES: dict[str, Any] = {
    "protocol": "brainmagick",
    "study": {"name": "folder", "root": ".", "manifest": "none.csv"},
    "training": {"contrastive": STAGE},
}
CONFIG = ExperimentConfig.model_validate(VALUES)


def by_protocol(recordings: list[Recording], **splits: Any) -> Cut:
    changed = CONFIG.splits.model_copy(update=splits)
    return cut("story", recordings, False, CONFIG.windows, changed, CONFIG.preprocessing)


def story_table(n_sounds: int = 4) -> pd.DataFrame:
    """Sentences of 2 to 9 words, the first of 25, that go on from one sound to the next and run into each other."""
    rng = np.random.default_rng(5)
    rows, sentence, left = [], 0, 0
    for sound in range(1, n_sounds + 1):
        onset = 0.2
        while onset < 38.0:
            if left == 0:
                sentence, left = sentence + 1, int(rng.integers(2, 10)) if sentence else 25
            length = float(rng.uniform(0.15, 0.6))
            rows.append((f"w{len(rows)}", sound, onset, onset + length + rng.choice([0.0, 0.03]), sentence))
            onset, left = onset + length + float(rng.choice([0.0, 0.2])), left - 1
    return pd.DataFrame(rows, columns=["Word", "Segment", "onset", "offset", "Sentence"])


def told(
    table: pd.DataFrame, durations_s: list[float], folder: Path, name: str = "S01", gap_s: float = 1.3, first: int = 1
) -> Recording:
    """A listener of the sounds from number `first` on, `gap_s` apart; sounds are noise of their own."""
    begins, heard = 5.0, []
    spoken = []
    for segment, duration_s in enumerate(durations_s, start=1):
        if segment < first:
            continue
        path = folder / f"sound{segment}.npy"
        if not path.exists():
            np.save(path, np.random.default_rng(segment).random(round(duration_s * 20), dtype=np.float32))
        heard.append((f"sound{segment}", begins, duration_s, str(path), 0.0, 20.0))
        rows = table[table["Segment"] == segment]
        spoken.append(
            words(
                *zip(rows.Word.astype(str), begins + rows.onset, rows.offset - rows.onset, rows.Sentence, strict=True)
            )
        )
        begins += duration_s + gap_s
    return recording(name, sounds(*heard), pd.concat(spoken, ignore_index=True), duration_s=begins + 3.0)


def published(table: pd.DataFrame, durations_s: list[float], gap_s: float) -> dict[str, Any]:
    """brainmagick's rules, written out anew over the timeline of a recording that begins 5 s before the story."""
    begins = 5.0 + np.cumsum([0.0, *(d + gap_s for d in durations_s[:-1])])
    start = begins[table["Segment"] - 1] + table["onset"].to_numpy()
    stop = start + (table["offset"] - table["onset"]).to_numpy()
    first = [i for i in range(len(table)) if i == 0 or table["Sentence"][i] != table["Sentence"][i - 1]]
    edges = [*start[first], stop.max() + 1e-7]
    texts = [
        " ".join(str(w) for w, a, b in zip(table["Word"], start, stop, strict=True) if a >= low and b < high)
        for low, high in zip(edges, edges[1:], strict=False)
    ]
    blocks, low, uid = [], 0.0, []
    for high, text in zip(edges[1:], texts, strict=True):
        uid.append(text)
        if high is edges[-1] or high > low + 6.0:
            blocks.append((low, high if high is not edges[-1] else np.inf, ",".join(uid)))
            low, uid = high, []
    split = {}
    for low, high, uid_text in blocks:
        draw = random.Random(int(hashlib.sha256(uid_text.encode()).hexdigest(), 16) + 12).random()
        split[low, high] = "test" if draw < 0.2 else "valid" if draw < 0.3 else "train"
    tested = [
        i
        for i, t in enumerate(start)
        if any(s == "test" and t - 0.5 >= low and t + 2.5 - 0.5 / 120 < high for (low, high), s in split.items())
    ]
    return {"blocks": blocks, "splits": list(split.values()), "tested": tested}


# The numbers it fixes


def test_windows_have_361_samples_before_the_shift_and_343_after() -> None:
    n_window = round(SPAN_S * 120) + 1
    shift = round(0.15 * 120)
    assert (n_window, n_window - shift) == (361, 343)
    assert CONFIG.preprocessing.n_samples(CONFIG.windows.length_s) == 343
    assert CONFIG.preprocessing.baseline == (18, 61)
    assert (LEAD_S, CONFIG.windows.stride_s, CONFIG.splits.block_s, CONFIG.splits.seed) == (0.5, 0.5, 6.0, 12)
    assert (CONFIG.splits.test, CONFIG.splits.valid) == (0.2, 0.1)


def test_the_protocol_survives_its_own_yaml_and_fills_nothing_else() -> None:
    guarded = ExperimentConfig.model_validate({**VALUES, "splits": {"guard": True, "strict": True}})
    for config in (CONFIG, guarded):
        again = ExperimentConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
        assert again == config
    plain = ExperimentConfig.model_validate({k: v for k, v in VALUES.items() if k != "protocol"})
    assert (plain.windows.placement, plain.windows.length_s, plain.splits.seed) == (None, 3.0, 0)
    assert plain.preprocessing.baseline == (60, 60)
    dumped = plain.model_dump(mode="json")  # what hashes are made of: as it was before there were protocols
    later = {"protocol", "placement", "guard", "baseline_from_s"}
    assert not later & {*dumped, *dumped["preprocessing"], *dumped["windows"], *dumped["splits"]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("splits.seed=3", r"splits\.seed: protocol brainmagick has 12, not 3; leave it out"),
        ("windows.length_s=3", r"windows\.length_s: protocol brainmagick has 2\.85833, not 3; leave it out"),
        ("protocol=mine", r"protocol: Input should be 'brainmagick'"),
    ],
)
def test_what_contradicts_the_protocol_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    with pytest.raises(UserError, match=message):
        load(path, [override])
    free = load(path, ["splits.guard=true", "splits.strict=true", "splits.by=both"])
    assert (free.splits.guard, free.splits.strict, free.splits.by, free.splits.seed) == (True, True, "both", 12)


def test_blocks_by_hand() -> None:
    # sentences: [0.5, 3) reaching 0.1 s into [3, 7), then [7, 9), then [9, 9.5)
    found = story_blocks(
        ["a", "b", "c", "d", "e"],
        np.array([0.5, 2.0, 3.0, 7.0, 9.0]),
        np.array([1.0, 3.1, 6.0, 8.0, 9.5]),
        np.array([1, 1, 2, 3, 4]),
        6.0,
    )
    assert found == [(-np.inf, 7.0, "a,c"), (7.0, np.inf, "d,e")]
    events = np.array([0.2, 0.5, 4.0, 4.504, 4.505])
    assert list(window_starts((0.0, 7.0), events)) == [0.0, 3.5, 4.004]


# What is cut


@pytest.mark.parametrize("gap_s", [0.0, 1.3])
def test_test_windows_are_those_of_the_published_rules(tmp_path: Path, gap_s: float) -> None:
    table, durations_s = story_table(), [40.0, 39.5, 41.0, 39.0]
    expected = published(table, durations_s, 0.0)
    assert {"train", "valid", "test"} == set(expected["splits"])
    tables = by_protocol([told(table, durations_s, tmp_path, gap_s=gap_s)])
    tested = tables.windows[tables.windows["split"] == "test"]
    begins = 5.0 + np.cumsum([0.0, *(d + gap_s for d in durations_s[:-1])])
    onsets = begins[table["Segment"] - 1] + table["onset"].to_numpy()
    np.testing.assert_allclose(tested["onset_s"] + 0.5, onsets[expected["tested"]], atol=5.1e-4)
    train = tables.stimuli[tables.stimuli["split"] == "train"]
    shifts = np.cumsum([0.0, *durations_s[:-1]])[[int(name[-1]) - 1 for name in train["sound"]]]
    on_grid = (train["offset_s"] + 0.5 + shifts) * 2
    np.testing.assert_allclose(on_grid, on_grid.round(), atol=2e-3)


def test_a_listener_who_missed_a_sound_has_everybody_elses_blocks(tmp_path: Path) -> None:
    table, durations_s = story_table(), [40.0, 39.5, 41.0, 39.0]
    late = told(table, durations_s, tmp_path, "S26", gap_s=3.0, first=2)
    whole = told(table, durations_s, tmp_path, "S40", gap_s=0.4)
    tables = by_protocol([late, whole])
    assert (tables.windows.groupby("stimulus_id")["split"].nunique() == 1).all()
    offsets = tables.windows.groupby("recording")["stimulus_id"].agg(set)
    assert offsets["S26"] < offsets["S40"]
    missed = tables.stimuli.set_index("stimulus_id").loc[sorted(offsets["S40"] - offsets["S26"])]
    assert set(missed["sound"]) == {"sound1"}


def test_eeg_and_baseline_of_a_window_are_the_published_samples(tmp_path: Path) -> None:
    table, durations_s = story_table(2), [40.0, 39.5]
    listener = told(table, durations_s, tmp_path)
    made = ListedStudy([listener])
    loose = CONFIG.splits.model_copy(update={"test": 0.5})
    data = StudyData.prepare(made, tmp_path, CONFIG.preprocessing, CONFIG.windows, loose, tmp_path / "cache")
    rows = data.indices("test")[:5]
    batch = data.batch(rows)
    scaled = data.eeg["S01"]
    for eeg, onset_s in zip(batch.eeg.numpy(), data.windows["onset_s"].iloc[rows], strict=True):
        first = round((onset_s + 0.15) * 120) - 18
        window = scaled[:, first : first + 361]
        expected = np.clip(window - window[:, :61].mean(axis=1, keepdims=True), -20, 20)[:, 18:]
        np.testing.assert_allclose(eeg, expected, atol=1e-5)
    assert batch.eeg.shape == (5, 2, 343)


def test_a_window_reaches_over_the_edges_of_its_sound_into_silence(tmp_path: Path) -> None:
    import soundfile

    tone = np.full(16_000, 0.25)
    soundfile.write(tmp_path / "tone.wav", tone, 16_000, subtype="FLOAT")
    before = audio.load(tmp_path / "tone.wav", -0.5, 1.2)
    np.testing.assert_array_equal(before, np.repeat([0.0, 0.25], [8_000, 11_200]).astype(np.float32))
    assert len(audio.load(tmp_path / "tone.wav", -0.5)) == 24_000
    assert not audio.load(tmp_path / "tone.wav", -2.0, 1.0).any()
    table = pd.DataFrame([("rabbit", 1, 0.1, 0.4, 1)], columns=["Word", "Segment", "onset", "offset", "Sentence"])
    listener = told(table, [10.0], tmp_path)
    alone = by_protocol([listener], test=0.98, valid=0.01)
    assert list(alone.stimuli["offset_s"]) == [-0.4]
    data = StudyData.prepare(
        ListedStudy([listener]), tmp_path, CONFIG.preprocessing, CONFIG.windows,
        CONFIG.splits.model_copy(update={"test": 0.01, "valid": 0.01}), tmp_path / "cache",
    )  # fmt: skip
    stored = np.load(listener.sounds["path"].iloc[0])
    for features, offset_s in zip(data.features.features, data.stimuli["offset_s"], strict=True):
        first = round(offset_s * 20)
        expected = np.pad(stored, 60)[60 + first : 60 + first + 57]
        np.testing.assert_array_equal(features[0], expected)
    assert data.stimuli["offset_s"].min() < 0
    assert data.stimuli["offset_s"].max() + CONFIG.windows.length_s > 10.0


def test_a_study_without_words_cannot_follow_it(tmp_path: Path) -> None:
    silent = recording("r", sounds(("s", 1.0, 9.0, str(tmp_path / "s.npy"), 0.0, 20.0)))
    np.save(tmp_path / "s.npy", np.random.default_rng(0).random(180, dtype=np.float32))
    with pytest.raises(UserError, match="recording r: windows.placement: brainmagick goes by words"):
        by_protocol([silent])


# Leakage: as published it does not pass, with guards it does


def test_guards_keep_the_test_windows_and_pass_the_audit(tmp_path: Path) -> None:
    table, durations_s = story_table(), [40.0, 39.5, 41.0, 39.0]
    made = ListedStudy([told(table, durations_s, tmp_path, name) for name in ("S01", "S02")])
    prepared = {}
    for guard in (False, True):
        splits = CONFIG.splits.model_copy(update={"guard": guard})
        prepared[guard] = StudyData.prepare(
            made, tmp_path, CONFIG.preprocessing, CONFIG.windows, splits, tmp_path / "cache"
        )
    passed = {guard: all(f.passed for f in data.audit) for guard, data in prepared.items()}
    assert passed == {False: False, True: True}
    tested = [set(data.windows.loc[data.indices("test"), "stimulus_id"]) for data in prepared.values()]
    assert tested[0] == tested[1]
    assert len(prepared[True].indices("train")) < len(prepared[False].indices("train"))


# Unseen listeners


@pytest.mark.parametrize("placement", ["brainmagick", None])
def test_unseen_both_is_other_listeners_and_other_speech(tmp_path: Path, placement: str | None) -> None:
    table, durations_s = story_table(), [40.0, 39.5, 41.0, 39.0]
    listeners = [told(table, durations_s, tmp_path, f"S{n:02d}", gap_s=0.1 * n) for n in range(1, 9)]
    windows = CONFIG.windows.model_copy(update={"placement": placement})
    splits = SplitConfig(by="both", seed=12, valid=0.2, test=0.3, guard=True)
    data = StudyData.prepare(
        ListedStudy(listeners), tmp_path, CONFIG.preprocessing, windows, splits, tmp_path / "cache"
    )
    by_split = {s: data.windows.iloc[data.indices(s)] for s in ("train", "valid", "test")}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not set(by_split[one]["subject"]) & set(by_split[other]["subject"])
        assert not set(by_split[one]["stimulus_id"]) & set(by_split[other]["stimulus_id"])
    assert {s: t["subject"].nunique() for s, t in by_split.items()} == {"train": 4, "valid": 2, "test": 2}
    assert all(f.passed for f in data.audit)
    assert data.dropped["blocks of another split than their listener"] > 0
    assert (data.batch(data.indices("test")[:2]).subject == -1).all()
    everybody = cut(
        "story", listeners, False, windows, SplitConfig(seed=12, valid=0.2, test=0.3, guard=True), CONFIG.preprocessing
    )
    assert set(by_split["test"]["stimulus_id"]) == set(
        everybody.stimuli[everybody.stimuli["split"] == "test"]["stimulus_id"]
    )


def test_unseen_listeners_of_known_speech_do_not_pass_the_audit(tmp_path: Path) -> None:
    table, durations_s = story_table(), [40.0, 39.5, 41.0, 39.0]
    made = ListedStudy([told(table, durations_s, tmp_path, f"S{n:02d}") for n in range(1, 6)])
    for strict in (False, True):
        splits = CONFIG.splits.model_copy(update={"by": "subject", "strict": strict})
        arguments = (made, tmp_path, CONFIG.preprocessing, CONFIG.windows, splits, tmp_path / "cache")
        if strict:
            with pytest.raises(UserError, match="the split leaks"):
                StudyData.prepare(*arguments)
            continue
        data = StudyData.prepare(*arguments)
        named = data.windows.groupby("subject")["split"].agg(set)
        assert sorted(next(iter(s)) for s in named if len(s) == 1) == ["test", "train", "train", "train", "valid"]


# The real story


@pytest.fixture(scope="module")
def alice() -> tuple[pd.DataFrame, list[float]]:
    if not (REAL / "AliceChapterOne-EEG.csv").is_file():
        pytest.skip("no real word table beside the repository")
    table = pd.read_csv(REAL / "AliceChapterOne-EEG.csv")
    grids = [read_tiers(REAL / "textgrids" / f"DownTheRabbitHoleFinal_SoundFile{n}.TextGrid") for n in range(1, 13)]
    return table, [grid["words"][-1][1] for grid in grids]


@pytest.mark.parametrize("gap_s", [0.0, 0.7, 4.0])
def test_the_real_story_has_190_test_segments(
    alice: tuple[pd.DataFrame, list[float]], tmp_path: Path, gap_s: float
) -> None:
    table, durations_s = alice
    expected = published(table, durations_s, gap_s)
    assert len(expected["tested"]) == 190
    assert expected["splits"].count("test") == 6
    tables = by_protocol([told(table, durations_s, tmp_path, gap_s=gap_s)])
    tested = tables.windows[tables.windows["split"] == "test"]
    assert len(tested) == 190
    assert tested["stimulus_id"].nunique() == 190
    begins = 5.0 + np.cumsum([0.0, *(d + gap_s for d in durations_s[:-1])])
    onsets = begins[table["Segment"] - 1] + table["onset"].to_numpy()
    np.testing.assert_allclose(tested["onset_s"] + 0.5, onsets[expected["tested"]], atol=5.1e-4)


DIGEST = """
import pickle, sys
import pandas as pd
from eeg2speech.data.windows import cut
with open(sys.argv[1], "rb") as file:
    print(pd.util.hash_pandas_object(cut(*pickle.load(file)).windows, index=False).sum())
"""


def test_the_split_is_the_same_in_another_process(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    real = (REAL / "AliceChapterOne-EEG.csv").is_file()
    table, durations_s = request.getfixturevalue("alice") if real else (story_table(), [40.0, 39.5, 41.0, 39.0])
    listener = told(table, durations_s, tmp_path)
    here = by_protocol([listener]).windows
    pd.testing.assert_frame_equal(here, by_protocol([listener]).windows)
    arguments = ("story", [listener], False, CONFIG.windows, CONFIG.splits, CONFIG.preprocessing)
    (tmp_path / "arguments.pkl").write_bytes(pickle.dumps(arguments))
    command = [sys.executable, "-c", DIGEST, str(tmp_path / "arguments.pkl")]
    other = {**os.environ, "PYTHONHASHSEED": "7"}
    said = subprocess.run(command, cwd=ROOT, env=other, capture_output=True, text=True, check=True).stdout
    assert int(said) == int(pd.util.hash_pandas_object(here, index=False).sum())
