"""Windows of hand-made recordings: where they start, what they say, what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_fixture import recording, sentence_study, sounds, story_study, words, write_envelope, write_noise

from eeg2speech.data.base import Recording
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import Cut, WindowConfig, _Words, blocks, cut
from eeg2speech.errors import UserError


def sliced(
    recordings: list[Recording], isolated: bool, windows: WindowConfig | None = None, splits: SplitConfig | None = None
) -> Cut:
    return cut("toy", recordings, isolated, windows or WindowConfig(), splits or SplitConfig(), PreprocessingConfig())


# Isolated sentences


def test_a_sentence_is_one_window_shared_by_its_listeners(tmp_path: Path) -> None:
    study = sentence_study(tmp_path, n_sentences=12)
    tables = sliced(study.recordings, isolated=True)
    assert len(tables.stimuli) == 12
    assert len(tables.windows) == 24
    for window in tables.windows.itertuples():
        source = next(r for r in study.recordings if r.recording == window.recording)
        sound = source.sounds[np.isclose(source.sounds["onset_s"], window.onset_s)].iloc[0]
        stimulus = tables.stimuli.loc[window.stimulus]
        number = sound["sound"][1:]
        assert window.text == " ".join(f"w{number}.{k}" for k in range(5)) == stimulus["text"]
        assert stimulus["path"] == sound["path"]
        assert stimulus["stimulus_id"] == window.stimulus_id
        assert (stimulus["duration_s"], window.length_s) == (2.0, 3.0)
        assert window.split == stimulus["split"]


def test_long_reading_is_refused_by_name(tmp_path: Path) -> None:
    path = write_noise(tmp_path, "saga", 2.7, 0)
    source = recording("rec9", sounds(("saga", 1.0, 2.7, path, 0.0, np.nan)))
    with pytest.raises(UserError, match=r"recording rec9: the reading saga lasts 2\.70 s"):
        sliced([source], isolated=True)
    assert len(sliced([source], True, WindowConfig(max_reading_s=2.8)).windows) == 1


def test_same_audio_under_another_name_is_the_same_stimulus(tmp_path: Path) -> None:
    paths = [write_noise(tmp_path / k, k, 2.0, seed=3) for k in ("a", "b")]
    heard = sounds(("a", 1.0, 2.0, paths[0], 0.0, np.nan), ("b", 6.0, 2.0, paths[1], 0.0, np.nan))
    tables = sliced([recording("r", heard)], isolated=True)
    assert len(tables.stimuli) == 1
    assert list(tables.windows["stimulus"]) == [0, 0]


def test_eeg_outside_the_recording_is_dropped_and_counted(tmp_path: Path) -> None:
    path = write_noise(tmp_path, "s", 2.0, 0)
    onsets = (-0.2, -0.1, 5.0, 6.84, 6.86, 9.5)
    heard = sounds(*(("s", t, 2.0, path, 0.0, np.nan) for t in onsets))
    tables = sliced([recording("r", heard, duration_s=10.0)], isolated=True)
    # the EEG of onset o is [o + 0.15, o + 3.15), and the recording [0, 10)
    assert list(tables.windows["onset_s"]) == [-0.1, 5.0, 6.84]
    assert tables.dropped == {"EEG outside the recording": 3}


@pytest.mark.parametrize("isolated", [True, False])
def test_a_recording_at_the_wrong_rate_is_refused_where_its_sounds_play_on_after_it(
    tmp_path: Path, isolated: bool
) -> None:
    """Of 128 Hz and read at 256 Hz, it is half as long as what was heard in it."""
    lasts, onsets, lost = (2.0, 5 + 4 * np.arange(15), "14 of the 30") if isolated else (60.0, [5], "30 of the 60")
    path = write_noise(tmp_path, "s", lasts, 0)
    heard = sounds(*(("s", float(t), lasts, path, 0.0, np.nan) for t in onsets))
    splits = SplitConfig(block_s=60.0, guard=False)
    assert sliced([recording("r", heard, duration_s=70.0)], isolated, splits=splits).dropped == {}
    with pytest.raises(
        UserError, match=f"recording r: {lost} s of its sounds lie outside of its EEG, which lasts 35 s at"
    ):
        sliced([recording("r", heard, duration_s=35.0)], isolated, splits=splits)


def test_eeg_that_ends_soon_after_each_sound_is_no_mistake(tmp_path: Path) -> None:
    path = write_noise(tmp_path, "s", 2.0, 0)
    heard = sounds(("s", 0.5, 2.0, path, 0.0, np.nan))
    parts = [recording(name, heard, duration_s=lasts) for name, lasts in (("long", 4.0), ("short", 2.4))]
    assert sliced(parts, isolated=True).dropped == {"EEG outside the recording": 1}


def test_nothing_to_cut_is_an_error(tmp_path: Path) -> None:
    path = write_noise(tmp_path, "s", 2.0, 0)
    with pytest.raises(UserError, match="study toy: not one window"):
        sliced([recording("r", sounds(("s", 50.0, 2.0, path, 0.0, np.nan)), duration_s=10.0)], isolated=True)


def test_recordings_must_have_names_of_their_own(tmp_path: Path) -> None:
    heard = sounds(("s", 1.0, 2.0, write_noise(tmp_path, "s", 2.0, 0), 0.0, np.nan))
    with pytest.raises(UserError, match="2 recordings are named same"):
        sliced([recording("same", heard, subject=s) for s in ("a", "b")], isolated=True)


def test_sentences_cannot_be_split_by_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"splits\.by: time"):
        sliced(sentence_study(tmp_path, 4).recordings, True, splits=SplitConfig(by="time"))


# Continuous speech


def test_sentences_merge_into_blocks_longer_than_asked() -> None:
    # sentences of 3, 4, 2, 7 and 1 s: 3 + 4 > 6, then 2 + 7 > 6, then the rest
    spans = [(0.5, 3.5), (3.5, 7.5), (7.5, 9.5), (9.5, 16.5), (16.5, 17.5)]
    half = [(a, (a + b) / 2) for a, b in spans] + [((a + b) / 2, b) for a, b in spans]
    starts, stops = (np.array(sorted(column)) for column in zip(*half, strict=True))
    spoken = _Words([f"w{k}" for k in range(10)], starts, stops, np.repeat(np.arange(5), 2))
    assert blocks(spoken, 20.0, 6.0, "x") == [
        (0.5, 7.5, "w0 w1,w2 w3"),
        (7.5, 16.5, "w4 w5,w6 w7"),
        (16.5, 20.0, "w8 w9"),
    ]


def test_blocks_without_words_are_equal_stretches() -> None:
    silent = _Words([], np.array([]), np.array([]), np.array([]))
    assert blocks(silent, 20.0, 6.0, "id") == [
        (0.0, pytest.approx(20 / 3), "id+0.000"),
        (pytest.approx(20 / 3), pytest.approx(40 / 3), "id+6.667"),
        (pytest.approx(40 / 3), 20.0, "id+13.333"),
    ]


def test_windows_stay_in_their_block_at_the_stride_of_their_split(tmp_path: Path) -> None:
    study = story_study(tmp_path)
    tables = sliced(study.recordings, False, splits=SplitConfig(gap_s=0.0))
    # sentences of 4 s merge in pairs: blocks [0, 8), [8, 16), ...
    place = tables.stimuli["offset_s"] % 8
    assert place.max() <= 5.0
    test = (tables.stimuli["split"] == "test").to_numpy()
    assert set(place[test]) == {0.0, 3.0}
    # a train block next to another split loses its outermost windows to the filter edges, never more
    assert set(place[~test]) <= set(np.arange(0.0, 5.1, 0.5))
    by_block = tables.stimuli.groupby(tables.stimuli["offset_s"] // 8)["split"].nunique()
    assert (by_block == 1).all()


def test_listeners_share_stimuli_though_their_onsets_differ(tmp_path: Path) -> None:
    tables = sliced(story_study(tmp_path, subjects=("ann", "bob", "cyd")).recordings, False)
    assert (tables.windows.groupby("stimulus_id")["subject"].nunique() == 3).all()
    lead_s = tables.windows["onset_s"] - tables.stimuli["offset_s"].to_numpy()[tables.windows["stimulus"]]
    assert sorted(set(lead_s.round(6))) == [1.0, 2.0, 3.0]


def test_reference_words_are_those_wholly_inside(tmp_path: Path) -> None:
    path = write_envelope(tmp_path, "s", 9.0, 0)
    spoken = words(("early", 9.9, 0.3, 0), ("one", 10.0, 0.4, 0), ("two", 12.7, 0.3, 0), ("cut", 12.9, 0.2, 0))
    source = recording("r", sounds(("s", 10.0, 9.0, path, 0.0, 64.0)), spoken)
    tables = sliced([source], False, WindowConfig(stride_s=3.0), SplitConfig(block_s=100.0))
    assert list(tables.windows.sort_values("onset_s")["text"]) == ["one two", "", ""]


def test_splits_keep_their_distance(tmp_path: Path) -> None:
    for splits in (SplitConfig(), SplitConfig(by="time"), SplitConfig(by="time", n_folds=5, fold=2)):
        tables = sliced(story_study(tmp_path).recordings, False, splits=splits)
        onset, split = tables.stimuli["offset_s"].to_numpy(), tables.stimuli["split"].to_numpy()
        apart = np.abs(onset[:, None] - onset)[split[:, None] != split]
        # from one onset to the next: the window and, between windows of two splits, another window length
        assert apart.min() >= 6.0
        assert set(split) == {"train", "valid", "test"}
    assert tables.dropped["too near to another split"] > 0


def test_folds_test_every_second_once(tmp_path: Path) -> None:
    starts = []
    for fold in range(5):
        config = SplitConfig(by="time", n_folds=5, fold=fold)
        tables = sliced(story_study(tmp_path).recordings, False, splits=config)
        starts += tables.stimuli.loc[tables.stimuli["split"] == "test", "offset_s"].tolist()
    assert sorted(starts) == [60.0 * fold + 3.0 * k for fold in range(5) for k in range(20)]


def test_playback_from_the_middle_of_a_file_is_the_same_speech(tmp_path: Path) -> None:
    path = write_envelope(tmp_path, "s", 60.0, 0)
    whole = recording("whole", sounds(("s", 1.0, 60.0, path, 0.0, 64.0)))
    part = recording("part", sounds(("s", 2.0, 24.0, path, 12.0, 64.0)))
    tables = sliced([whole, part], False, splits=SplitConfig(block_s=100.0))
    heard = tables.windows.assign(offset_s=tables.stimuli["offset_s"].to_numpy()[tables.windows["stimulus"]])
    lead_s = heard["onset_s"] - heard["offset_s"]
    assert set(lead_s[heard["recording"] == "whole"].round(6)) == {1.0}
    assert set(lead_s[heard["recording"] == "part"].round(6)) == {-10.0}
