"""What a metric receives and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd

from eeg2speech import __version__
from eeg2speech.audio import SAMPLE_RATE
from eeg2speech.errors import UserError
from eval.results import MetricInfo


@dataclass(frozen=True, eq=False)
class TestSet:
    """What every system is scored against: S unique stimuli and the listeners who heard them."""

    __test__: ClassVar[bool] = False
    """Not a pytest class."""

    examples: pd.DataFrame
    """A row per (subject, stimulus): example, study, subject, stimulus_id, stimulus (row of `stimuli`), text."""
    stimuli: pd.DataFrame
    """A row per stimulus: stimulus_id, text ("" where no whole word lies inside the window), and where it is known
    story: the sound file that the stimulus was cut from."""
    waveform: np.ndarray | None
    """(S, N) float32 at 16 kHz, |x| <= 1; None where the study has no audio."""
    candidates: np.ndarray
    """(S, D, T') float32: what the model's audio encoder makes of each stimulus."""
    embed_audio: Callable[[np.ndarray], np.ndarray] | None = None
    """(n, N) waveforms -> (n, D, T'), the model's own audio encoder; None where the study has no audio."""


@dataclass(frozen=True, eq=False)
class SystemOutput:
    """What one system made of the test set; n rows, one per stimulus where the system hears no EEG."""

    system: str
    hears_eeg: bool
    rows: pd.DataFrame
    """Aligned with the arrays: subject ("" where the system hears no EEG), stimulus_id, stimulus, text."""
    waveform: np.ndarray | None = None
    """(n, N) float32 at 16 kHz, in memory or memory-mapped."""
    waveform_reason: str | None = None
    """Why there is no waveform."""
    estimate: np.ndarray | None = None
    """(n, D, T') float32: the EEG embedding; None where the system has none."""

    @property
    def stimulus(self) -> np.ndarray:
        """(n,) int64 rows of `TestSet.stimuli`."""
        return self.rows["stimulus"].to_numpy(dtype=np.int64)


@dataclass(frozen=True)
class Measurement:
    """One metric of one system. Either value or reason is None."""

    metric: MetricInfo
    value: float | None
    embedder: str | None = None
    ci: tuple[float, float] | None = None
    """Of a metric of a set; the interval of a ratio comes from `numerator` and `denominator`."""
    n: int = 0
    """Examples the value comes from."""
    numerator: np.ndarray | None = None
    """(n,) float64, aligned with the output's rows; NaN where the example was not run."""
    denominator: np.ndarray | None = None
    curve: tuple[tuple[int, float], ...] = ()
    """(N, value) of smaller sets drawn from the same clips, of a metric that depends on N."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Further values per example for figures, each (n,)."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Why examples were not run: reason -> how many."""
    reason: str | None = None
    signature: str = ""


class Metric(ABC):
    """A subclass states `info`, and measures a system's output; a file here and a line in the registry add one."""

    info: MetricInfo
    embedder: str | None = None

    def describe(self, test: TestSet) -> MetricInfo:
        """`info` with what depends on the test set: the value of guessing."""
        return self.info

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        """Why the metric cannot run here, in words for the reader of the report; None where it can."""
        return None

    @abstractmethod
    def compute(self, test: TestSet, output: SystemOutput) -> Measurement:
        """The value; called only where `reason` is None."""

    def measure(self, test: TestSet, output: SystemOutput) -> Measurement:
        """`compute`, or a Measurement without value that says why."""
        reason = self.reason(test, output)
        if reason is None:
            return self.compute(test, output)
        return Measurement(self.describe(test), None, self.embedder, reason=reason)

    def signature(
        self, n: int, by: str | None = None, weights: str = "-", normaliser: str = "-", seed: int | None = None
    ) -> str:
        """metric|embedder|weights hash|sample rate|normaliser|N|seed|version; `by` names the scoring model."""
        seed_text = "-" if seed is None else f"seed{seed}"
        parts = (self.info.name, by or self.embedder or "-", weights, SAMPLE_RATE, normaliser, f"N{n}", seed_text)
        return "|".join(map(str, (*parts, __version__)))


def no_sound(test: TestSet, output: SystemOutput) -> str | None:
    """Why a metric of generated against true sound cannot run; None where it can."""
    if test.waveform is None:
        return "the study has no audio"
    if output.waveform is None:
        return output.waveform_reason or "this system makes no sound"
    return None


def sound(owner: TestSet | SystemOutput) -> np.ndarray:
    """The waveforms, where `no_sound` has been asked.

    Raises UserError that lists the clips holding NaN or infinity: none may drop out silently.
    """
    if owner.waveform is None:
        raise ValueError("there is no sound here: ask no_sound first")
    broken = [i for i, clip in enumerate(owner.waveform) if not np.isfinite(clip).all()]
    if broken:
        rows = owner.stimuli.assign(subject="") if isinstance(owner, TestSet) else owner.rows
        named = [f"{r.subject}/{r.stimulus_id}".strip("/") for r in rows.iloc[broken].itertuples()]
        source = "the study" if isinstance(owner, TestSet) else owner.system
        raise UserError(f"{source}: these clips hold NaN or infinity, replace them: {', '.join(named)}")
    return owner.waveform
