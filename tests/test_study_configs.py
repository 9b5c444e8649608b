"""The configs of real studies: full size and small, each of which reads its study from files."""

from __future__ import annotations

import re
from pathlib import Path

import mne
import numpy as np
import pytest
from bids_fixture import write_eeg, write_meg, write_sound
from data_fixture import write_noise
from studies_fixture import AliceFixture, OldManFixture
from test_audioeeg import numbered
from test_audioeeg import write as write_audioeeg
from test_bids import story

from eeg2speech.config import ExperimentConfig, load
from eeg2speech.data.loader import StudyData

CONFIGS = Path(__file__).parents[1] / "configs"
FROM_PATTERN = {"pattern", "subject_from", "audio", "features", "rate", "words"}
"""Settings that take the place of a manifest: configs/dtu.yaml shows them."""
CHANNELS = mne.channels.make_standard_montage("biosemi128").ch_names


STUDIES = ["brennan2019", "broderick2019", "gwilliams2022", "audioeeg", "bids", "folder"]
"""The studies of people's recordings."""


@pytest.mark.parametrize("study", STUDIES)
def test_full_size_and_small_read_the_same_and_differ_in_models(study: str) -> None:
    full, small = load(CONFIGS / f"{study}.yaml"), load(CONFIGS / f"{study}_small.yaml")
    assert (full.name, small.name) == (study, f"{study}_small")
    assert full.study.name == small.study.name == study
    assert full.preprocessing == small.preprocessing
    assert full.splits == small.splits
    # brainmagick's encoder (attention to places only where there are some) and AudioLDM-S, at their published sizes
    encoder = full.model.eeg_encoder.model_dump()
    assert (encoder["channels"], encoder["depth"]) == (320, 10)
    if study != "audioeeg":
        assert (encoder["virtual_channels"], encoder["fourier_size"]) == (270, 2048)
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


@pytest.mark.parametrize("study", STUDIES)
def test_every_setting_of_the_study_is_written_out_and_explained(study: str) -> None:
    """Whoever has one of these files need not look for what else could be set."""
    text = (CONFIGS / f"{study}.yaml").read_text(encoding="utf-8")
    declared = load(CONFIGS / f"{study}.yaml").study
    elsewhere = FROM_PATTERN if study == "folder" else set()
    for field in set(type(declared).model_fields) - {"name"} - elsewhere:
        assert re.search(rf"^  (# )?{field}:", text, re.MULTILINE), field
    assert "docs/studies.md" in text or "studies check" in text


@pytest.mark.parametrize("name", ["gwilliams2022", "gwilliams2022_small"])
def test_meg_masc_is_read_by_its_configs(tmp_path: Path, name: str) -> None:
    root = tmp_path / "masc"
    for subject in ("sub-01", "sub-02", "sub-03"):
        write_meg(root, subject, "0", "0", 64.0, *story(1.5, 60.0))
    write_sound(root / "stimuli" / "audio" / "lw1_0.wav", 60.0, 0)
    sets = [f"study.root={root}", "splits.block_s=6", "splits.valid=0.3", "splits.test=0.3", "splits.strict=false"]
    data = prepared(load(CONFIGS / f"{name}.yaml", sets, "masc"), tmp_path)
    assert (data.has_audio, data.n_bands, data.n_times, data.n_channels) == (True, 64, 360, 8)


@pytest.mark.parametrize("name", ["audioeeg", "audioeeg_small"])
def test_the_ancestor_s_set_is_read_by_its_configs(tmp_path: Path, name: str) -> None:
    write_audioeeg(tmp_path, **numbered())
    data = prepared(load(CONFIGS / f"{name}.yaml", [f"study.root={tmp_path}"], "ancestor"), tmp_path)
    assert (data.has_audio, data.n_times, data.n_channels) == (True, 360, 1024)
    assert all(finding.passed for finding in data.audit)


@pytest.mark.parametrize("name", ["bids", "bids_small"])
def test_a_bids_folder_is_read_by_the_configs(tmp_path: Path, name: str) -> None:
    root = tmp_path / "mine"
    sound = {"onset": 2.0, "duration": 60.0, "stim_file": "alice.wav"}
    for subject in ("sub-01", "sub-02"):
        write_eeg(root, subject, "listen", 64.0, sound)
    write_sound(root / "stimuli" / "alice.wav", 60.0, 0)
    sets = [f"study.root={root}", "study.montage=biosemi64", "splits.by=time", "splits.test=0.3", "splits.valid=0.2"]
    data = prepared(load(CONFIGS / f"{name}.yaml", sets, "mine"), tmp_path)
    assert (data.has_audio, data.n_times, data.n_channels, data.subjects) == (True, 360, 4, ("sub-01", "sub-02"))
    assert data.facts()["consent"].startswith("not stated")


@pytest.mark.parametrize("name", ["folder", "folder_small"])
def test_a_manifest_is_read_by_the_configs(tmp_path: Path, name: str) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    for subject in (1, 2):
        eeg = np.random.default_rng(subject).standard_normal((3, 6400), dtype=np.float32)
        np.savez(root / f"{subject}.npz", eeg=eeg, sfreq=100.0)
    write_noise(root, "story", 60.0, 0)
    rows = [f"{subject}.npz,{subject},story.wav,2.0" for subject in (1, 2)]
    (root / "manifest.csv").write_text("\n".join(["file,subject,audio,onset_s", *rows]))
    sets = [f"study.root={root}", "study.montage=biosemi64", "study.ch_names=[Cz, Pz, Oz]", "study.consent=to share"]
    sets += ["splits.by=time", "splits.test=0.3", "splits.valid=0.2"]
    data = prepared(load(CONFIGS / f"{name}.yaml", sets, "mine"), tmp_path)
    assert (data.has_audio, data.n_times, data.n_channels, data.subjects) == (True, 360, 3, ("1", "2"))
    assert data.facts()["consent"] == "to share"
