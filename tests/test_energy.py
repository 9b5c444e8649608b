"""Joules from counters of a made-up machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from eeg2speech import energy
from eeg2speech.energy import EnergyMeter


def count(zone: Path, microjoules: int) -> None:
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture(autouse=True)
def _without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_gpus", dict)  # a machine without GPUs


def test_packages_are_summed_and_a_counter_may_start_again(tmp_path: Path) -> None:
    first, second, core = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1", tmp_path / "intel-rapl:0:0"
    count(first, 1_000_000)
    count(second, 262_143_000_000)
    count(core, 5_000_000)
    meter = EnergyMeter(tmp_path)
    assert meter.read() == 0
    count(first, 3_500_000)
    assert meter.read() == pytest.approx(2.5)
    count(second, 671_150)
    count(core, 9_000_000)
    assert meter.read() == pytest.approx(2.5 + 1.0), "of a package its cores are a part"


def test_without_counters_there_is_no_number(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).read() is None
