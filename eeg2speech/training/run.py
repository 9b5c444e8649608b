"""From a configuration to a trained pipeline: every stage that is not done yet, in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import yaml
from diffusers import AutoencoderKL
from torch import Tensor, nn

from eeg2speech import audio
from eeg2speech.config import ExperimentConfig
from eeg2speech.data.loader import StudyData
from eeg2speech.data.sampler import TrainingSampler
from eeg2speech.device import device
from eeg2speech.files import digest, sha256, write_atomically
from eeg2speech.models.audio_encoder import DeepMelConfig
from eeg2speech.models.autoencoder import LinearSkipAutoencoder, to_image
from eeg2speech.models.denoiser import Denoiser
from eeg2speech.models.eeg_encoder import AlignedConv
from eeg2speech.models.regressor import Regressor
from eeg2speech.models.schedule import noise_scheduler, sampler_of
from eeg2speech.models.speech_model import SpeechModel
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.runs import RunFolder, is_done, step
from eeg2speech.training.checkpoint import load_weights
from eeg2speech.training.latents import encoded_stimuli, evenly, training_stimuli
from eeg2speech.training.loop import WEIGHTS, Stage, StageConfig, derived_seed
from eeg2speech.training.loop import train as train_stage
from eeg2speech.training.pretrained import (
    fingerprint,
    require_starts,
    start_autoencoder,
    start_denoiser,
    start_eeg_encoder,
)
from eeg2speech.training.stages import AutoencoderStage, ContrastiveStage, DiffusionStage, RegressionStage

VALIDATION_WINDOWS = 128
ALIGNMENT_WINDOWS = 1024


@dataclass
class Trained:
    """What evaluation needs of a run, its modules in eval mode and on one device; those that generate are None where
    the study has no audio."""

    data: StudyData
    eeg_encoder: nn.Module
    audio_encoder: nn.Module
    regressor: nn.Module | None
    pipeline: EEG2SpeechPipeline | None
    depends: str
    """Hash of all that the weights and the vocoder depend on."""
    speech_model: SpeechModel | None = None
    """What the audio encoder hears sound through; None: it takes the log-mel."""

    @property
    def device(self) -> torch.device:
        return next(self.eeg_encoder.parameters()).device

    @torch.no_grad()
    def embed_speech(self, parts: Iterable[Tensor]) -> Tensor:
        """(n, D, T') in memory of what the audio encoder hears, in parts (b, K', F')."""
        return torch.cat([self.audio_encoder(part.to(self.device)).cpu() for part in parts])


def pretrained_speech_model(config: ExperimentConfig) -> SpeechModel | None:
    """The model under the audio encoder, where the config names one. Raises UserError where its weights are absent."""
    choice = config.model.audio_encoder
    return None if isinstance(choice, DeepMelConfig) else choice.pretrained()


def prepare_data(config: ExperimentConfig, folder: RunFolder, speech_model: SpeechModel | None = None) -> StudyData:
    """The study, cut, scaled and audited; studies and caches are shared by the runs beside this one."""
    shared = folder.path.parent
    data = StudyData.prepare(
        config.study.build(),
        shared / "studies" / config.study.name,
        config.preprocessing,
        config.windows,
        config.splits,
        shared / "cache",
        config.study.name,
    )
    if speech_model is None:
        return data
    return replace(data, features=data.features.with_speech(speech_model, shared / "cache"))


def train(config: ExperimentConfig, folder: RunFolder) -> Trained:
    """Trains what is not trained yet, saves the pipeline, and returns everything in eval mode.

    A stage that is done for this configuration is loaded; an interrupted one continues. Published
    weights that the configuration names are looked for first: to miss them later would cost hours.
    """
    require_starts(config)
    config.model.vocoder.build()
    speech_model = pretrained_speech_model(config)
    with folder.lock():
        write_atomically(folder.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        data = prepare_data(config, folder, speech_model)
        write_atomically(folder.data / "audit.json", (data.folder / "audit.json").read_text(encoding="utf-8"))
        return _Trainer(config, folder, data, speech_model).run()


class _Trainer:
    """The stages of one run, and what each depends on."""

    def __init__(
        self, config: ExperimentConfig, folder: RunFolder, data: StudyData, speech_model: SpeechModel | None = None
    ) -> None:
        self.config, self.folder, self.data, self.speech_model = config, folder, data, speech_model
        self.rows = data.indices("train")
        self.valid_rows = evenly(data.indices("valid"), VALIDATION_WINDOWS)
        # One per stage, filled in order: a later stage depends on the earlier ones it builds on.
        self.depends: dict[str, str] = {}
        self.latents: Tensor | AutoencoderKL | None = None  # of every stimulus, or what encodes them

    def run(self) -> Trained:
        training, data = self.config.training, self.data
        generates = data.has_audio and training.autoencoder is not None and training.diffusion is not None
        autoencoder = self.autoencoder() if generates else None
        denoiser = self.denoiser(autoencoder) if autoencoder is not None else None
        eeg_encoder, audio_encoder = self.contrastive(denoiser)
        regressor, pipeline = None, None
        if data.has_audio and training.regression is not None:
            regressor = self.regression(training.regression)
        if autoencoder is not None and denoiser is not None:
            pipeline = self.diffusion(eeg_encoder, audio_encoder, autoencoder, denoiser)
        parts = () if pipeline is None else (pipeline.denoiser, pipeline.vae, pipeline.vocoder)
        for module in (eeg_encoder, audio_encoder, regressor, *parts):
            if module is not None:  # what was trained is there already, what was loaded is not
                module.eval().requires_grad_(False).to(device())
        depends = digest([self.depends, self.config.model.vocoder.model_dump(mode="json")])
        return Trained(data, eeg_encoder, audio_encoder, regressor, pipeline, depends, self.speech_model)

    def train(self, stage: Stage, config: StageConfig, *depends: object) -> None:
        """Trains a stage unless it is done, and leaves its averaged weights in its modules."""
        self.depends[stage.name] = digest(
            [self.data.fingerprint, config.model_dump(mode="json"), self.config.seed, *depends]
        )
        folder = self.folder.stage(stage.name)
        if is_done(folder, self.depends[stage.name]):
            load_weights(folder / WEIGHTS, stage.modules)
            return
        stimuli = self.data.windows["stimulus"].to_numpy()
        sampler = TrainingSampler(
            self.rows, stimuli[self.rows], config.batch_size, derived_seed(self.config.seed, stage.name) % 2**31
        )
        size = config.batch_size
        train_stage(
            stage,
            lambda index: self.data.batch(sampler.rows(index)),
            lambda: (self.data.batch(self.valid_rows[i : i + size]) for i in range(0, len(self.valid_rows), size)),
            config,
            folder,
            self.depends[stage.name],
            self.config.seed,
        )

    def seeded(self, name: str) -> None:
        """Initial weights depend on the training seed and the module's name alone."""
        torch.manual_seed(derived_seed(self.config.seed, "init", name))

    def fit_alignment(self, encoder: nn.Module) -> None:
        """Gives an encoder that aligns subjects their training EEG, evenly spread over the recordings."""
        if isinstance(encoder, AlignedConv):
            batch = self.data.batch(evenly(self.rows, ALIGNMENT_WINDOWS))
            encoder.fit_alignment(batch.eeg, batch.subject)

    def contrastive(self, denoiser: Denoiser | None) -> tuple[nn.Module, nn.Module]:
        """Where the denoiser has a prior, that is trained here, and stays as it is when the denoiser is trained."""
        config, model, data = self.config, self.config.model, self.data
        n_frames = self.config.embedding_frames
        sizes = {"dim": model.embedding.dim, "n_frames": n_frames}
        self.seeded("eeg_encoder")
        eeg_encoder = model.eeg_encoder.build(n_subjects=data.n_subjects, n_channels=data.n_channels, **sizes)
        self.fit_alignment(eeg_encoder)
        start: list[object] = []
        if config.training.contrastive.init is not None:
            start_eeg_encoder(eeg_encoder, config.training.contrastive.init)
            start = [{"init": sha256(config.training.contrastive.init)}]
        self.seeded("audio_encoder")
        audio_encoder = model.audio_encoder.build(n_bands=data.features.heard.shape[1], **sizes)
        audio_encoder.fit_scale(training_stimuli(data, data.features.heard))
        parts = [model.embedding.model_dump(), model.eeg_encoder.model_dump(), model.audio_encoder.model_dump(), *start]
        if self.speech_model is not None:
            parts.append({"speech_model": self.speech_model.signature})
        stage = ContrastiveStage(eeg_encoder, audio_encoder)
        training = config.training
        prior = None if denoiser is None else denoiser.latent_prior
        if prior is not None:
            assert training.diffusion is not None
            weights = {"prior_weight": training.prior_weight, "audio_share": training.diffusion.audio_share}
            stage = ContrastiveStage(eeg_encoder, audio_encoder, prior, self.latents, **weights)
            parts += [weights, model.denoiser.model_dump(), {"autoencoder": self.depends["autoencoder"]}]
        self.train(stage, training.contrastive, *parts)
        if prior is not None:
            prior.requires_grad_(False)
        return eeg_encoder, audio_encoder

    def regression(self, config: StageConfig) -> nn.Module:
        model, data = self.config.model, self.data
        choice = model.regressor or model.eeg_encoder
        self.seeded("regressor")
        encoder = choice.build(
            n_subjects=data.n_subjects, n_channels=data.n_channels, dim=data.n_bands, n_frames=data.n_frames
        )
        self.fit_alignment(encoder)
        regressor = Regressor(encoder, training_stimuli(data, data.features.features))
        self.train(RegressionStage(regressor), config, choice.model_dump())
        return regressor

    def autoencoder(self) -> AutoencoderKL:
        training, choice = self.config.training.autoencoder, self.config.model.autoencoder
        assert training is not None
        self.seeded("autoencoder")
        autoencoder = choice.build()
        if training.gradient_checkpointing:
            autoencoder.enable_gradient_checkpointing()
        if isinstance(autoencoder, LinearSkipAutoencoder):
            features = training_stimuli(self.data, self.data.features.features)
            autoencoder.fit_skip(to_image(autoencoder, features.transpose(1, 2).unsqueeze(1)))
        start: list[str] = []
        if training.init is not None:
            start_autoencoder(autoencoder, training.init)
            start = fingerprint(training.init, "vae")
        stage = AutoencoderStage(autoencoder, training.kl_weight, training.crop_frames)
        self.train(stage, training, choice.model_dump(), *start)
        return autoencoder.eval().requires_grad_(False)

    def denoiser(self, autoencoder: AutoencoderKL) -> Denoiser:
        """Untrained, for the latents of this autoencoder, which it encodes."""
        config, training = self.config, self.config.training.diffusion
        assert training is not None
        encoded = encoded_stimuli(
            autoencoder,
            self.data,
            self.folder.stage("latents"),
            self.depends["autoencoder"],
            cached=training.cache_latents,
            published=training.init is not None,
        )
        self.latents = encoded if training.cache_latents else autoencoder
        self.seeded("denoiser")
        denoiser = config.model.denoiser.build(
            latent_channels=config.model.autoencoder.latent_channels,
            latent_frames=encoded.shape[2],
            latent_bins=encoded.shape[3],
            cond_dim=config.model.embedding.dim,
            cond_frames=config.embedding_frames,
            schedule=config.model.schedule,
        )
        if training.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        return denoiser

    def diffusion(
        self, eeg_encoder: nn.Module, audio_encoder: nn.Module, autoencoder: AutoencoderKL, denoiser: Denoiser
    ) -> EEG2SpeechPipeline:
        config, training = self.config, self.config.training.diffusion
        assert training is not None
        assert self.latents is not None
        start: list[str] = []
        if training.init is not None:
            start_denoiser(denoiser, training.init)
            start = fingerprint(training.init, "unet")
        stage = DiffusionStage(
            denoiser,
            eeg_encoder,
            audio_encoder,
            noise_scheduler(config.model.schedule),
            self.latents,
            audio_share=training.audio_share,
            null_share=training.null_share,
            min_snr_gamma=training.min_snr_gamma,
            contrastive_weight=training.contrastive_weight,
            audio_first=training.audio_first,
            crop_frames=training.crop_frames,
        )
        parts = (config.model.denoiser.model_dump(), config.model.schedule.model_dump())
        self.train(stage, training, *parts, self.depends["contrastive"], self.depends["autoencoder"], *start)
        chosen = config.sampling.call_arguments()
        pipeline = EEG2SpeechPipeline(
            eeg_encoder=eeg_encoder,
            denoiser=denoiser,
            vae=autoencoder,
            vocoder=config.model.vocoder.build(),
            scheduler=sampler_of(config.model.schedule, config.sampling),
            audio_encoder=audio_encoder,
            latent_frames=config.latent_frames,
            latent_bins=audio.N_MELS // config.model.autoencoder.downsampling,
            **chosen,
        )
        pipeline.set_progress_bar_config(disable=True)
        depends = digest(
            [self.depends["diffusion"], config.model.vocoder.model_dump(mode="json"), config.sampling.scheduler, chosen]
        )
        if not is_done(self.folder.pipeline, depends):
            with step(self.folder.pipeline, depends):
                pipeline.save_pretrained(self.folder.pipeline)
        return pipeline
