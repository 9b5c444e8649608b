"""Brennan & Hale's study at its size, from the files of its release to batches: what was promised is asserted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.measure import Measure
from benchmarks.sizes import SIZES

SIZE = SIZES.study
FLAT_GB = 0.1
"""What memory may differ by between two listeners and all of them."""


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Path]:
    """Some 10 GB with what is made of them, removed afterwards."""
    scale.write(tmp_path / "release", SIZE)
    yield tmp_path / "release"
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
def test_study_of_brennans_size(measure: Measure, release: Path, tmp_path: Path) -> None:
    """Read, checked against its audio channels, audited, preprocessed, then served at random from the cache."""
    found = measure(
        lambda: scale.apart(release, tmp_path / "work", SIZE.cores), rounds=1, warm_up=False, unit="study",
        signal_s=SIZE.subjects * SIZE.minutes * 60, **SIZE.model_dump(),
    )  # fmt: skip
    for path in release.glob("S*.mat"):
        if path.stem not in ("S01", "S02"):
            path.unlink()
    few = scale.apart(release, tmp_path / "few", SIZE.cores)
    measure.benchmark.extra_info |= {"found": found, "of_two": few}
    assert found["recordings"] == SIZE.subjects
    assert found["prepare_s"] < SIZE.within_s
    assert 0 < found["prepare_peak_gb"] < SIZE.within_gb, "0: this system does not say"
    assert max(found[f"windows_per_s_{batch}"] for batch in scale.BATCHES) >= SIZE.windows_per_s
    assert abs(found["anonymous_gb"] - few["anonymous_gb"]) < FLAT_GB, "memory that grows with the recordings"
