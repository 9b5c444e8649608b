"""configs/ancestor_audioldm_eeg.yaml against the file it reproduces, typed in here from its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eeg2speech import audio
from eeg2speech.config import ExperimentConfig, load
from eeg2speech.errors import UserError
from eeg2speech.models.schedule import noise_scheduler
from eeg2speech.runs import RunFolder
from eeg2speech.training.run import train

CONFIG = Path(__file__).parents[1] / "configs" / "ancestor_audioldm_eeg.yaml"

# audioldm_eeg.yaml, github.com/inogii/AudioLDM-training-finetuning, commit f3ba17cbfbe9384cdfc746e41add607493646659
STEP = {"max_steps": 800_000, "save_checkpoint_every_n_steps": 5000}
AUDIO = {"sampling_rate": 16_000, "filter_length": 1024, "win_length": 1024, "hop_length": 160, "n_mel_channels": 64}
DIFFUSION = {
    "base_learning_rate": 1.0e-4,
    "warmup_steps": 2000,
    "batchsize": 2,
    "linear_start": 0.0015,
    "linear_end": 0.0195,
    "timesteps": 1000,
    "unconditional_prob_cfg": 0.1,
}
UNET = {
    "extra_film_condition_dim": 1024,
    "model_channels": 128,
    "channel_mult": [1, 2, 3, 5],
    "attention_resolutions": [8, 4, 2],
    "num_res_blocks": 2,
    "num_head_channels": 32,
}
FIRST_STAGE = {"ch": 128, "ch_mult": [1, 2, 4], "num_res_blocks": 2, "embed_dim": 8, "batchsize": 4}
EVALUATION = {"unconditional_guidance_scale": 3.5, "ddim_sampling_steps": 200}


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load(CONFIG)


def test_training_is_the_ancestors(config: ExperimentConfig) -> None:
    diffusion = config.training.diffusion
    assert diffusion is not None
    assert diffusion.steps == STEP["max_steps"]
    assert diffusion.checkpoint_every == STEP["save_checkpoint_every_n_steps"]
    assert diffusion.batch_size * diffusion.gradient_accumulation == DIFFUSION["batchsize"]
    assert diffusion.learning_rate == DIFFUSION["base_learning_rate"]
    assert (diffusion.warmup_steps, diffusion.schedule) == (DIFFUSION["warmup_steps"], "constant")
    assert diffusion.null_share == DIFFUSION["unconditional_prob_cfg"]
    # torch.optim.AdamW(params, lr), LitEma(decay=0.9999), no clipping and no weight of timesteps in its code
    assert (diffusion.weight_decay, diffusion.ema_decay, diffusion.gradient_clip) == (0.01, 0.9999, None)
    assert diffusion.min_snr_gamma is None
    # the condition is the embedding of EEG, whose encoder is not trained
    assert (diffusion.audio_share, diffusion.contrastive_weight) == (0.0, None)


def test_noise_is_the_ancestors(config: ExperimentConfig) -> None:
    schedule = config.model.schedule
    assert schedule.prediction_type == "epsilon"  # type: ignore[union-attr]
    root = np.linspace(DIFFUSION["linear_start"] ** 0.5, DIFFUSION["linear_end"] ** 0.5, int(DIFFUSION["timesteps"]))
    np.testing.assert_allclose(noise_scheduler(schedule).betas.numpy(), root**2, rtol=1e-5)


def test_networks_are_the_ancestors(config: ExperimentConfig) -> None:
    denoiser, autoencoder = config.model.denoiser, config.model.autoencoder
    assert config.model.embedding.dim == UNET["extra_film_condition_dim"]
    assert denoiser.conditioning == ("film",)
    assert list(denoiser.channels) == [UNET["model_channels"] * m for m in UNET["channel_mult"]]
    attention = [2**level in UNET["attention_resolutions"] for level in range(4)]
    assert list(denoiser.attention) == attention
    assert (denoiser.layers_per_block, denoiser.head_dim) == (UNET["num_res_blocks"], UNET["num_head_channels"])
    assert list(autoencoder.channels) == [FIRST_STAGE["ch"] * m for m in FIRST_STAGE["ch_mult"]]
    assert autoencoder.layers_per_block == FIRST_STAGE["num_res_blocks"]
    assert (autoencoder.latent_channels, autoencoder.downsampling) == (FIRST_STAGE["embed_dim"], 4)
    stage = config.training.autoencoder
    assert stage is not None
    assert (stage.steps, stage.batch_size, stage.learning_rate) == (0, FIRST_STAGE["batchsize"], 8.0e-6)
    assert config.model.vocoder.name == "hifigan"


def test_sound_and_sampling_are_the_ancestors(config: ExperimentConfig) -> None:
    mine = (audio.SAMPLE_RATE, audio.N_FFT, audio.N_FFT, audio.HOP_LENGTH, audio.N_MELS)
    assert mine == tuple(AUDIO.values())
    sampling = config.sampling
    assert (sampling.scheduler, sampling.num_inference_steps) == ("ddim", EVALUATION["ddim_sampling_steps"])
    assert sampling.guidance_scale == EVALUATION["unconditional_guidance_scale"]


def test_its_clips_fit(config: ExperimentConfig) -> None:
    """`duration: 10.24` makes latents of `latent_t_size: 256` and `latent_f_size: 16`."""
    longer = load(CONFIG, ["windows.length_s=10.24"], "x")
    frames = round(longer.windows.length_s * audio.FRAME_RATE_HZ)
    down = longer.model.autoencoder.downsampling
    assert (frames / down, audio.N_MELS / down) == (256, 16)


def test_validation_is_not_the_test(config: ExperimentConfig) -> None:
    assert config.splits.valid > 0
    assert config.splits.test > 0


def test_missing_weights_are_said_before_anything_is_done(config: ExperimentConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vae holds no config\.json.*import audioldm"):
        train(config, RunFolder(tmp_path / "run"))
    without = ["training.autoencoder={steps: 1, batch_size: 4, learning_rate: 1.0e-4}"]
    with pytest.raises(UserError, match=r"vocoder\.path: no HiFi-GAN in data/hifigan/vocoder"):
        train(load(CONFIG, without, "x"), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
