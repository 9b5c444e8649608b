"""The autoencoder that starts at principal components, against SVD."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eeg2speech.models.autoencoder import (
    AutoencoderConfig,
    LinearSkipAutoencoder,
    decode,
    encode,
    fit_scale,
    from_image,
    image_error,
    to_image,
)


def skip_autoencoder(**values: object) -> LinearSkipAutoencoder:
    torch.manual_seed(0)
    chosen = {"patch": 4, "channels": (16,), "layers_per_block": 1, "latent_channels": 6, "norm_groups": 4}
    config = AutoencoderConfig.model_validate(chosen | {"mid_attention": False, "linear_skip": True} | values)
    autoencoder = config.build().eval()
    assert isinstance(autoencoder, LinearSkipAutoencoder)
    return autoencoder


def test_a_linear_skip_starts_at_the_principal_components() -> None:
    """The reconstruction is the best of rank 6 (Eckart and Young), by SVD; its latents are the scores, up to sign."""
    autoencoder, rng = skip_autoencoder(), np.random.default_rng(0)
    log_mel = torch.from_numpy(rng.normal(size=(5, 1, 40, 64)).cumsum(axis=2).cumsum(axis=3)).float() / 20
    image = to_image(autoencoder, log_mel)
    autoencoder.fit_skip(image)
    patches = image.movedim(1, -1).flatten(0, -2).numpy()
    mean = patches.mean(axis=0)
    _, _, components = np.linalg.svd(patches - mean, full_matrices=False)
    expected = (patches - mean) @ components[:6].T
    with torch.no_grad():
        latent = autoencoder.encode(image).latent_dist.mode()
        again = autoencoder.decode(latent).sample
    np.testing.assert_allclose(again.movedim(1, -1).flatten(0, -2), expected @ components[:6] + mean, atol=1e-4)
    scores = latent.movedim(1, -1).flatten(0, -2).numpy()
    np.testing.assert_allclose(np.abs(scores), np.abs(expected), atol=1e-4)


def test_the_network_beside_the_skip_is_trained_and_components_keep_their_proportions() -> None:
    autoencoder = skip_autoencoder()
    image = to_image(autoencoder, torch.randn(3, 1, 40, 64))
    autoencoder.train().decode(autoencoder.encode(image).latent_dist.sample()).sample.square().sum().backward()
    assert float(autoencoder.quant_conv.weight.grad.abs().sum()) > 0
    assert float(autoencoder.decoder.conv_out.weight.grad.abs().sum()) > 0
    latents = torch.randn(4, 6, 10, 16) * torch.arange(1.0, 7).view(1, 6, 1, 1)
    fit_scale(autoencoder, latents)
    scaled = (latents - torch.tensor(autoencoder.config.latents_mean).view(1, 6, 1, 1)) / torch.tensor(
        autoencoder.config.latents_std
    ).view(1, 6, 1, 1)
    spread = scaled.std(dim=(0, 2, 3))
    own = latents.std(dim=(0, 2, 3))
    assert (spread / spread[0]).numpy() == pytest.approx((own / own[0]).numpy(), rel=1e-4)
    assert float(scaled.square().mean()) == pytest.approx(1.0, rel=1e-2)


def test_a_linear_skip_survives_the_disk(tmp_path: Path) -> None:
    autoencoder = skip_autoencoder(floor=-6.0)
    nn.init.normal_(autoencoder.decoder.conv_out.weight)
    image = to_image(autoencoder, torch.randn(2, 1, 40, 64))
    autoencoder.fit_skip(image)
    fit_scale(autoencoder, torch.randn(4, 6, 10, 16))
    autoencoder.save_pretrained(tmp_path)
    again = LinearSkipAutoencoder.from_pretrained(tmp_path).eval()
    log_mel = torch.randn(2, 1, 40, 64)
    with torch.no_grad():
        torch.testing.assert_close(encode(again, log_mel), encode(autoencoder, log_mel), rtol=0, atol=0)
        latent = torch.randn(2, 6, 10, 16)
        torch.testing.assert_close(decode(again, latent), decode(autoencoder, latent), rtol=0, atol=0)


@pytest.mark.parametrize("floor", [-9.0, -6.0, -3.0])
def test_below_the_floor_all_is_silence(floor: float) -> None:
    """What is seen is the logarithm of the mel and a noise of that level, by numpy; what is above comes back."""
    autoencoder = skip_autoencoder(floor=floor)
    log_mel = torch.empty(3, 1, 40, 64).uniform_(math.log(1e-5), 2.0)
    seen = F.pixel_shuffle(to_image(autoencoder, log_mel), 4) * 4.0 - 6.0
    np.testing.assert_allclose(seen, np.log(np.exp(log_mel.double().numpy()) + np.exp(floor)), atol=1e-5)
    again = from_image(autoencoder, to_image(autoencoder, log_mel))
    np.testing.assert_allclose(again[log_mel > floor], log_mel[log_mel > floor], atol=1e-4)
    silent = from_image(autoencoder, to_image(autoencoder, torch.full_like(log_mel, -1e3)) - 1.0)
    np.testing.assert_allclose(silent, math.log(1e-5), atol=1e-3)


@pytest.mark.parametrize(("floor", "sentence"), [(-12.0, "greater than -11.5"), (-6.0, "floor needs linear_skip")])
def test_a_floor_that_cannot_be_is_refused(floor: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AutoencoderConfig.model_validate({"channels": (16,), "norm_groups": 4, "floor": floor})


def test_the_stage_counts_the_error_above_the_floor() -> None:
    """By hand: a mean absolute difference of log(mel + exp(floor)), whatever lies below."""
    autoencoder = skip_autoencoder(floor=-5.0)
    a, b = (torch.empty(2, 1, 8, 64).uniform_(-11, 1) for _ in range(2))
    b[a < -8] = -11.0
    found = image_error(autoencoder, to_image(autoencoder, a), to_image(autoencoder, b))
    heard = [np.log(np.exp(x.numpy()) + np.exp(-5.0)) for x in (a, b)]
    assert float(found) == pytest.approx(float(np.abs(heard[0] - heard[1]).mean()), rel=1e-4)


@pytest.mark.parametrize("values", [{"channels": (16, 16)}, {"latent_channels": 17}])
def test_a_linear_skip_needs_patches_of_the_latents_size(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="linear_skip takes a patch to a latent"):
        skip_autoencoder(**values)
