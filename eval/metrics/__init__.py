"""The metrics by name. One file and one line here add one; the report shows it with no further edit."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeg2speech.errors import UserError
from eeg2speech.evaluation import MetricsConfig

if TYPE_CHECKING:
    from eval.metrics.base import Metric
    from eval.metrics.scorers import Scorers

MetricMaker = Callable[["Scorers", "MetricsConfig"], "list[Metric]"]


def _one(where: str, **arguments: Any) -> MetricMaker:
    """A metric of the shared scorers: "file:Class", imported when it is built."""
    return lambda scorers, config: [_load(where)(scorers, **arguments)]


def _seeded(where: str, **arguments: Any) -> MetricMaker:
    return lambda scorers, config: [_load(where)(scorers, seed=config.seed, **arguments)]


def _per_embedder(where: str) -> MetricMaker:
    return lambda scorers, config: [_load(where)(scorers, embedder, config.seed) for embedder in config.embedders]


def _load(where: str) -> Callable[..., Any]:
    file, _, name = where.partition(":")
    return getattr(import_module(f"eval.metrics.{file}"), name)


METRICS: dict[str, MetricMaker] = {
    "wer": _one("word_errors:ErrorRate"),
    "wer_guarded": _one("word_errors:ErrorRate", guarded=True),
    "cer": _one("word_errors:ErrorRate", unit="character"),
    "wer_wrong_transcript": _seeded("word_errors:WrongTranscriptRate"),
    "hallucination_noise": _seeded("word_errors:HallucinationRate", of="noise"),
    "hallucination_silence": _one("word_errors:HallucinationRate", of="silence"),
    "top1": _one("retrieval:TopK", k=1),
    "top5": _one("retrieval:TopK", k=5),
    "top10": _one("retrieval:TopK", k=10),
    "top1_same_story": _one("story_retrieval:SameStoryTopK"),
    "mrr": _one("retrieval:MeanReciprocalRank"),
    "median_rank": _seeded("retrieval:MedianRank"),
    "audio_to_speech_top1": _one("audio_retrieval:AudioRetrieval", direction="audio_to_speech"),
    "speech_to_audio_top1": _one("audio_retrieval:AudioRetrieval", direction="speech_to_audio"),
    "fad": _per_embedder("frechet:FAD"),
    "fad_split_half": _per_embedder("frechet:SplitHalfFAD"),
    "fad_infinity": _per_embedder("frechet:FADInfinity"),
    "kad": _per_embedder("kernel:KAD"),
    "mel_correlation": _one("mel_correlation:MelCorrelation"),
    "mcd": _one("mel_cepstral:MelCepstralDistortion"),
    "mcd_dtw": _one("mel_cepstral:MelCepstralDistortion", warped=True),
    "estoi": lambda scorers, config: [_load("torchmetrics_audio:estoi")()],
}


def build_metrics(config: MetricsConfig, cache: Path) -> list[Metric]:
    """The metrics of `config.names` (None: all), in order.

    Weights load when they are first used; converted ones are kept in `cache`.

    Raises UserError where a name is unknown.
    """
    from eval.metrics.scorers import Scorers
    from eval.metrics.torchmetrics_audio import PREFIX, TorchMetricsAudio

    scorers = Scorers(cache, config.transcription, config.embedding)
    for embedder in config.embedders:
        scorers.embedder(embedder)
    metrics: list[Metric] = []
    for name in config.names or METRICS:
        if name.startswith(PREFIX):
            metrics.append(TorchMetricsAudio(name.removeprefix(PREFIX)))
        elif name in METRICS:
            metrics.extend(METRICS[name](scorers, config))
        else:
            raise UserError(
                f"evaluation.metrics.names: {name!r} is unknown; choose among {', '.join(METRICS)}, {PREFIX}<class>"
            )
    return metrics
