"""Any audio metric of torchmetrics that compares a clip with the true one, by its class name."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from eeg2speech.audio import SAMPLE_RATE
from eeg2speech.errors import UserError
from eval.metrics.base import SystemOutput, TestSet, no_sound, sound
from eval.metrics.ratio import RatioMetric, Ratios, mean_of
from eval.results import MetricInfo

PREFIX = "torchmetrics:"


class TorchMetricsAudio(RatioMetric):
    """`torchmetrics:ScaleInvariantSignalDistortionRatio` and its like, averaged over clips.

    Raises UserError where torchmetrics has no such metric or it cannot be built here.
    """

    def __init__(self, class_name: str, info: MetricInfo | None = None, **arguments: Any) -> None:
        import torchmetrics.audio

        made = getattr(torchmetrics.audio, class_name, None)
        if made is None:
            known = ", ".join(n for n in dir(torchmetrics.audio) if n[0].isupper())
            raise UserError(f"metrics.names: torchmetrics.audio has no {class_name!r}; it has {known}")
        if "fs" in inspect.signature(made.__init__).parameters:
            arguments.setdefault("fs", SAMPLE_RATE)
        try:
            self.metric = made(**arguments)
        except (ModuleNotFoundError, TypeError) as error:
            raise UserError(f"metrics.names: {PREFIX}{class_name} cannot be built: {error}") from error
        self.info = info or MetricInfo(
            name=class_name,
            label=class_name,
            unit="",
            higher_is_better=bool(self.metric.higher_is_better),
            per_example=True,
            definition=f"torchmetrics.audio.{class_name} of each clip against the true one, mean over clips.",
        )

    def reason(self, test: TestSet, output: SystemOutput) -> str | None:
        return no_sound(test, output)

    def provenance(self) -> dict[str, str | int | None]:
        import torchmetrics

        return {"by": f"torchmetrics-{torchmetrics.__version__}"}

    def examples(self, test: TestSet, output: SystemOutput) -> Ratios:
        true, generated = sound(test), sound(output)
        values = np.full(len(generated), np.nan)
        for i, stimulus in enumerate(output.stimulus):
            wanted = torch.from_numpy(np.array(true[stimulus], dtype=np.float32))
            if not wanted.any():
                continue
            got = torch.from_numpy(np.array(generated[i], dtype=np.float32))
            self.metric.reset()
            values[i] = float(self.metric(got[None], wanted[None]))
        return mean_of(
            np.where(np.isfinite(values), values, np.nan), "the true clip is silent, or the metric is not finite"
        )


def estoi() -> TorchMetricsAudio:
    """Extended short-time objective intelligibility, through torchmetrics and pystoi."""
    info = MetricInfo(
        name="estoi",
        label="ESTOI",
        unit="",
        higher_is_better=True,
        per_example=True,
        definition="Extended short-time objective intelligibility (Jensen & Taal, TASLP 2016), mean over clips.",
    )
    return TorchMetricsAudio("ShortTimeObjectiveIntelligibility", info, extended=True)
