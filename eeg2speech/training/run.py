"""From a configuration to a trained pipeline: every stage that is not done yet, in order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

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
from eeg2speech.models.denoiser import ConditionalDenoiser
from eeg2speech.models.schedule import noise_scheduler, sampler_of
from eeg2speech.models.speech_model import SpeechModel
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.runs import RunFolder, is_done, read_done, step
from eeg2speech.training.checkpoint import load_weights
from eeg2speech.training.code import code_of
from eeg2speech.training.latents import encoded_stimuli, evenly
from eeg2speech.training.loop import WEIGHTS, Stage, StageConfig, derived_seed
from eeg2speech.training.loop import train as train_stage
from eeg2speech.training.networks import build
from eeg2speech.training.pretrained import fingerprint, require_starts
from eeg2speech.training.stages import AutoencoderStage, ContrastiveStage, DiffusionStage, RegressionStage

VALIDATION_WINDOWS = 128

logger = logging.getLogger(__name__)


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
    folder.require_own()
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
        self.networks = build(config, data)
        # One per stage, filled in order: a later stage depends on the earlier ones it builds on.
        self.depends: dict[str, str] = {}
        self.latents: Tensor | AutoencoderKL | None = None  # of every stimulus, or what encodes them

    def run(self) -> Trained:
        networks, pipeline = self.networks, None
        if networks.autoencoder is not None:
            self.autoencoder(networks.autoencoder)
        self.contrastive()
        if networks.regressor is not None:
            self.regression(networks.regressor)
        if networks.autoencoder is not None and networks.denoiser is not None:
            pipeline = self.diffusion(networks.autoencoder, networks.denoiser)
        parts = () if pipeline is None else (pipeline.denoiser, pipeline.vae, pipeline.vocoder)
        for module in (networks.eeg_encoder, networks.audio_encoder, networks.regressor, *parts):
            if module is not None:  # what was trained is there already, what was loaded is not
                module.eval().requires_grad_(False).to(device())
        depends = digest([self.depends, self.config.model.vocoder.model_dump(mode="json")])
        encoders = (networks.eeg_encoder, networks.audio_encoder)
        return Trained(self.data, *encoders, networks.regressor, pipeline, depends, self.speech_model)

    def train(self, stage: Stage, config: StageConfig, *depends: object) -> None:
        """Trains a stage unless it is done, and leaves its averaged weights in its modules."""
        self.depends[stage.name] = digest(
            [self.data.fingerprint, config.model_dump(mode="json"), self.config.seed, *depends]
        )
        folder = self.folder.stage(stage.name)
        if is_done(folder, self.depends[stage.name]):
            _warn_of_other_code(stage, folder)
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

    def autoencoder(self, autoencoder: AutoencoderKL) -> None:
        """And the latents that it makes, at their scale."""
        training, diffusion = self.config.training.autoencoder, self.config.training.diffusion
        assert training is not None
        assert diffusion is not None
        start = [] if training.init is None else fingerprint(training.init, "vae")
        stage = AutoencoderStage(autoencoder, training.kl_weight, training.crop_frames)
        self.train(stage, training, self.config.model.autoencoder.model_dump(), *start)
        encoded = encoded_stimuli(
            autoencoder.eval().requires_grad_(False),
            self.data,
            self.folder.stage("latents"),
            self.depends["autoencoder"],
            cached=diffusion.cache_latents,
            published=diffusion.init is not None,
        )
        self.latents = encoded if diffusion.cache_latents else autoencoder

    def contrastive(self) -> None:
        """Where the denoiser has a prior, that is trained here, and stays as it is when the denoiser is trained."""
        networks, model, training = self.networks, self.config.model, self.config.training
        eeg_encoder, audio_encoder = networks.eeg_encoder, networks.audio_encoder
        parts = [model.embedding.model_dump(), model.eeg_encoder.model_dump(), model.audio_encoder.model_dump()]
        if training.contrastive.init is not None:
            parts.append({"init": sha256(training.contrastive.init)})
        if self.speech_model is not None:
            parts.append({"speech_model": self.speech_model.signature})
        stage = ContrastiveStage(eeg_encoder, audio_encoder)
        prior = None if networks.denoiser is None else networks.denoiser.latent_prior
        if prior is not None:
            assert training.diffusion is not None
            weights = {"prior_weight": training.prior_weight, "audio_share": training.diffusion.audio_share}
            stage = ContrastiveStage(eeg_encoder, audio_encoder, prior, self.latents, **weights)
            parts += [weights, model.denoiser.model_dump(), {"autoencoder": self.depends["autoencoder"]}]
        self.train(stage, training.contrastive, *parts)
        if prior is not None:
            prior.requires_grad_(False)

    def regression(self, regressor: nn.Module) -> None:
        model, training = self.config.model, self.config.training.regression
        assert training is not None
        self.train(RegressionStage(regressor), training, (model.regressor or model.eeg_encoder).model_dump())

    def diffusion(self, autoencoder: AutoencoderKL, denoiser: ConditionalDenoiser) -> EEG2SpeechPipeline:
        config, training = self.config, self.config.training.diffusion
        assert training is not None
        assert self.latents is not None
        eeg_encoder, audio_encoder = self.networks.eeg_encoder, self.networks.audio_encoder
        start = [] if training.init is None else fingerprint(training.init, "unet")
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
        chosen, eeg_input = config.sampling.call_arguments(), self.eeg_input()
        pipeline = EEG2SpeechPipeline(
            eeg_encoder=eeg_encoder,
            denoiser=denoiser,
            vae=autoencoder,
            vocoder=config.model.vocoder.build(),
            scheduler=sampler_of(config.model.schedule, config.sampling),
            audio_encoder=audio_encoder,
            latent_frames=config.latent_frames,
            latent_bins=audio.N_MELS // config.model.autoencoder.downsampling,
            eeg_input=eeg_input,
            **chosen,
        )
        pipeline.set_progress_bar_config(disable=True)
        vocoder = config.model.vocoder.model_dump(mode="json")
        depends = digest([self.depends["diffusion"], vocoder, config.sampling.scheduler, chosen, eeg_input])
        if not is_done(self.folder.pipeline, depends):
            with step(self.folder.pipeline, depends):
                pipeline.save_pretrained(self.folder.pipeline)
        return pipeline

    def eeg_input(self) -> dict[str, object]:
        data = self.data
        names = {"ch_names": list(data.ch_names), "subjects": list(data.subjects)}
        return names | {"sfreq_hz": data.preprocessing.sfreq, "n_times": data.n_times}


def _warn_of_other_code(stage: Stage, folder: Path) -> None:
    """What a stage depends on is its configuration: edited code is no reason to lose hours, but to say so."""
    then, now = (read_done(folder) or {}).get("code", {}), code_of(stage)
    if changed := sorted(name for name in then if now.get(name) != then[name]):
        logger.warning(
            "stage %s: %s changed since it was trained; delete %s to train it again",
            stage.name,
            ", ".join(changed),
            folder,
        )
