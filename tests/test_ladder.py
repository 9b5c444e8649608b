"""The ridge ladder against normal equations, numpy's correlation and brute-force resampling."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter1d

from eeg2speech import __main__ as command
from eeg2speech.data import forward_model, ladder, matrix, simulation, speech_corpus
from eeg2speech.files import sha256

SFREQ = 128.0
N_SENTENCES = 40


def spoken(rng: np.random.Generator) -> np.ndarray:
    """(32, n): levels that go together and apart as those of speech do, with their onsets."""
    n = int(rng.integers(200, 330))
    loud = gaussian_filter1d(rng.standard_normal(n), 8.0)
    levels = np.maximum(0.0, 1.0 + loud + gaussian_filter1d(rng.standard_normal((forward_model.N_BANDS, n)), 6.0) * 2)
    onsets = np.maximum(0.0, np.diff(levels, axis=1, prepend=0.0)) * 4
    return np.concatenate([levels, onsets]).astype(np.float32)


@pytest.fixture(scope="module")
def heard() -> tuple[list[np.ndarray], simulation.Session]:
    rng = np.random.default_rng(0)
    features = [spoken(rng) for _ in range(N_SENTENCES)]
    with ThreadPoolExecutor(1) as pool:
        (session,) = simulation.listen(features, matrix.sensor_positions()[::3], SFREQ, 1, 0, 0, pool)
    return features, session


def test_ridge_solves_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12))
    y = rng.standard_normal((200, 3))
    penalties = np.array([1e-3, 1.0, 30.0])
    for penalty, found in zip(penalties, ladder.ridge(x, y, penalties), strict=True):
        amount = penalty * np.trace(x.T @ x) / 12
        np.testing.assert_allclose(found, np.linalg.solve(x.T @ x + amount * np.eye(12), x.T @ y), rtol=1e-8)


def test_correlation_and_its_interval_are_those_of_pooled_sentences() -> None:
    rng = np.random.default_rng(1)
    sentence = np.repeat(np.arange(30), rng.integers(20, 60, 30))
    shared = rng.standard_normal((30, 1))[sentence]
    truth = shared + rng.standard_normal((len(sentence), 4))
    estimate = truth + shared + 2.0 * rng.standard_normal(truth.shape)

    def by_numpy(rows: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(truth[rows, k], estimate[rows, k])[0, 1] for k in range(4)]))

    score = ladder.correlation(truth, estimate, sentence)
    assert score.r == pytest.approx(by_numpy(np.arange(len(sentence))))
    places = [np.flatnonzero(sentence == k) for k in range(30)]
    drawn = [by_numpy(np.concatenate([places[k] for k in rng.integers(0, 30, 30)])) for _ in range(600)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert score.low == pytest.approx(low, abs=0.2 * (high - low))
    assert score.high == pytest.approx(high, abs=0.2 * (high - low))


def test_predictors_and_levels_are_of_the_same_moment(heard: tuple[list[np.ndarray], simulation.Session]) -> None:
    """An EEG that repeats band 3 on channel 0, and repeats it 200 ms late on channel 1."""
    features, session = heard
    eeg = np.random.default_rng(0).standard_normal(session.background.shape).astype(np.float32) * 1e-6
    late = round(0.2 * SFREQ)
    for which, onset in zip(session.sentences, session.onsets, strict=True):
        level = features[which][3]
        eeg[0, onset : onset + len(level)] += 1e-3 * level
        eeg[1, onset + late : onset + late + len(level)] += 1e-3 * level
    frames = ladder.cut(eeg, session, features, SFREQ)
    n_lags = frames.eeg.shape[1] // len(eeg)
    best = [np.argmax([np.corrcoef(frames.eeg[:, c * n_lags + k], frames.levels[:, 3])[0, 1] for k in range(n_lags)])
            for c in (0, 1)]  # fmt: skip
    assert best == [0, round(0.2 * SFREQ / ladder.DECIMATION)]
    assert frames.levels.shape == (len(frames.eeg), forward_model.N_BANDS)
    sizes = np.bincount(frames.sentence)
    assert abs(sizes - [features[k].shape[1] / 2 for k in session.sentences]).max() <= 1


def test_bands_separate_where_there_is_signal_and_nowhere_else(
    heard: tuple[list[np.ndarray], simulation.Session],
) -> None:
    features, session = heard

    def climb(level_db: float) -> tuple[ladder.Score, ladder.Score]:
        eeg = session.eeg(simulation.gain(level_db, [session]))
        return ladder.decode(ladder.cut(eeg, session, features, SFREQ), N_SENTENCES)[1:]

    (band, contrast), (null_band, null_contrast) = climb(20.0), climb(-math.inf)
    assert contrast.low > 0.5
    assert band.low > 0.5
    for null in (null_band, null_contrast):
        assert abs(null.r) < 0.1
        assert null.low - 0.03 < 0.0 < null.high + 0.03


def test_test_sentences_are_not_fitted(
    heard: tuple[list[np.ndarray], simulation.Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, session = heard
    frames = ladder.cut(session.eeg(0.0), session, features, SFREQ)
    rows: dict[str, set[bytes]] = {"fit": set(), "scored": set()}
    ridge, correlation = ladder.ridge, ladder.correlation

    def fit(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> np.ndarray:
        rows["fit"] = {row.tobytes() for row in x[:, :30]}
        return ridge(x, y, penalties)

    seen: list[set[int]] = []

    def score(truth: np.ndarray, estimate: np.ndarray, sentence: np.ndarray) -> ladder.Score:
        seen.append(set(sentence.tolist()))
        return correlation(truth, estimate, sentence)

    monkeypatch.setattr(ladder, "ridge", fit)
    monkeypatch.setattr(ladder, "correlation", score)
    ladder.decode(frames, N_SENTENCES)
    chosen_on, tested_on = seen[0], seen[-1]
    fitted = {
        int(s) for row, s in zip(frames.eeg[:, :30], frames.sentence, strict=True) if row.tobytes() in rows["fit"]
    }
    assert [len(fitted), len(chosen_on), len(tested_on)] == [26, 6, 8]
    assert len(fitted | chosen_on | tested_on) == 40, "no sentence is in two parts"


def test_the_command_publishes_a_table_and_what_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    monkeypatch.setattr(speech_corpus, "synthesise", lambda texts, *_: pd.DataFrame({"text": texts}))
    monkeypatch.setattr(speech_corpus, "features", lambda table, *_: [spoken(rng) for _ in range(len(table))])
    monkeypatch.setattr(ladder, "PENALTIES", np.array([0.1]))
    everywhere = matrix.sensor_positions()
    monkeypatch.setattr(matrix, "sensor_positions", lambda: everywhere[::4])
    monkeypatch.setattr(ladder.climb, "__defaults__", ((-math.inf, 10.0),))
    assert command.main(["ladder", "--sentences", "20", "--output", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "ridge.csv")
    assert table["snr_db"].tolist() == [-math.inf, 10.0]
    assert (table["band_low"] <= table["band_r"]).all()
    assert (table["band_r"] <= table["band_high"]).all()
    provenance = json.loads((tmp_path / "ridge.json").read_text())
    assert provenance["sha256"]["ridge.csv"] == sha256(tmp_path / "ridge.csv")
    assert provenance["study"]["n_sentences"] == 20
    printed = capsys.readouterr()
    assert "contrast_r" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("arguments", [["--sentences", "19"], ["--seed", "-1"]])
def test_a_ladder_that_cannot_be_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["ladder", *arguments, "--output", str(tmp_path)]) == 2
    assert "--sentences must be at least 20 and --seed at least 0" in capsys.readouterr().err


def test_the_published_ladder_is_of_this_study_and_the_page_quotes_it() -> None:
    root = Path(__file__).parents[1]
    folder = root / "reports" / "published" / "ladder"
    provenance = json.loads((folder / "ridge.json").read_text())
    assert provenance["sha256"]["ridge.csv"] == sha256(folder / "ridge.csv")
    assert provenance["study"]["format"] == matrix.FORMAT, "the study has changed: run `python -m eeg2speech ladder`"
    page = (root / "docs" / "embedded_study.md").read_text(encoding="utf-8")
    quoted = [line.split("|")[1:4] for line in page.splitlines() if " to " in line and line.startswith("| ")]
    table = pd.read_csv(folder / "ridge.csv")
    assert [float(row[0].replace("-∞", "-inf")) for row in quoted] == table["snr_db"].tolist()
    for name, column in (("band", 1), ("contrast", 2)):
        numbers = [[float(word.strip("()")) for word in row[column].split() if word != "to"] for row in quoted]
        published = table[[f"{name}_r", f"{name}_low", f"{name}_high"]].to_numpy()
        np.testing.assert_allclose(numbers, published, atol=0.0051)
