"""The stages: what each trains, and towards what. All run through `training.loop.train`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from torch import Tensor, nn

from eeg2speech.batch import Batch
from eeg2speech.losses import clip_loss, similarity
from eeg2speech.models.autoencoder import encode, image_error, to_image
from eeg2speech.models.denoiser import ConditionalDenoiser
from eeg2speech.models.layers import normalise_embedding
from eeg2speech.models.prior import LatentPrior
from eeg2speech.training.loop import Stage, window_means
from eeg2speech.training.objectives import add_noise
from eeg2speech.training.processes import gathered, process_index


class AutoencoderStage(Stage):
    """Log-mel to log-mel through the latent: mean absolute error plus a small Kullback-Leibler term.

    Trained on random crops, since it is convolutional and a crop costs less than a window.
    """

    def __init__(self, autoencoder: AutoencoderKL, kl_weight: float, crop_frames: int) -> None:
        super().__init__("autoencoder", {"autoencoder": autoencoder})
        self.autoencoder = autoencoder
        self.kl_weight, self.crop_frames = kl_weight, crop_frames

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        autoencoder = self.autoencoder
        log_mel = self._crop(batch.log_mel) if autoencoder.training else batch.log_mel
        image = to_image(autoencoder, log_mel)
        posterior = autoencoder.encode(image).latent_dist
        latent = posterior.sample()
        error = image_error(autoencoder, autoencoder.decode(latent).sample, image)
        kl = posterior.kl().float().sum() / latent.numel()
        return {"loss": error + self.kl_weight * kl, "l1": error, "kl": kl}

    def _crop(self, log_mel: Tensor) -> Tensor:
        spare = log_mel.shape[2] - self.crop_frames
        if spare <= 0:
            return log_mel
        start = int(torch.randint(spare + 1, ()))
        return log_mel[:, :, start : start + self.crop_frames]


class ContrastiveStage(Stage):
    """The EEG encoder and the audio encoder, brought together by the contrastive loss.

    With a `prior` the embeddings must also say what the latent is: of each example one is read by it, the audio's
    with probability `audio_share`. `latents` are as in `DiffusionStage`.
    """

    def __init__(
        self,
        eeg_encoder: nn.Module,
        audio_encoder: nn.Module,
        prior: LatentPrior | None = None,
        latents: Tensor | AutoencoderKL | None = None,
        *,
        prior_weight: float = 1.0,
        audio_share: float = 0.25,
    ) -> None:
        modules = {"eeg_encoder": eeg_encoder, "audio_encoder": audio_encoder}
        super().__init__(
            "contrastive",
            modules | ({} if prior is None else {"prior": prior}),
            frozen={"autoencoder": latents} if isinstance(latents, AutoencoderKL) else {},
        )
        self.prior, self.latents = prior, latents
        self.prior_weight, self.audio_share = prior_weight, audio_share

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self._terms(*self._embedded(batch), batch)

    def _embedded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        estimate = self.modules["eeg_encoder"](batch.eeg, batch.positions, batch.subject)
        return estimate, self.modules["audio_encoder"](batch.heard)

    def _terms(self, estimate: Tensor, candidate: Tensor, batch: Batch) -> dict[str, Tensor]:
        contrastive = contrast(estimate, candidate, batch.stimulus, self.modules.training)
        if self.prior is None or self.latents is None:
            return {"loss": contrastive}
        cond = mixed_condition(estimate, candidate, self.audio_share)
        terms = self.prior.loss(cond, latents_of(self.latents, batch).to(batch.eeg))
        return {"loss": contrastive + self.prior_weight * terms["prior"], "contrastive": contrastive} | terms

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Means of the terms of the loss over windows, and top-1 accuracy among all unique validation stimuli."""
        estimates, stimuli = [], []
        candidates: dict[int, Tensor] = {}

        def terms() -> Iterator[tuple[dict[str, Tensor], int]]:
            for batch in batches:
                estimate, candidate = self._embedded(batch)
                estimates.append(estimate)
                stimuli.append(batch.stimulus)
                candidates.update(zip(batch.stimulus.tolist(), candidate, strict=True))
                yield self._terms(estimate, candidate, batch), len(batch)

        means = window_means(terms())
        unique = torch.tensor(sorted(candidates))
        scores = similarity(torch.cat(estimates), torch.stack([candidates[int(s)] for s in unique]))
        hit = unique[scores.argmax(dim=1).cpu()] == torch.cat(stimuli).cpu()
        return means | {"top1": float(hit.float().mean())}


class RegressionStage(Stage):
    """The rival: EEG straight to log-mel, mean absolute error."""

    def __init__(self, regressor: nn.Module) -> None:
        super().__init__("regression", {"regressor": regressor})

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        estimate = self.modules["regressor"](batch.eeg, batch.positions, batch.subject)
        return {"loss": (estimate.float() - batch.features).abs().mean()}


