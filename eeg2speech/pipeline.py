"""EEG in, speech out: the trained modules behind one call."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from numpy.typing import ArrayLike
from torch import Tensor, nn

from eeg2speech.audio import HOP_LENGTH
from eeg2speech.models.autoencoder import decode
from eeg2speech.models.denoiser import ConditionalDenoiser
from eeg2speech.models.layers import normalise_embedding
from eeg2speech.models.schedule import set_steps

LEAST, MOST = 0.02, 20.0
"""Deviations of EEG that was scaled by its interquartile range lie within these, in volts or microvolts outside."""


class EEG2SpeechPipeline(DiffusionPipeline):
    """Encodes EEG, samples a latent conditioned on it, decodes to log-mel, and vocodes.

    Load a saved one with this class: `EEG2SpeechPipeline.from_pretrained(folder)`.
    """

    _optional_components = ["audio_encoder"]
    model_cpu_offload_seq = "eeg_encoder->denoiser->vae->vocoder"

    def __init__(
        self,
        eeg_encoder: nn.Module,
        denoiser: ConditionalDenoiser,
        vae: AutoencoderKL,
        vocoder: nn.Module,
        scheduler: SchedulerMixin,
        audio_encoder: nn.Module | None = None,
        latent_frames: int = 75,
        latent_bins: int = 16,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        temperature: float = 1.0,
        eeg_input: dict[str, Any] | None = None,
    ) -> None:
        """Latents are (B, L, `latent_frames`, `latent_bins`); the other numbers are those of a call that names none.

        `eeg_input` says what EEG it was trained on, and a call is held to it: `ch_names` in their order, `sfreq_hz`,
        `n_times` of a window, `subjects` in the order of their indices.
        """
        super().__init__()
        self.register_modules(
            eeg_encoder=eeg_encoder,
            denoiser=denoiser,
            vae=vae,
            vocoder=vocoder,
            scheduler=scheduler,
            audio_encoder=audio_encoder,
        )
        self.register_to_config(
            latent_frames=latent_frames,
            latent_bins=latent_bins,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            temperature=temperature,
            eeg_input=eeg_input,
        )

    @classmethod
    def from_pretrained(cls, *arguments: Any, **settings: Any) -> EEG2SpeechPipeline:
        """diffusers' own, after importing every part there is: it loads none whose module nobody has imported."""
        import eeg2speech.config  # noqa: F401

        return super().from_pretrained(*arguments, **settings)

    @torch.no_grad()
    def __call__(
        self,
        eeg: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        subject: ArrayLike | None = None,
        *,
        cond: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        temperature: float | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """EEG (B, C, T), positions (B, C, 2), subject (B,) -> waveforms (B, N) at 16 kHz.

        EEG is scaled, baseline-corrected and clamped as `StudyData.batch` gives it; a missing sensor's position is
        NaN, an unknown listener's subject -1. Instead of EEG, an embedding `cond` (B, D, T') may be given. Example b
        depends on its own input and `seeds[b]` (b where not given) alone, not on the batch it is in. How it is
        sampled is as the pipeline was made where it is not given: a trained one has the values it was evaluated with.

        Raises ValueError for EEG that is not as `config.eeg_input` has it, and warns where its size cannot be right.
        """
        if cond is None:
            if eeg is None or positions is None or subject is None:
                raise ValueError("give eeg, positions and subject, or cond")
            cond = self.eeg_encoder(*self._checked(eeg, positions, subject))
        seeds = list(range(len(cond))) if seeds is None else list(seeds)
        steps = self._chosen("num_inference_steps", num_inference_steps)
        if len(seeds) != len(cond) or steps < 1:
            raise ValueError(f"{len(cond)} examples need as many seeds and a step at least: {len(seeds)}, {steps}")
        latent = self.sample(
            normalise_embedding(cond),
            steps,
            self._chosen("guidance_scale", guidance_scale),
            seeds,
            self._chosen("guidance_rescale", guidance_rescale),
            self._chosen("temperature", temperature),
        )
        return self.vocode(decode(self.vae, latent), seeds)

    @torch.no_grad()
    def unconditional(
        self, seeds: Sequence[int], *, num_inference_steps: int | None = None, temperature: float | None = None
    ) -> Tensor:
        """(n, N) waveforms from the learned null condition, one a seed."""
        steps = self._chosen("num_inference_steps", num_inference_steps)
        temperature = self._chosen("temperature", temperature)
        latent = self.sample(self.denoiser.null(len(seeds)), steps, 1.0, seeds, temperature=temperature)
        return self.vocode(decode(self.vae, latent), seeds)

    def use(self, mixed_precision: str) -> None:
        """From here on denoiser and autoencoder compute in bfloat16 with `bf16`, with `no` as they are."""
        if mixed_precision == "bf16":
            for module in (self.denoiser, self.vae):
                module.bfloat16()

    def _checked(self, eeg: ArrayLike, positions: ArrayLike, subject: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
        """On the pipeline's device, in the encoder's types."""
        eeg, positions = (torch.as_tensor(x, dtype=torch.float32, device=self.device) for x in (eeg, positions))
        subject = torch.as_tensor(subject, device=self.device)
        known = self.config.eeg_input or {}
        if eeg.ndim != 3:
            raise ValueError(f"eeg is {tuple(eeg.shape)}: give (windows, channels, samples)")
        n_channels = self.eeg_encoder.config.get("n_channels")  # an encoder by positions takes any layout
        for name, found, wanted in (
            ("channels", eeg.shape[1], n_channels),
            ("samples", eeg.shape[2], known.get("n_times")),
        ):
            if wanted and found != wanted:
                raise ValueError(f"eeg has {found} {name}, the training's had {wanted}: see config.eeg_input")
        if positions.shape != (*eeg.shape[:2], 2):
            raise ValueError(f"positions are {tuple(positions.shape)}: give (windows, channels, 2) for each of eeg")
        if subject.shape != eeg.shape[:1] or subject.is_floating_point():
            raise ValueError(f"subject is {subject.dtype} {tuple(subject.shape)}: give a whole number for each window")
        if "subjects" in known and not -1 <= int(subject.min()) <= int(subject.max()) < len(known["subjects"]):
            raise ValueError(f"subject goes from -1, unknown, to {len(known['subjects']) - 1}: see config.eeg_input")
        if not eeg.isfinite().all():
            raise ValueError("eeg holds values that are no finite numbers: leave those windows out, or repair them")
        if not LEAST < float(eeg.std()) < MOST:
            warnings.warn(
                f"eeg deviates by {float(eeg.std()):.2g}, which is no scaled EEG: divide by its interquartile range",
                stacklevel=3,
            )
        return eeg, positions, subject.long()

    def _chosen(self, name: str, given: float | None) -> Any:
        return self.config[name] if given is None else given

    def sample(
        self,
        cond: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        seeds: Sequence[int],
        guidance_rescale: float = 0.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Normalised condition (B, D, T') -> latent (B, L, T, W).

        Classifier-free guidance (Ho & Salimans 2022): null + scale * (cond - null); scale 1 costs one pass.
        `guidance_rescale` is the phi of Lin et al. (WACV 2024), section 3.4. `temperature` is the size of the
        noise at the start. The latent is float32, whatever the denoiser computes in.
        """
        latent = self.noise(seeds).to(cond.device) * temperature
        cond = cond.to(self.denoiser.dtype)
        null = self.denoiser.null(len(cond)) if guidance_scale != 1.0 else None
        set_steps(self.scheduler, num_inference_steps, cond.device)
        # Schedulers of flow matching scale nothing, and have no words for it.
        latent = latent * getattr(self.scheduler, "init_noise_sigma", 1.0)
        scale_input = getattr(self.scheduler, "scale_model_input", lambda latent, t: latent)
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = scale_input(latent, t)
            predicted = self.denoiser(scaled, t, cond).float()
            if null is not None:
                free = self.denoiser(scaled, t, null).float()
                guided = free + guidance_scale * (predicted - free)
                predicted = rescale(guided, predicted, guidance_rescale) if guidance_rescale else guided
            latent = self.scheduler.step(predicted, t, latent).prev_sample
        return latent

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """(B, L, T, W) standard normal, row b from `seeds[b]` alone, the same on every device."""
        shape = (int(self.vae.config.latent_channels), self.config.latent_frames, self.config.latent_bins)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def vocode(self, log_mel: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, 1, T, 64) -> (B, N) at 16 kHz within [-1, 1]."""
        from eeg2speech.models.vocoder import GriffinLimVocoder

        mel = log_mel[:, 0].float()
        iterative = isinstance(self.vocoder, GriffinLimVocoder)
        waveform = self.vocoder(mel, seeds) if iterative else self.vocoder(mel)
        # AudioLDM's HiFi-GAN gives 32 samples more than its frames have.
        return waveform[:, : mel.shape[1] * HOP_LENGTH].clamp(-1.0, 1.0)


def rescale(guided: Tensor, cond: Tensor, phi: float) -> Tensor:
    """Gives guided predictions (B, L, T, W) the deviation of the conditioned ones, in part: phi 0 not at all, 1 wholly.

    Lin et al. (WACV 2024), equations 15 and 16; the deviation is each sample's own.
    """
    axes = tuple(range(1, guided.ndim))
    factor = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True).clamp(min=1e-8)
    return guided * (phi * factor + (1.0 - phi))
