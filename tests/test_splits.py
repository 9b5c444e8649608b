"""The rule that divides speech, and an audit that must catch every leak made by hand."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pandas as pd
import pytest
from data_fixture import recording, sounds, words, write_envelope
from hypothesis import given
from hypothesis import strategies as st

from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SPLITS, SplitConfig, audit, require_clean, split_names, split_of, stretches, too_near
from eeg2speech.data.windows import WindowConfig, cut
from eeg2speech.errors import UserError


def test_split_is_the_published_rule() -> None:
    """random.Random(int(sha256(uid), 16) + seed).random() over cumulative test, valid, train."""
    config = SplitConfig(seed=12)
    for uid in ("Alice was beginning to get very tired,of sitting by her sister", "", "Zwölf Boxkämpfer"):
        draw = random.Random(int(hashlib.sha256(uid.encode()).hexdigest(), 16) + 12).random()
        expected = next(name for name, limit in (("test", 0.2), ("valid", 0.3), ("train", 1.0)) if draw < limit)
        assert split_of(uid, config) == expected


def test_shares_are_as_asked() -> None:
    config = SplitConfig(valid=0.25, test=0.15, seed=3)
    splits = [split_of(f"sentence {k}", config) for k in range(20_000)]
    shares = {name: splits.count(name) / len(splits) for name in SPLITS}
    assert shares == pytest.approx({"train": 0.6, "valid": 0.25, "test": 0.15}, abs=0.012)  # four standard errors
    assert splits != [split_of(f"sentence {k}", SplitConfig(valid=0.25, test=0.15, seed=4)) for k in range(20_000)]


@pytest.mark.parametrize("n", [3, 4, 8, 50])
def test_names_fill_every_split(n: int) -> None:
    named = split_names([f"S{k}" for k in range(n)], SplitConfig())
    counts = {name: list(named.values()).count(name) for name in SPLITS}
    assert counts["test"] == max(1, round(0.2 * n))
    assert counts["valid"] == max(1, round(0.1 * n))
    assert sum(counts.values()) == n


def test_stretches_by_hand() -> None:
    parts = stretches(50.0, 3.0, SplitConfig(by="time"))
    assert [(pytest.approx(a), pytest.approx(b), s) for a, b, s in parts] == [
        (0.0, 29.0, "train"),
        (32.0, 37.0, "valid"),
        (40.0, 50.0, "test"),
    ]
    assert [split for _, _, split in stretches(50.0, 3.0, SplitConfig(by="time", n_folds=4, fold=3))] == [
        "valid",
        "train",
        "train",
        "test",
    ]


@pytest.mark.parametrize(
    "fields", [{"valid": 0.5, "test": 0.5}, {"n_folds": 5}, {"by": "time", "n_folds": 3, "fold": 3}, {"seeds": 1}]
)
def test_impossible_splits_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="valid|fold|seeds"):
        SplitConfig.model_validate(fields)


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from(SPLITS)), min_size=1, max_size=40), st.integers(1, 9))
def test_too_near_is_the_nearest_neighbour_of_a_higher_split(windows: list[tuple[int, str]], distance: int) -> None:
    start, split = np.array([w[0] for w in windows], dtype=float), np.array([w[1] for w in windows])
    rank = {name: k for k, name in enumerate(SPLITS)}
    expected = [
        any(rank[b] > rank[a] and abs(s - t) < distance for t, b in zip(start, split, strict=True))
        for s, a in zip(start, split, strict=True)
    ]
    assert too_near(start, split, distance).tolist() == expected


# The audit

Tables = dict[str, object]


def clean_tables() -> Tables:
    """Six isolated sentences heard by two listeners, 5 s from onset to onset."""
    stimuli = pd.DataFrame(
        {
            "stimulus_id": [f"id{k}" for k in range(6)],
            "audio": [f"{k}" * 64 for k in range(6)],
            "sound": [f"s{k}" for k in range(6)],
            "offset_s": 0.0,
            "duration_s": 2.0,
            "content": [f"hash{k}" for k in range(6)],
            "split": ["train", "train", "train", "valid", "test", "test"],
            "text": [f"Peter sees {k} boats" for k in range(6)],
        }
    )
    order = [0, 1, 2, 3, 4, 5, 5, 3, 1, 0, 2, 4]
    windows = pd.DataFrame(
        {
            "recording": ["r1"] * 6 + ["r2"] * 6,
            "subject": ["a"] * 6 + ["b"] * 6,
            "stimulus": order,
            "stimulus_id": [f"id{k}" for k in order],
            "onset_s": np.tile(1.0 + 5.0 * np.arange(6), 2),
            "length_s": 3.0,
            "text": stimuli["text"].to_numpy()[order],
            "split": stimuli["split"].to_numpy()[order],
        }
    )
    train = windows["split"] == "train"
    fitted = {
        name: [(t + 0.15, t + 3.15) for t in windows.loc[train & (windows["recording"] == name), "onset_s"]]
        for name in ("r1", "r2")
    }
    used = {"encoder train": np.flatnonzero(train), "diffusion test": np.flatnonzero(windows["split"] == "test")}
    return {"stimuli": stimuli, "windows": windows, "fitted": fitted, "used": used, "isolated": True, "edge_s": 0.1}


def failed(tables: Tables) -> set[str]:
    findings = audit(**tables, length_s=3.0, shift_s=0.15)  # type: ignore[arg-type]
    assert len(findings) == 8
    assert all(finding.detail for finding in findings)
    return {finding.check for finding in findings if not finding.passed}


def test_clean_tables_pass() -> None:
    assert failed(clean_tables()) == set()


def relabel(tables: Tables, rows: list[int], split: str) -> None:
    tables["windows"].loc[rows, "split"] = split  # type: ignore[attr-defined]


def leak_same_stimulus(tables: Tables) -> None:
    relabel(tables, [9], "test")  # listener b's hearing of sentence 0, which a trains on


def leak_overlapping_interval(tables: Tables) -> None:
    tables["stimuli"].loc[4, ["audio", "offset_s"]] = ["0" * 64, 1.9]  # type: ignore[attr-defined]


def leak_duplicated_audio(tables: Tables) -> None:
    tables["stimuli"].loc[5, "content"] = "hash1"  # type: ignore[attr-defined]


def leak_shared_text(tables: Tables) -> None:
    tables["windows"].loc[[4, 11], "text"] = "peter  sees 0 BOATS."  # type: ignore[attr-defined]


def leak_time_overlap(tables: Tables) -> None:
    tables["windows"].loc[3, "onset_s"] = 11.0 + 3.1  # type: ignore[attr-defined]  # 0.1 s after a train window ends


def leak_scaler(tables: Tables) -> None:
    tables["fitted"]["r2"].append((0.0, 1.2))  # type: ignore[index]


def leak_empty_split(tables: Tables) -> None:
    relabel(tables, [3, 7], "test")


def leak_variable_length(tables: Tables) -> None:
    tables["windows"].loc[2, "length_s"] = 2.4  # type: ignore[attr-defined]


def leak_stage(tables: Tables) -> None:
    tables["used"]["encoder train"] = np.append(tables["used"]["encoder train"], 4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("leak", "check"),
    [
        (leak_same_stimulus, "shared stimulus identity"),
        (leak_overlapping_interval, "shared stimulus identity"),
        (leak_duplicated_audio, "duplicated audio"),
        (leak_shared_text, "shared text"),
        (leak_time_overlap, "time overlap"),
        (leak_scaler, "scaler fitted on train only"),
        (leak_empty_split, "three different splits"),
        (leak_variable_length, "one window length"),
        (leak_stage, "encoder-train against diffusion-test"),
    ],
)
def test_every_leak_is_caught(leak: object, check: str) -> None:
    tables = clean_tables()
    leak(tables)  # type: ignore[operator]
    assert check in failed(tables)


def test_valid_that_is_test_is_caught() -> None:
    tables = clean_tables()
    again = tables["windows"].query("split == 'test'").assign(split="valid", recording="r3")  # type: ignore[attr-defined]
    kept = tables["windows"].query("split != 'valid'")  # type: ignore[attr-defined]
    tables["windows"] = pd.concat([kept, again], ignore_index=True)
    tables["used"] = {}
    findings = audit(**tables, length_s=3.0, shift_s=0.15)  # type: ignore[arg-type]
    three = next(f for f in findings if f.check == "three different splits")
    assert not three.passed
    assert "valid == test" in three.detail


def test_in_one_story_splits_need_a_window_between_them() -> None:
    def story(gap_s: float) -> set[str]:
        tables = clean_tables()
        # a train window ends at 13 s of the story; valid starts gap_s later, test long after
        tables["stimuli"] = tables["stimuli"].assign(  # type: ignore[attr-defined]
            audio="a" * 64, duration_s=3.0, offset_s=[0.0, 5.0, 10.0, 13.0 + gap_s, 40.0, 45.0]
        )
        return failed(tables | {"isolated": False})

    assert story(3.19) == {"shared stimulus identity"}
    assert story(3.21) == set()


def test_a_failed_audit_says_what_and_how_to_go_on() -> None:
    tables = clean_tables()
    leak_scaler(tables)
    with pytest.raises(
        UserError, match=r"scaler fitted on train only \(1 cases, such as 0\.00-1\.20 s of r2\).*splits"
    ):
        require_clean(audit(**tables, length_s=3.0, shift_s=0.15))  # type: ignore[arg-type]


def test_an_empty_split_is_too_little_speech_and_no_leak() -> None:
    tables = clean_tables()
    leak_empty_split(tables)
    with pytest.raises(UserError, match=r"^valid without a window: there is too little speech.*block_s.*splits\.valid"):
        require_clean(audit(**tables, length_s=3.0, shift_s=0.15))  # type: ignore[arg-type]
    leak_scaler(tables)
    with pytest.raises(UserError, match=r"the split leaks: scaler.*valid without a window"):
        require_clean(audit(**tables, length_s=3.0, shift_s=0.15))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("voices")
    return [write_envelope(folder, f"v{k}", 30.0, k) for k in range(6)]


@given(st.data())
def test_by_stimulus_no_speech_is_ever_in_two_splits(voices: list[str], data: st.DataObject) -> None:
    """Whatever was played to whom, in which order and from where in the file."""
    recordings = []
    for name in ("r1", "r2", "r3"):
        played = data.draw(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 6.0])), min_size=1, max_size=4))
        onsets = 1.0 + 31.0 * np.arange(len(played))
        rows = [(f"{name}{k}", t, 24.0, voices[k], skip, 64.0) for (k, skip), t in zip(played, onsets, strict=True)]
        spoken = [
            (f"w{k}.{skip + n:g}", t + n, 0.9, 100 * place + n // 5)
            for place, ((k, skip), t) in enumerate(zip(played, onsets, strict=True))
            for n in range(24)
            if k % 2  # half the voices have a transcript
        ]
        recordings.append(recording(name, sounds(*rows), words(*spoken)))
    splits = SplitConfig(seed=data.draw(st.integers(0, 99)), test=0.4, valid=0.2)
    tables = cut("toy", recordings, False, WindowConfig(), splits, PreprocessingConfig())
    stimuli = tables.stimuli.assign(content=tables.stimuli["stimulus_id"])
    findings = audit(
        stimuli, tables.windows, isolated=False, length_s=3.0, shift_s=0.15, edge_s=0.0, fitted={}, used={}
    )
    verdict = {f.check: f.passed for f in findings}
    assert set(stimuli["split"]) <= set(SPLITS)
    assert verdict["shared stimulus identity"]
    assert verdict["time overlap"]
