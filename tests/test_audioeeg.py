"""The ancestor's set of wavs and EEG embeddings: what is read, and every refusal."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fixture import write_noise

from eeg2speech.data.audioeeg import AudioEEGStudy, AudioEEGStudyConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.errors import UserError

SIZES = {"train": 6, "val": 2, "test": 3}


def write(root: Path, **lists: list[int]) -> dict[int, torch.Tensor]:
    """Items by number; each lasts 3 s. Returns the embeddings."""
    folder = root / "set"
    (folder / "embeddings").mkdir(parents=True, exist_ok=True)
    tensors, paths = {}, {}
    for name, numbers in lists.items():
        items = []
        for k in numbers:
            tensors[k] = torch.from_numpy(np.random.default_rng(k).standard_normal((1, 1024, 361), dtype=np.float32))
            torch.save(tensors[k], folder / "embeddings" / f"S{k % 2}_{k}.pt")
            write_noise(folder / "wavs", f"{k}", 3.0, k)
            item = {"wav": f"wavs/{k}.wav", "embedding": f"embeddings/S{k % 2}_{k}.pt"}
            items.append(item | {"audio_embedding": item["embedding"]})
        (root / f"{name}.json").write_text(json.dumps({"data": items}))
        paths[name] = f"{name}.json"
    about = {"audioeeg": "set", "metadata": {"path": {"audioeeg": paths}}}
    (root / "dataset_root.json").write_text(json.dumps(about))
    return tensors


def numbered() -> dict[str, list[int]]:
    edges = np.cumsum([0, *SIZES.values()])
    return {name: list(range(a, b)) for name, a, b in zip(SIZES, edges, edges[1:], strict=False)}


def study(root: Path, **fields: Any) -> AudioEEGStudy:
    made = AudioEEGStudyConfig.model_validate({"root": root, **fields}).build()
    made.prepare(root / "generated")
    return made


PREPROCESSING = PreprocessingConfig(shift_s=0.0, baseline_s=0.0)


def prepare(root: Path, **fields: Any) -> StudyData:
    parts = (PREPROCESSING, WindowConfig(max_reading_s=3.0), SplitConfig(by="study"))
    return StudyData.prepare(study(root, **fields), root / "generated", *parts, root / "cache")


def test_its_lists_are_its_splits_and_its_tensors_its_channels(tmp_path: Path) -> None:
    tensors = write(tmp_path, **numbered())
    recordings = list(study(tmp_path).iter_recordings())
    assert [(r.recording, r.split) for r in recordings] == [
        ("listener_train", "train"), ("listener_valid", "valid"), ("listener_test", "test"),
    ]  # fmt: skip
    test = recordings[2]
    joined = torch.cat([tensors[k][0] for k in (8, 9, 10)], dim=1).numpy()
    joined = np.pad(joined, ((0, 0), (1, 0)))
    assert test.eeg.n_samples == 1 + 3 * 361
    for start, stop in ((0, 1084), (0, 1), (1, 2), (100, 200), (350, 800), (362, 723), (1083, 1084)):
        np.testing.assert_array_equal(test.eeg.read(start, stop), joined[:, start:stop])
    np.testing.assert_allclose(test.sounds["onset_s"], (1 + np.arange(3) * 361) / 120)
    assert list(test.sounds["sound"]) == ["8", "9", "10"]


def test_a_window_is_an_embedding_scaled_by_the_training_list(tmp_path: Path) -> None:
    tensors = write(tmp_path, **numbered())
    data = prepare(tmp_path)
    assert {s: len(data.indices(s)) for s in ("train", "valid", "test")} == {"train": 6, "valid": 2, "test": 3}
    assert all(finding.passed for finding in data.audit)
    # windows are 360 of the 361 samples of an item: 3 s at 120 Hz
    kept = np.concatenate([tensors[k][0, :, :360] for k in range(6)], axis=1)
    q25, q50, q75 = np.percentile(kept, (25, 50, 75), axis=1)
    expected = (tensors[9][0, :, :360].numpy() - q50[:, None]) / (q75 - q25)[:, None]
    batch = data.batch(data.indices("test"))
    np.testing.assert_allclose(batch.eeg[1].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("same", ["test", "train"])
def test_lists_that_share_items_are_refused(tmp_path: Path, same: str) -> None:
    lists = numbered()
    write(tmp_path, **{**lists, "val": lists[same]})  # the ancestor validates on its test list
    with pytest.raises(UserError, match="the split leaks: shared stimulus identity"):
        prepare(tmp_path)
    findings = {f["check"]: f for f in json.loads(next(tmp_path.rglob("audit.json")).read_text())["findings"]}
    assert (
        f"{'train' if same == 'train' else 'valid'} == {'valid' if same == 'train' else 'test'}"
        in (findings["three different splits"]["detail"])
    )


def test_subjects_come_from_paths(tmp_path: Path) -> None:
    write(tmp_path, **numbered())
    made = study(tmp_path, subject_from=r"S(\d)_")
    assert made.subjects() == ("0", "1")
    assert len(list(made.iter_recordings())) == 6
    with pytest.raises(UserError, match=r"train\.json: item 1: study\.subject_from"):
        study(tmp_path, subject_from=r"P(\d)_")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def spoil(root: Path, what: str) -> None:
    folder = root / "set"
    first = folder / "embeddings" / "S0_0.pt"
    if what == "pickle":
        first.write_bytes(pickle.dumps(Evil(), protocol=2))
    elif what == "cut":
        first.write_bytes(first.read_bytes()[:1000])
    elif what == "shape":
        torch.save(torch.zeros(1, 512, 361), first)
    elif what == "dict":
        torch.save({"a": torch.zeros(1)}, first)
    elif what == "length":
        torch.save(torch.zeros(1, 1024, 400), first)
    elif what == "absent":
        (folder / "wavs" / "3.wav").unlink()
    elif what == "list":
        (root / "val.json").write_text("[]")
    elif what == "item":
        (root / "val.json").write_text('[{"wav": "wavs/1.wav"}]')
    elif what == "root":
        (root / "dataset_root.json").write_text('{"audioeeg": "set"}')
    elif what == "json":
        (root / "dataset_root.json").write_text("{")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pickle", r"S0_0\.pt: no tensor that can be read"),
        ("cut", r"S0_0\.pt: no tensor that can be read"),
        ("shape", r"S0_0\.pt: holds \(1, 512, 361\), not \(1, 1024, T\)"),
        ("dict", r"S0_0\.pt: holds dict, not"),
        ("length", r"S0_0\.pt: lasts 3\.33 s at 120 Hz, its wav 0\.wav 3\.00 s"),
        ("absent", r"wavs/3\.wav not found"),
        ("list", r"val\.json: must be a list"),
        ("item", r"val\.json: item 1 needs wav and embedding"),
        ("root", r"dataset_root\.json: has no 'metadata'; its form is"),
        ("json", r"dataset_root\.json: no JSON that can be read"),
    ],
)
def test_every_fault_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, **numbered())
    spoil(tmp_path, what)
    with pytest.raises(UserError, match=message) as caught:
        list(study(tmp_path).iter_recordings())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_other_studies_have_no_lists(tmp_path: Path) -> None:
    from data_fixture import sentence_study

    parts = (PreprocessingConfig(), WindowConfig(), SplitConfig(by="study"))
    with pytest.raises(UserError, match=r"splits\.by: study needs a study with lists of its own; ann"):
        StudyData.prepare(sentence_study(tmp_path), tmp_path, *parts, tmp_path / "cache")
