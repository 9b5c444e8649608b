"""Controls against routes that are not neural: what each hears, and that no default run changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eeg2speech.errors import UserError
from eeg2speech.evaluation import EvaluationConfig
from eeg2speech.training.run import Trained
from eval.controls import CONTROLS, shifted_starts
from eval.runner import chosen_systems, make_bench
from eval.systems import SYSTEMS, Bench
from tests.data_fixture import ListedStudy, sentence_study, story_study
from tests.model_fixture import tiny_trained
from tests.test_systems import config


def study_with_eyes(folder: Path) -> ListedStudy:
    study = sentence_study(folder, 30)
    study.recordings = [replace(r, ch_names=("Fp1", "Cz")) for r in study.recordings]
    return study


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("controls")
    return tiny_trained(study_with_eyes(folder / "sounds"), folder)


@pytest.fixture(scope="module")
def bench(trained: Trained) -> Bench:
    return make_bench(config(max_stimuli=None), trained)


def test_controls_are_added_by_name_and_the_ten_stay_the_default() -> None:
    chosen = chosen_systems(config(controls=["eyes", "shifted"]))
    assert [s.name for s in chosen] == [*SYSTEMS, "eyes", "shifted"]
    assert {s.role for s in chosen[-2:]} == {"floor"}
    assert not set(CONTROLS) & set(SYSTEMS)
    with pytest.raises(UserError, match=r"evaluation\.controls: charm is unknown; choose among shifted, eyes"):
        chosen_systems(config(controls=["charm"]))
    assert "controls" not in EvaluationConfig().model_dump(mode="json"), "runs from before keep their hashes"


def test_shifted_hears_the_recording_rolled_round(trained: Trained, bench: Bench) -> None:
    """The same slices of a copy of each recording that numpy.roll has shifted."""
    data = trained.data
    heard = torch.cat([b.eeg for b in CONTROLS["shifted"].heard(bench)])  # type: ignore[attr-defined]
    starts, moved = data.starts(bench.windows), shifted_starts(bench)
    names = data.windows["recording"].to_numpy()[bench.windows]
    n_before = data.preprocessing.baseline[0]
    for name in set(names):
        rows = np.flatnonzero(names == name)
        usable = data.eeg[name].shape[1] - data.n_times + 1
        shifts = set(((moved - starts)[rows] % usable).tolist())
        assert len(shifts) == 1, "one shift for each recording"
        (shift,) = shifts
        assert usable // 4 <= shift < 3 * usable // 4
        for row in rows[:5]:
            if moved[row] < starts[row] or moved[row] < n_before:
                continue  # past the end, where what does not hold a whole window is left out
            rolled = np.roll(data.eeg[name], -shift, axis=1)
            part = rolled[:, starts[row] - n_before : starts[row] + data.n_times] if starts[row] >= n_before else None
            if part is not None:
                wanted = part[:, n_before:] - part[:, :n_before].mean(axis=1, keepdims=True)
                np.testing.assert_allclose(heard[row], wanted.clip(-20, 20), atol=1e-5)
    own = torch.cat([b.eeg for b in bench.batches(bench.windows)])
    assert not (heard == own).flatten(1).all(dim=1).any()


def test_every_shifted_window_lies_in_its_recording_and_off_itself(trained: Trained, bench: Bench) -> None:
    data = trained.data
    starts, moved = data.starts(bench.windows), shifted_starts(bench)
    lengths = np.array([data.eeg[n].shape[1] for n in data.windows["recording"].to_numpy()[bench.windows]])
    assert ((moved >= 0) & (moved + data.n_times <= lengths)).all()
    assert (abs(moved - starts) >= data.n_times).all()
    assert (shifted_starts(replace(bench, seed=1)) != moved).any()


def test_a_recording_too_short_to_shift_is_named(trained: Trained) -> None:
    data = trained.data
    name = next(iter(data.eeg))
    short = replace(data, eeg=data.eeg | {name: data.eeg[name][:, : 4 * data.n_times]})
    with pytest.raises(UserError, match=rf"recording {name} is too short to be shifted"):
        shifted_starts(make_bench(config(max_stimuli=None), replace(trained, data=short)))


def test_eyes_hears_the_channels_at_the_eyes_and_no_others(trained: Trained, bench: Bench) -> None:
    own = torch.cat([b.eeg for b in bench.batches(bench.windows)])
    batches = list(CONTROLS["eyes"].heard(bench))  # type: ignore[attr-defined]
    heard = torch.cat([b.eeg for b in batches])
    torch.testing.assert_close(heard[:, 0], own[:, 0])
    assert (heard[:, 1] == 0).all()
    assert torch.cat([b.positions for b in batches])[:, 1].isnan().all()
    output = CONTROLS["eyes"].run(bench)
    assert output.estimate is not None
    assert np.isfinite(output.estimate).all()
    assert output.waveform is not None
    assert np.isfinite(output.waveform).all()


def test_without_eyes_the_row_says_so(tmp_path: Path) -> None:
    bench = make_bench(
        config(max_stimuli=None), tiny_trained(sentence_study(tmp_path / "sounds", 30), tmp_path)
    )  # fmt: skip
    output = CONTROLS["eyes"].run(bench)
    assert output.estimate is None
    assert output.waveform is None
    assert "recording ann has no channel named EOG" in (output.waveform_reason or "")


def test_without_audio_both_still_have_an_estimate(tmp_path: Path) -> None:
    study = story_study(tmp_path)
    study.recordings = [replace(r, ch_names=("Fp1", "Cz")) for r in study.recordings]
    bench = make_bench(config(max_stimuli=None), tiny_trained(study, tmp_path))
    for system in CONTROLS.values():
        output = system.run(bench)
        assert output.waveform_reason == "the study has no audio"
        assert output.estimate is not None
