"""Every network of a configuration, untrained, and whether they fit together: looked at before any is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from torch import Tensor, nn

from eeg2speech import audio
from eeg2speech.config import ExperimentConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.errors import UserError
from eeg2speech.models.autoencoder import LinearSkipAutoencoder, to_image
from eeg2speech.models.denoiser import ConditionalDenoiser
from eeg2speech.models.regressor import Regressor
from eeg2speech.training.latents import evenly, training_stimuli
from eeg2speech.training.loop import derived_seed
from eeg2speech.training.pretrained import start_autoencoder, start_denoiser, start_eeg_encoder

ALIGNMENT_WINDOWS = 1024


@dataclass(frozen=True, eq=False)
class Networks:
    """None where the configuration trains none: those that generate need audio, and their stages."""

    eeg_encoder: nn.Module
    audio_encoder: nn.Module
    regressor: nn.Module | None = None
    autoencoder: AutoencoderKL | None = None
    denoiser: ConditionalDenoiser | None = None


def build(config: ExperimentConfig, data: StudyData) -> Networks:
    """Fitted to the training split where that is no training, and at published weights where the config names some.

    Raises UserError where one does not give what the next expects, or could not be saved.
    """
    training, made = config.training, _Builder(config, data)
    generates = data.has_audio and training.autoencoder is not None and training.diffusion is not None
    networks = Networks(
        made.eeg_encoder(),
        made.audio_encoder(),
        made.regressor() if data.has_audio and training.regression is not None else None,
        made.autoencoder() if generates else None,
        made.denoiser() if generates else None,
    )
    _require_fit(networks, config, data)
    return networks


class _Builder:
    def __init__(self, config: ExperimentConfig, data: StudyData) -> None:
        self.config, self.data = config, data
        self.embedding = {"dim": config.model.embedding.dim, "n_frames": config.embedding_frames}

    def seeded(self, name: str) -> None:
        """Initial weights depend on the training seed and the module's name alone."""
        torch.manual_seed(derived_seed(self.config.seed, "init", name))

    def eeg_encoder(self) -> nn.Module:
        data, init = self.data, self.config.training.contrastive.init
        self.seeded("eeg_encoder")
        choice = self.config.model.eeg_encoder
        encoder = choice.build(n_subjects=data.n_subjects, n_channels=data.n_channels, **self.embedding)
        self._align(encoder)
        if init is not None:
            start_eeg_encoder(encoder, init)
        return encoder

    def audio_encoder(self) -> nn.Module:
        heard = self.data.features.heard
        self.seeded("audio_encoder")
        encoder = self.config.model.audio_encoder.build(n_bands=heard.shape[1], **self.embedding)
        encoder.fit_scale(training_stimuli(self.data, heard))
        return encoder

    def regressor(self) -> nn.Module:
        data, model = self.data, self.config.model
        self.seeded("regressor")
        encoder = (model.regressor or model.eeg_encoder).build(
            n_subjects=data.n_subjects, n_channels=data.n_channels, dim=data.n_bands, n_frames=data.n_frames
        )
        self._align(encoder)
        return Regressor(encoder, training_stimuli(data, data.features.features))

    def autoencoder(self) -> AutoencoderKL:
        training = self.config.training.autoencoder
        assert training is not None
        self.seeded("autoencoder")
        autoencoder = self.config.model.autoencoder.build()
        if training.gradient_checkpointing:
            autoencoder.enable_gradient_checkpointing()
        if isinstance(autoencoder, LinearSkipAutoencoder):
            features = training_stimuli(self.data, self.data.features.features)
            autoencoder.fit_skip(to_image(autoencoder, features.transpose(1, 2).unsqueeze(1)))
        if training.init is not None:
            start_autoencoder(autoencoder, training.init)
        return autoencoder

    def denoiser(self) -> ConditionalDenoiser:
        config, training = self.config, self.config.training.diffusion
        assert training is not None
        self.seeded("denoiser")
        denoiser = config.model.denoiser.build(
            latent_channels=config.model.autoencoder.latent_channels,
            latent_frames=config.latent_frames,
            latent_bins=audio.N_MELS // config.model.autoencoder.downsampling,
            cond_dim=config.model.embedding.dim,
            cond_frames=config.embedding_frames,
            schedule=config.model.schedule,
        )
        if training.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if training.init is not None:
            start_denoiser(denoiser, training.init)
        return denoiser

    def _align(self, encoder: nn.Module) -> None:
        """Gives an encoder that aligns subjects their training EEG, evenly spread over the recordings."""
        fit: Callable[[Tensor, Tensor], None] | None = getattr(encoder, "fit_alignment", None)
        if fit is not None:
            batch = self.data.batch(evenly(self.data.indices("train"), ALIGNMENT_WINDOWS))
            fit(batch.eeg, batch.subject)


@torch.no_grad()
def _require_fit(networks: Networks, config: ExperimentConfig, data: StudyData) -> None:
    """Two windows go through each: an hour of training is no way to find out that one cannot follow another."""
    saved = {"eeg_encoder": networks.eeg_encoder, "audio_encoder": networks.audio_encoder}
    if networks.denoiser is not None:
        saved["denoiser"] = networks.denoiser
    for part, network in saved.items():
        if not isinstance(network, ModelMixin) or not isinstance(network, ConfigMixin):
            raise UserError(
                f"model.{part}: a pipeline cannot save {type(network).__name__}; derive it from diffusers' ModelMixin "
                "and ConfigMixin, and put @register_to_config above its __init__"
            )
    batch = data.batch(data.indices("train")[:2])
    wanted = (len(batch), config.model.embedding.dim, config.embedding_frames)
    estimate = _passed(networks.eeg_encoder, batch.eeg, batch.positions, batch.subject)
    _require_shape("eeg_encoder", networks.eeg_encoder, estimate, wanted)
    candidate = _passed(networks.audio_encoder, batch.heard)
    _require_shape("audio_encoder", networks.audio_encoder, candidate, wanted)
    if networks.regressor is not None:
        features = _passed(networks.regressor, batch.eeg, batch.positions, batch.subject)
        _require_shape("regressor", networks.regressor, features, tuple(batch.features.shape))
    if networks.denoiser is not None:
        bins = audio.N_MELS // config.model.autoencoder.downsampling
        latent = torch.zeros(len(batch), config.model.autoencoder.latent_channels, config.latent_frames, bins)
        predicted = _passed(networks.denoiser, latent, torch.ones(len(batch), dtype=torch.int64), estimate)
        _require_shape("denoiser", networks.denoiser, predicted, tuple(latent.shape))


def _passed(network: nn.Module, *inputs: Tensor) -> Tensor:
    output: Tensor = network.eval()(*inputs)
    return output


def _require_shape(part: str, network: nn.Module, output: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(output.shape) != wanted:
        raise UserError(f"model.{part}: {type(network).__name__} gives {tuple(output.shape)} where {wanted} is needed")
