"""The configs of real studies: full size and small, each of which reads its study from files."""

from __future__ import annotations

from pathlib import Path

import mne
import pytest
from studies_fixture import AliceFixture, OldManFixture

from eeg2speech.config import ExperimentConfig, load
from eeg2speech.data.loader import StudyData

CONFIGS = Path(__file__).parents[1] / "configs"
CHANNELS = mne.channels.make_standard_montage("biosemi128").ch_names


@pytest.mark.parametrize("study", ["brennan2019", "broderick2019"])
def test_full_size_and_small_read_the_same_and_differ_in_models(study: str) -> None:
    full, small = load(CONFIGS / f"{study}.yaml"), load(CONFIGS / f"{study}_small.yaml")
    assert (full.name, small.name) == (study, f"{study}_small")
    assert full.study.name == small.study.name == study
    assert full.preprocessing == small.preprocessing
    assert full.splits == small.splits
    # brainmagick's encoder and AudioLDM-S at their published sizes
    encoder = full.model.eeg_encoder.model_dump()
    assert (encoder["virtual_channels"], encoder["fourier_size"], encoder["channels"], encoder["depth"]) == (
        270, 2048, 320, 10,
    )  # fmt: skip
    assert full.model.denoiser.channels == (128, 256, 384, 640)
    assert full.model.autoencoder.channels == (128, 256, 512)
    for config in (full, small):
        assert config.training.autoencoder is not None
        assert config.training.diffusion is not None


def prepared(config: ExperimentConfig, folder: Path) -> StudyData:
    parts = (config.preprocessing, config.windows, config.splits)
    return StudyData.prepare(config.study.build(), folder / "generated", *parts, folder / "cache")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["brennan2019", "brennan2019_small"])
def test_alice_is_read_by_its_configs(tmp_path: Path, name: str) -> None:
    alice = AliceFixture(tmp_path / "alice")
    for subject, release in (("S01", "mat"), ("S03", "brainvision")):
        alice.add(subject, release=release)
    sets = [f"study.root={alice.root}", "study.subjects=[S01, S03]", "splits.block_s=4", "splits.strict=false"]
    sets += ["splits.valid=0.3", "splits.test=0.4", "splits.guard=false"]
    data = prepared(load(CONFIGS / f"{name}.yaml", sets, "alice"), tmp_path)
    assert (data.has_audio, data.n_bands, data.n_times, data.subjects) == (True, 64, 360, ("S01", "S03"))


@pytest.mark.parametrize(("name", "release"), [("broderick2019", "bids"), ("broderick2019_small", "mat")])
def test_the_old_man_is_read_by_his_configs(tmp_path: Path, name: str, release: str) -> None:
    old_man = OldManFixture(tmp_path / "release")
    sets = [f"study.root={old_man.root}", "study.subjects=null", "splits.by=recording", "splits.strict=false"]
    if release == "bids":
        old_man.add_bids("sub-001", (1, 2, 3), CHANNELS)
    else:
        old_man.add_mat(1, (1, 2, 3))
        old_man.write_stimuli(tmp_path / "stimuli", (1, 2, 3))
        sets.append(f"study.audio={tmp_path / 'stimuli'}")
    data = prepared(load(CONFIGS / f"{name}.yaml", sets, "old_man"), tmp_path)
    assert (data.has_audio, data.n_bands, data.n_times, data.n_channels) == (True, 64, 360, 128)