class DiffusionStage(Stage):
    """The denoiser, on latents, conditioned on embeddings of EEG or of audio or on nothing.

    Each example's condition is the EEG estimate, with probability `audio_share` the audio embedding
    instead (so that `oracle` is in distribution), and with probability `null_share` overall the
    learned null. In the share `audio_first` of the steps, from the start, the audio embedding stands
    for every EEG estimate (AudioLDM trains on audio alone: Liu et al., ICML 2023); validation keeps to
    `audio_share`, so that its curve is of one task. `contrastive_weight` None freezes the encoders; a
    number trains them jointly, with the contrastive loss kept at that weight so that the pair stays a pair.
    `latents` are those of every stimulus (n_stimuli, L, T, W), or the autoencoder that encodes them at each step.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        eeg_encoder: nn.Module,
        audio_encoder: nn.Module,
        scheduler: SchedulerMixin,
        latents: Tensor | AutoencoderKL,
        *,
        audio_share: float,
        null_share: float,
        min_snr_gamma: float | None,
        contrastive_weight: float | None,
        audio_first: float = 0.0,
        crop_frames: int | None = None,
    ) -> None:
        encoders = {"eeg_encoder": eeg_encoder, "audio_encoder": audio_encoder}
        joint = contrastive_weight is not None
        frozen = {} if isinstance(latents, Tensor) else {"autoencoder": latents}
        super().__init__(
            "diffusion",
            {"denoiser": denoiser} | (encoders if joint else {}),
            frozen=frozen | ({} if joint else encoders),
        )
        self.eeg_encoder, self.audio_encoder, self.denoiser = eeg_encoder, audio_encoder, denoiser
        self.scheduler, self.latents = scheduler, latents
        self.audio_share, self.null_share, self.gamma = audio_share, null_share, min_snr_gamma
        self.contrastive_weight, self.audio_first = contrastive_weight, audio_first
        self.crop_frames = crop_frames

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x0 = latents_of(self.latents, batch).to(batch.eeg)
        with torch.set_grad_enabled(self.contrastive_weight is not None and torch.is_grad_enabled()):
            estimate = self.eeg_encoder(batch.eeg, batch.positions, batch.subject)
            candidate = self.audio_encoder(batch.heard)
        cond = self._condition(estimate, candidate)
        latent, seen = self._crop(x0, cond)
        noised = add_noise(self.scheduler, latent, self.gamma)
        predicted = self.denoiser(noised.latent, noised.t, seen).float()
        error = (predicted - noised.target).square().mean(dim=(1, 2, 3))
        terms = {"loss": (noised.weight * error).mean(), "error": error.mean()}
        if self.contrastive_weight is not None:
            terms["contrastive"] = contrast(estimate, candidate, batch.stimulus, self.modules.training)
            terms["loss"] = terms["loss"] + self.contrastive_weight * terms["contrastive"]
        return terms

    def _crop(self, x0: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """The same random stretch of latents and conditions, in training."""
        n = self.crop_frames
        if n is None or not self.denoiser.training or n >= x0.shape[2]:
            return x0, cond
        fold = cond.shape[2] // x0.shape[2]
        start = int(torch.randint(x0.shape[2] - n + 1, ()))
        return x0[:, :, start : start + n], cond[:, :, start * fold : (start + n) * fold]

    def _condition(self, estimate: Tensor, candidate: Tensor) -> Tensor:
        n = len(estimate)
        only_audio = self.denoiser.training and self.progress < self.audio_first
        cond = mixed_condition(estimate, candidate, 1.0 if only_audio else self.audio_share)
        dropped = torch.rand(n, device=estimate.device) < self.null_share
        return self.denoiser.drop(cond, dropped)


def contrast(estimate: Tensor, candidate: Tensor, stimulus: Tensor, training: bool) -> Tensor:
    """The contrastive loss; in training among the candidates of all processes, for validation is the first one's."""
    if not training:
        return clip_loss(estimate, candidate, stimulus)
    return clip_loss(estimate, gathered(candidate), gathered(stimulus), process_index() * len(estimate))


@torch.no_grad()
def latents_of(latents: Tensor | AutoencoderKL, batch: Batch) -> Tensor:
    """(B, L, T, W), from those of every stimulus (n_stimuli, L, T, W) or from the autoencoder that makes them."""
    return latents[batch.stimulus.cpu()] if isinstance(latents, Tensor) else encode(latents, batch.log_mel)


def mixed_condition(estimate: Tensor, candidate: Tensor, audio_share: float) -> Tensor:
    """(B, D, T') each -> the EEG's embedding, or with probability `audio_share` the audio's, on one scale."""
    from_audio = torch.rand(len(estimate), device=estimate.device) < audio_share
    return torch.where(from_audio.view(-1, 1, 1), normalise_embedding(candidate), normalise_embedding(estimate))
