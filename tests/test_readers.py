"""Real files of every format through the folder study: read as MNE reads them, refused by name where cut off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from data_fixture import write_envelope

from eeg2speech.data.base import Recording
from eeg2speech.data.folder import FolderStudyConfig
from eeg2speech.errors import UserError

REAL = Path(os.environ.get("EEG2SPEECH_REALDATA", Path(__file__).parents[2] / "shared" / "realdata")) / "readers"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not here")

BIOSEMI = tuple(mne.channels.make_standard_montage("biosemi256").ch_names)
READERS: dict[str, dict[str, Any]] = {
    "chtypes_edf.edf": {"ch_names": BIOSEMI[:42], "montage": "biosemi256"},  # its names are "EEG Fp1-Ref", ...
    "test_reduced.edf": {"montage": "biosemi256"},
    "test_bdf_stim_channel.bdf": {"montage": "biosemi64"},
    "test_NO.vhdr": {"ch_names": BIOSEMI[:65], "montage": "biosemi256"},  # its names are numbers
    "test_raw_chanloc.set": {},
    "test_raw_hdf5.set": {},
    "neuromag122_test_file-raw.fif": {"modality": "MEG"},
}
DATA_OF = {"test_NO.vhdr": "test_NO.eeg", "test_raw_chanloc.set": "test_raw_chanloc.fdt"}
CUT = [(name, name) for name in READERS] + list(DATA_OF.items())


def read(root: Path, name: str) -> Recording:
    feature = Path(write_envelope(root, "speech", 1.0, 0)).name
    (root / "m.csv").write_text(f"file,subject,features,rate\n{name},01,{feature},64\n")
    study = FolderStudyConfig.model_validate({"root": root, "manifest": "m.csv", **READERS[name]}).build()
    study.prepare(root / "generated")
    (recording,) = study.iter_recordings()
    return recording


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    for path in REAL.iterdir():
        if path.is_file():
            shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore:Complex objects")
def test_every_format_is_read_as_mne_reads_it(copies: Path, name: str) -> None:
    recording = read(copies, name)
    raw = mne.io.read_raw(copies / name, verbose="error")
    kind = "grad" if READERS[name].get("modality") == "MEG" else "eeg"
    expected = raw.get_data(picks=kind)
    assert (recording.sfreq, recording.eeg.n_samples) == (raw.info["sfreq"], raw.n_times)
    np.testing.assert_allclose(recording.eeg.read(0, raw.n_times), expected, rtol=1e-6)
    assert recording.positions.shape == (len(expected), 2)
    known = recording.positions[np.isfinite(recording.positions).all(axis=1)]
    assert len(known)
    assert ((known >= 0) & (known <= 1)).all()


@pytest.mark.parametrize(("name", "cut"), CUT, ids=[cut for _, cut in CUT])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Complex objects")
def test_a_file_that_was_cut_off_is_refused_by_name(copies: Path, name: str, cut: str, share: float) -> None:
    whole = (copies / cut).read_bytes()
    (copies / cut).write_bytes(whole[: int(share * len(whole)) // 2 * 2 + 1])
    with pytest.raises(UserError, match=Path(name).stem) as caught:
        read(copies, name)
    assert "\n" not in str(caught.value)
    assert "copy it again" in str(caught.value)


def test_meg_sensors_lie_as_in_the_file(copies: Path) -> None:
    raw = mne.io.read_raw(copies / "neuromag122_test_file-raw.fif", verbose="error")
    picks = mne.pick_types(raw.info, meg=True)
    xyz = np.array([raw.info["chs"][i]["loc"][:3] for i in picks])
    x, y = read(copies, "neuromag122_test_file-raw.fif").positions.T
    # left and right, back and front keep their order: x and y of a helmet rank as on its map
    assert np.corrcoef(x, xyz[:, 0])[0, 1] > 0.9
    assert np.corrcoef(y, xyz[:, 1])[0, 1] > 0.9
