"""What is scored, and how: the values that the package `eval` runs on.

They stand here, and not in `eval`, because an experiment is one tree of values that is checked
before training begins, and imports go one way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from eeg2speech.schema import Config, is_off


class SamplingConfig(Config):
    """How the pipeline turns noise into a latent."""

    scheduler: Literal["dpmsolver++", "ddim", "euler", "heun"] = Field(
        default="dpmsolver++", description="the first two solve diffusion, the others flow matching"
    )
    num_inference_steps: int = Field(default=10, ge=1)
    guidance_scale: float = Field(default=1.0, ge=0, description="1: no guidance; above: away from the null condition")
    guidance_rescale: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="how much of the condition's own deviation guidance is given back (Lin et al., WACV 2024)",
        exclude_if=is_off,
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        description="size of the noise that sampling starts from, 1 as in training; below: nearer to what is likeliest "
        "(Popov et al., ICML 2021)",
        exclude_if=lambda value: value == 1.0,
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        default="no",
        description="bf16: denoiser and autoencoder compute in bfloat16; the latent between the steps stays in float32",
        exclude_if=lambda value: value == "no",
    )
    seed: int = Field(default=0, ge=0, description="the sampling seed; a sample's noise comes from it and its stimulus")
    batch_size: int = Field(default=16, ge=1)

    def call_arguments(self) -> dict[str, Any]:
        """What `EEG2SpeechPipeline` takes of it."""
        names = ("num_inference_steps", "guidance_scale", "guidance_rescale", "temperature")
        return {name: getattr(self, name) for name in names}


class TranscriptionOptions(Config):
    """Which Whisper listens, and how it searches."""

    checkpoint: Path | None = Field(default=None, description="an openai-whisper .pt; None: tiny.en from its package")
    beam_size: int | None = Field(default=None, ge=1, description="None: greedy")
    tokens_per_s: float = Field(default=8.0, gt=0, description="cap of the transcript; fast speech has about 7")
    audio_context_s: float = Field(default=30.0, gt=0, le=30, description="silence-padded length the encoder sees")
    batch_size: int = Field(default=16, ge=1)


class EmbedderOptions(Config):
    """Where embedder weights lie that no package ships."""

    yamnet: Path | None = Field(default=None, description="YAMNet's .tflite from tensorflow/tflite-support")
    checkpoints: Path | None = Field(
        default=None, description="ckpt_dir of frechet-audio-distance, which holds VGGish, PANN, CLAP or EnCodec"
    )
    batch_size: int = Field(default=32, ge=1)


class MetricsConfig(Config):
    """Which metrics run, and what they listen with."""

    names: tuple[str, ...] | None = Field(
        default=None, description="names in eval.metrics, or torchmetrics:<class of torchmetrics.audio>; null: all"
    )
    embedders: tuple[str, ...] = Field(
        default=("resemblyzer", "whisper", "yamnet", "vggish", "clap"), description="for FAD and KAD, one row each"
    )
    transcription: TranscriptionOptions = TranscriptionOptions()
    embedding: EmbedderOptions = EmbedderOptions()
    seed: int = Field(default=0, ge=0, description="of wrong transcripts, noise clips, splits and resamples")


class EvaluationConfig(Config):
    """What is scored, and which number the run stands or falls by: fixed before the run."""

    systems: tuple[str, ...] | None = Field(default=None, description="names in eval.systems; null: all")
    controls: tuple[str, ...] = Field(
        default=(),
        description="further rows, by name in eval.controls: shifted, eyes",
        exclude_if=is_off,
    )
    metrics: MetricsConfig = MetricsConfig()
    primary: str = Field(default="wer", description="the metric of the primary endpoint")
    ceiling: str = Field(default="reconstruction", description="the system at the other end of the endpoint's span")
    max_stimuli: int | None = Field(default=48, ge=2, description="unique test stimuli, drawn by `seed`; null: all")
    seed: int = Field(default=0, ge=0, description="of the subset, the shuffling, the surrogates and the bootstrap")
    n_resamples: int = Field(default=10_000, ge=100)
