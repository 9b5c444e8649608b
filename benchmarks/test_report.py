"""From results on disk to one page."""

from __future__ import annotations

from pathlib import Path

from report_fixture import Fake, write_fake_run

from benchmarks.measure import Measure
from benchmarks.sizes import SIZES
from reports.build import build


def test_build(measure: Measure, tmp_path: Path) -> None:
    size = SIZES.report
    run = write_fake_run(tmp_path / "run", Fake(n_stimuli=size.stimuli, n_subjects=size.subjects, seconds=3.0))
    page = measure(
        lambda: build([tmp_path / "run"], tmp_path / "reports"),
        unit="page",
        examples=sum(system.n_examples for system in run.systems),
    )
    assert page.stat().st_size > 100_000
