"""Untrained models of tiny size around a study of noise: enough to run every system."""

from __future__ import annotations

from pathlib import Path

import torch

from eeg2speech.config import NoiseScheduleConfig
from eeg2speech.data.base import SpeechStudy
from eeg2speech.data.loader import StudyData
from eeg2speech.data.preprocessing import PreprocessingConfig
from eeg2speech.data.splits import SplitConfig
from eeg2speech.data.windows import WindowConfig
from eeg2speech.evaluation import SamplingConfig
from eeg2speech.models.audio_encoder import DeepMelConfig
from eeg2speech.models.autoencoder import AutoencoderConfig, fit_scale
from eeg2speech.models.denoiser import DenoiserConfig
from eeg2speech.models.eeg_encoder import ClipConvConfig
from eeg2speech.models.schedule import FlowScheduleConfig
from eeg2speech.models.vocoder import GriffinLimConfig
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.training.run import Trained, sampler_of

DIM, FRAMES = 6, 30
ENCODER = ClipConvConfig(virtual_channels=5, fourier_size=18, channels=8, depth=2)


def tiny_pipeline(
    sampling: SamplingConfig | None = None, n_subjects: int = 2, prediction: str = "v_prediction"
) -> EEG2SpeechPipeline:
    """Latents (4, 75, 16), embeddings (DIM, FRAMES), untrained."""
    torch.manual_seed(0)
    # At pure noise epsilon says nothing about x0: a schedule that ends there is not for it.
    values = {"prediction_type": prediction, "zero_terminal_snr": prediction != "epsilon"}
    schedule = FlowScheduleConfig() if prediction == "flow" else NoiseScheduleConfig.model_validate(values)
    vae = AutoencoderConfig(
        channels=(4, 8, 8), layers_per_block=1, latent_channels=4, norm_groups=4, mid_attention=False
    )
    denoiser = DenoiserConfig(
        channels=(8, 16), layers_per_block=1, attention=(False, False), norm_groups=4, aligned_channels=2
    )
    pipeline = EEG2SpeechPipeline(
        eeg_encoder=ENCODER.build(n_subjects=n_subjects, dim=DIM, n_frames=FRAMES, n_channels=2),
        denoiser=denoiser.build(latent_channels=4, latent_bins=16, cond_dim=DIM, cond_frames=FRAMES),
        vae=vae.build(),
        vocoder=GriffinLimConfig(iterations=2).build(),
        scheduler=sampler_of(schedule, sampling or SamplingConfig()),
        audio_encoder=DeepMelConfig(channels=8, depth=2).build(n_bands=64, dim=DIM, n_frames=FRAMES),
        latent_frames=75,
        latent_bins=16,
    )
    pipeline.denoiser.null_cond.data.normal_()
    torch.nn.init.constant_(pipeline.vae.decoder.conv_out.bias, -6.0)  # the level of speech
    fit_scale(pipeline.vae, 2.0 + torch.randn(4, 4, 8, 16))
    for module in (pipeline.eeg_encoder, pipeline.denoiser, pipeline.vae, pipeline.vocoder, pipeline.audio_encoder):
        module.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_trained(study: SpeechStudy, folder: Path, sampling: SamplingConfig | None = None) -> Trained:
    """The study, prepared in `folder`, and untrained models; without audio only the contrastive pair."""
    data = StudyData.prepare(
        study,
        folder,
        PreprocessingConfig(),
        WindowConfig(),
        SplitConfig(valid=0.2, test=0.3),
        folder / "cache",
        "noise",
    )
    pipeline = tiny_pipeline(sampling, data.n_subjects)
    torch.manual_seed(1)
    audio_encoder = DeepMelConfig(channels=8, depth=2).build(n_bands=data.n_bands, dim=DIM, n_frames=FRAMES)
    regressor = ENCODER.build(n_subjects=2, dim=64, n_frames=300, n_channels=2)
    for module in (audio_encoder, regressor):
        module.eval().requires_grad_(False)
    if not data.has_audio:
        return Trained(data, pipeline.eeg_encoder, audio_encoder, None, None, "noise")
    return Trained(data, pipeline.eeg_encoder, audio_encoder, regressor, pipeline, "noise")
