"""The networks of a shape with random weights, the tensors that go through them, and the levers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from benchmarks.device import DEVICE
from benchmarks.sizes import SAMPLED, Lever, Shape
from eeg2speech.audio import FRAME_RATE_HZ, N_MELS
from eeg2speech.batch import Batch
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.evaluation import SamplingConfig
from eeg2speech.models.denoiser import Denoiser
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.training.loop import Stage, StageConfig, _Loop
from eeg2speech.training.run import noise_scheduler, sampler_of
from eeg2speech.training.stages import AutoencoderStage, ContrastiveStage, DiffusionStage

CHANNELS, SUBJECTS = 64, 4


class Made:
    """The parts of one shape, made when asked for, on the device and in eval mode."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.model = shape, shape.model
        self.frames = round(shape.clip_s * FRAME_RATE_HZ)
        self.cond_frames = round(shape.clip_s * self.model.embedding.rate_hz)
        down = self.model.autoencoder.downsampling
        self.latent_size = (self.model.autoencoder.latent_channels, self.frames // down, N_MELS // down)

    def eeg_encoder(self) -> nn.Module:
        sizes = {"n_subjects": SUBJECTS, "n_channels": CHANNELS}
        return ready(self.model.eeg_encoder.build(dim=self.model.embedding.dim, n_frames=self.cond_frames, **sizes))

    def audio_encoder(self) -> nn.Module:
        return ready(
            self.model.audio_encoder.build(n_bands=N_MELS, dim=self.model.embedding.dim, n_frames=self.cond_frames)
        )

    def autoencoder(self) -> AutoencoderKL:
        return ready(self.model.autoencoder.build())

    def denoiser(self) -> Denoiser:
        channels, frames, bins = self.latent_size
        return ready(
            self.model.denoiser.build(
                latent_channels=channels,
                latent_bins=bins,
                cond_dim=self.model.embedding.dim,
                cond_frames=self.cond_frames,
                latent_frames=frames,
                schedule=self.model.schedule,
            )
        )

    def pipeline(self, scheduler: str) -> EEG2SpeechPipeline:
        _, latent_frames, latent_bins = self.latent_size
        pipeline = EEG2SpeechPipeline(
            eeg_encoder=self.eeg_encoder(),
            denoiser=self.denoiser(),
            vae=self.autoencoder(),
            vocoder=ready(self.model.vocoder.build()),
            scheduler=sampler_of(self.model.schedule, SamplingConfig(scheduler=scheduler)),
            latent_frames=latent_frames,
            latent_bins=latent_bins,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def batch(self, size: int) -> Batch:
        """Noise of the right shapes: the time of a network does not depend on what it is shown."""
        n_times = PreprocessingConfig().n_samples(self.shape.clip_s)
        return Batch(
            eeg=torch.randn(size, CHANNELS, n_times),
            positions=torch.rand(size, CHANNELS, 2),
            subject=torch.arange(size) % SUBJECTS,
            stimulus=torch.arange(size),
            features=torch.randn(size, N_MELS, self.frames) - 6.0,
        ).to(DEVICE)

    def latent(self, size: int) -> Tensor:
        return torch.randn(size, *self.latent_size, device=DEVICE)

    def cond(self, size: int) -> Tensor:
        return torch.randn(size, self.model.embedding.dim, self.cond_frames, device=DEVICE)

    def autoencoder_stage(self) -> AutoencoderStage:
        return AutoencoderStage(self.autoencoder(), kl_weight=1e-4, crop_frames=96)

    def contrastive_stage(self, size: int) -> ContrastiveStage:
        """With the denoiser's prior, where the shape has one."""
        prior = self.denoiser().latent_prior if self.model.denoiser.prior else None
        return ContrastiveStage(self.eeg_encoder(), self.audio_encoder(), prior, self.latent(size).cpu())

    def diffusion_stage(
        self, size: int, stage: type[DiffusionStage] = DiffusionStage, **choices: float | None
    ) -> DiffusionStage:
        """Latents cached; the encoders trained with it where the shape's recipe says so. `choices`: of the stage."""
        recipe = {"audio_share": 0.25, "null_share": 0.1, "min_snr_gamma": 5.0}
        return stage(
            self.denoiser(),
            self.eeg_encoder(),
            self.audio_encoder(),
            noise_scheduler(self.model.schedule),
            self.latent(size).cpu(),
            **recipe | {"contrastive_weight": self.shape.contrastive_weight} | choices,
        )


def hifigan() -> nn.Module:
    """AudioLDM's vocoder, 55 M parameters: (B, T, 64) -> (B, N) at 16 kHz."""
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    sizes = {"upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4]}
    return ready(SpeechT5HifiGan(SpeechT5HifiGanConfig(model_in_dim=64, upsample_initial_channel=1024, **sizes)))


def ready(module: nn.Module) -> nn.Module:
    return module.to(DEVICE).eval().requires_grad_(False)


def pulled(module: nn.Module, lever: Lever) -> nn.Module:
    """The module as the lever runs it. Skips where torch.compile finds no compiler."""
    if not lever.sdpa:
        network = module.unet if isinstance(module, Denoiser) else module
        network.set_attn_processor(AttnProcessor())
    module.to(lever.dtype)
    if lever.channels_last:
        module.to(memory_format=torch.channels_last)
    if lever.compile:
        require_compiler()
        module.compile()
    return module


def require_compiler() -> None:
    """It writes C++ for a CPU; for a GPU, Triton writes what launches its kernels in C."""
    language, variable, names = ("C", "CC", ("gcc", "clang"))
    if DEVICE.type == "cpu":
        language, variable, names = ("C++", "CXX", ("g++", "clang++", "c++"))
    if not os.environ.get(variable) and not any(map(shutil.which, names)):
        pytest.skip(f"torch.compile needs a {language} compiler: {' or '.join(names)}")


def training_step(stage: Stage, batch: Batch, lever: Lever, folder: Path, **settings: float) -> Callable[[], None]:
    """One optimiser step of the project's own loop: loss, gradients, clipping, AdamW, moving average.

    `settings`: of its `StageConfig`.
    """
    if lever.compile:
        require_compiler()
    trainable(stage)
    if lever.checkpointing and isinstance(stage, DiffusionStage):
        stage.denoiser.enable_gradient_checkpointing()
    config = StageConfig(
        steps=1_000_000,
        batch_size=len(batch),
        learning_rate=1e-5,
        mixed_precision="bf16" if lever.dtype == torch.bfloat16 else "no",
        compile=lever.compile,
        channels_last=lever.channels_last,
        **settings,
    )
    loop = _Loop(stage, config, folder, depends="", seed=0)
    return lambda: loop.advance(lambda index: batch)


def trainable(stage: Stage) -> Stage:
    """A denoiser's prior is trained with the encoders, and left as it is by the diffusion."""
    stage.modules.requires_grad_(True)
    if isinstance(stage, DiffusionStage) and stage.denoiser.latent_prior is not None:
        stage.denoiser.latent_prior.requires_grad_(False)
    return stage


def loss_and_gradients(stage: Stage, batch: Batch) -> Callable[[], None]:
    """What of a training step is counted as work of the model."""

    def run() -> None:
        trainable(stage).modules.train()
        stage.loss(batch)["loss"].backward()
        stage.modules.zero_grad()

    return run


def half(pipeline: EEG2SpeechPipeline, lever: Lever = SAMPLED) -> EEG2SpeechPipeline:
    """The two image networks as the lever runs them."""
    pulled(pipeline.denoiser, lever)
    pulled(pipeline.vae, lever)
    return pipeline
