"""Every module against loops, formulas or another implementation, at tiny sizes."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from eeg2speech import audio
from eeg2speech.models.audio_encoder import DeepMel
from eeg2speech.models.autoencoder import AutoencoderConfig, decode, encode, fit_scale, from_image, to_image
from eeg2speech.models.denoiser import Denoiser, DenoiserConfig
from eeg2speech.models.eeg_encoder import AlignedConvConfig, ClipConv, ClipConvConfig, LinearEncoder
from eeg2speech.models.layers import (
    DilatedConvs,
    SpatialAttention,
    SubjectLayer,
    normalise_embedding,
    resample_frames,
)
from eeg2speech.models.vocoder import GriffinLimVocoder
from tests.metrics_fixture import tones


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def sensors(batch: int = 2, n: int = 7) -> tuple[Tensor, Tensor]:
    """EEG (batch, n, 20) and positions."""
    return torch.randn(batch, n, 20), torch.rand(batch, n, 2)


# Spatial attention


def test_spatial_attention_is_the_papers_sum() -> None:
    """a_j(x, y) over harmonics k, l; softmax over sensors; Défossez et al. (2023)."""
    attention = SpatialAttention(3, 18, 0.0).eval()
    eeg, positions = sensors()
    heads = attention.heads.detach().double().numpy()
    out = attention(eeg, positions).detach().numpy()
    for b in range(2):
        for j in range(3):
            score = np.zeros(7)
            for c, (x, y) in enumerate((positions[b].double().numpy() + 0.2) / 1.4):
                for k in range(3):
                    for m in range(3):
                        angle = 2 * math.pi * (k * x + m * y)
                        score[c] += heads[j, 3 * k + m] * math.cos(angle) + heads[j, 9 + 3 * k + m] * math.sin(angle)
            weight = np.exp(score) / np.exp(score).sum()
            np.testing.assert_allclose(out[b, j], weight @ eeg[b].double().numpy(), atol=1e-5)


def test_opposite_edges_of_the_scalp_are_told_apart() -> None:
    attention = SpatialAttention(3, 18, 0.0)
    left, right = attention.basis(torch.tensor([[0.0, 0.5], [1.0, 0.5]]))
    assert float((left - right).norm()) > 0.5


def test_the_order_of_sensors_does_not_matter() -> None:
    attention = SpatialAttention(3, 18, 0.0).eval()
    eeg, positions = sensors()
    order = torch.randperm(7)
    torch.testing.assert_close(attention(eeg[:, order], positions[:, order]), attention(eeg, positions))


def test_a_missing_sensor_has_no_influence() -> None:
    encoder = tiny_clip_conv().eval()
    eeg, positions = sensors()
    subject = torch.tensor([0, 1])
    without = encoder(eeg[:, :5], positions[:, :5], subject)
    positions[:, 5:] = torch.nan
    for value in (0.0, 1e3):
        eeg[:, 5:] = value
        torch.testing.assert_close(encoder(eeg, positions, subject), without)


def test_a_missing_sensor_gets_no_gradient() -> None:
    encoder = tiny_clip_conv()
    eeg, positions = sensors()
    positions[0, 2:] = torch.nan
    eeg.requires_grad_()
    encoder(eeg, positions, torch.tensor([0, 1])).square().sum().backward()
    assert eeg.grad is not None
    assert not eeg.grad[0, 2:].any()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_training_drops_the_sensors_near_a_point() -> None:
    """Which are left out always fits in a disc of the radius, and evaluation drops none."""
    attention = SpatialAttention(2, 18, 0.2)
    positions = torch.rand(400, 30, 2)
    dropped = attention.train().weights(positions)[:, 0] == 0
    assert not (attention.eval().weights(positions) == 0).any()
    # a disc of radius .2 around a uniform point of the unit square covers this share of it on average
    u = np.random.default_rng(0).random((2, 200_000, 2))
    expected = float((np.linalg.norm(u[0] - u[1], axis=1) <= 0.2).mean())
    assert float(dropped.float().mean()) == pytest.approx(expected, rel=0.1)
    for row, places in zip(dropped, positions, strict=True):
        if row.sum() > 1:
            assert float(torch.pdist(places[row]).max()) <= 0.4


def test_sensors_that_are_all_near_are_all_kept() -> None:
    attention = SpatialAttention(2, 18, 5.0).train()
    _, positions = sensors()
    positions[0, 1:] = torch.nan
    weights = attention.weights(positions)
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 2))
    assert weights[0, :, 0].tolist() == [1.0, 1.0]


# The other layers


def test_subject_layer_is_a_matrix_for_each_listener() -> None:
    layer = SubjectLayer(4, 3)
    x, subject = torch.randn(5, 4, 6), torch.tensor([2, 0, 1, 2, -1])
    matrices = layer.matrices.detach().numpy()
    wanted = [(matrices[s] if s >= 0 else matrices.mean(axis=0)) @ x[b].numpy() for b, s in enumerate(subject.tolist())]
    np.testing.assert_allclose(layer(x, subject).detach().numpy(), wanted, atol=1e-5)


def test_dilated_convs_by_hand() -> None:
    """Residual where sizes match, gated after every second, dilation 2^(k mod 5)."""
    convs = DilatedConvs(3, 4, 7).eval()
    x = torch.randn(2, 3, 40)
    y = x
    for k in range(7):
        conv, norm = convs.convs[k][0], convs.convs[k][1]
        assert conv.dilation == (2 ** (k % 5),)
        z = nn.functional.gelu(norm(nn.functional.conv1d(y, conv.weight, conv.bias, 1, 2 ** (k % 5), 2 ** (k % 5))))
        y = z if k == 0 else y + z
        if k % 2 == 1:
            gate = convs.gates[k][0]
            a, b = nn.functional.conv1d(y, gate.weight, gate.bias, padding=1).chunk(2, dim=1)
            y = a * torch.sigmoid(b)
    torch.testing.assert_close(convs(x), y)


def test_frames_are_interpolated_up_and_averaged_down() -> None:
    x = torch.randn(2, 3, 12)
    centres = (np.arange(30) + 0.5) / 30 * 12 - 0.5
    wanted = [[np.interp(centres, np.arange(12), row) for row in rows] for rows in x.numpy()]
    np.testing.assert_allclose(resample_frames(x, 30).numpy(), wanted, atol=1e-5)
    torch.testing.assert_close(resample_frames(x, 4), x.unflatten(2, (4, 3)).mean(dim=3))
    assert resample_frames(x, 12) is x


def test_a_normalised_embedding_has_unit_power_whatever_its_size() -> None:
    x = torch.randn(3, 4, 5)
    out = normalise_embedding(x)
    assert out.square().mean(dim=(1, 2)).tolist() == pytest.approx([1.0] * 3)
    torch.testing.assert_close(normalise_embedding(1e3 * x), out)
    assert torch.isfinite(normalise_embedding(torch.zeros(1, 4, 5))).all()


# Encoders


def tiny_clip_conv() -> ClipConv:
    return ClipConv(
        n_subjects=2, dim=6, n_frames=10, virtual_channels=5, fourier_size=18, dropout_radius=0.2, channels=8, depth=4
    )


def test_clip_conv_has_the_published_size() -> None:
    """Counted from the paper's text: 27 listeners, 120 outputs."""
    virtual, channels, subjects, dim = 270, 320, 27, 120
    attention = virtual * 2048
    initial, subject = virtual * virtual + virtual, subjects * virtual**2
    convs = (3 * virtual + 1) * channels + 9 * (3 * channels + 1) * channels
    norms, gates = 10 * 2 * channels, 5 * (3 * channels + 1) * 2 * channels
    head = (channels + 1) * 2 * channels + (2 * channels + 1) * dim
    wanted = attention + initial + subject + convs + norms + gates + head
    encoder = ClipConvConfig().build(n_subjects=subjects, dim=dim, n_frames=360, n_channels=60)
    assert sum(p.numel() for p in encoder.parameters()) == wanted


def test_clip_conv_hears_one_listener_at_a_time() -> None:
    """In evaluation a row depends on itself alone, and on who listens."""
    encoder = tiny_clip_conv().eval()
    eeg, positions = sensors(3)
    subject = torch.tensor([0, 1, 1])
    together = encoder(eeg, positions, subject)
    assert together.shape == (3, 6, 10)
    for b in range(3):
        torch.testing.assert_close(encoder(eeg[b : b + 1], positions[b : b + 1], subject[b : b + 1])[0], together[b])
    assert not torch.allclose(encoder(eeg, positions, 1 - subject), together)


def test_a_linear_encoder_is_linear_and_centred() -> None:
    """An impulse at sample 30 gives back each filter, reversed, around frame 30."""
    encoder = LinearEncoder(n_subjects=1, dim=2, n_frames=61, n_channels=3, lags=9)
    nn.init.eye_(encoder.subject.matrices.data[0])
    eeg = torch.zeros(1, 3, 61)
    eeg[0, 1, 30] = 1.0
    out = encoder(eeg, torch.zeros(1, 3, 2), torch.zeros(1, dtype=torch.int64)) - encoder.filters.bias[:, None]
    wanted = torch.zeros(2, 61)
    wanted[:, 26:35] = encoder.filters.weight[:, 1].flip(1)
    torch.testing.assert_close(out[0], wanted)


def test_deep_mel_standardises_by_the_training_split() -> None:
    encoder = DeepMel(n_bands=4, dim=6, n_frames=10, channels=8, depth=2).eval()
    features = 3.0 + 2.0 * torch.randn(50, 4, 20)
    encoder.fit_scale(features)
    np.testing.assert_allclose(encoder.mean[:, 0], features.numpy().mean(axis=(0, 2)), atol=1e-5)
    np.testing.assert_allclose(encoder.std[:, 0], features.numpy().std(axis=(0, 2), ddof=1), atol=1e-5)
    plain = DeepMel(n_bands=4, dim=6, n_frames=10, channels=8, depth=2).eval()
    plain.convs, plain.head = encoder.convs, encoder.head
    standard = (features - features.mean(dim=(0, 2), keepdim=True)) / features.std(dim=(0, 2)).view(1, -1, 1)
    torch.testing.assert_close(encoder(features), plain(standard), atol=1e-4, rtol=1e-4)
    assert encoder(features).shape == (50, 6, 10)


# Autoencoder


def tiny_autoencoder() -> AutoencoderKL:
    sizes = AutoencoderConfig(channels=(8, 16, 16), layers_per_block=1, latent_channels=4, norm_groups=4)
    return sizes.build().eval().requires_grad_(False)


def test_latents_are_a_quarter_and_of_unit_variance() -> None:
    autoencoder = tiny_autoencoder()
    log_mel = torch.randn(6, 1, 300, 64)
    raw = autoencoder.encode(log_mel).latent_dist.mode()
    assert raw.shape == (6, 4, 75, 16)
    fit_scale(autoencoder, raw)
    latent = encode(autoencoder, log_mel)
    np.testing.assert_allclose(latent.mean(dim=(0, 2, 3)), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(latent.std(dim=(0, 2, 3)), np.ones(4), atol=1e-5)
    torch.testing.assert_close(decode(autoencoder, latent), autoencoder.decode(raw).sample, atol=1e-4, rtol=1e-4)


def test_a_published_scaling_factor_is_obeyed() -> None:
    autoencoder = tiny_autoencoder()
    autoencoder.register_to_config(scaling_factor=0.25)
    log_mel = torch.randn(1, 1, 32, 64)
    raw = autoencoder.encode(log_mel).latent_dist.mode()
    torch.testing.assert_close(encode(autoencoder, log_mel), 0.25 * raw)
    torch.testing.assert_close(decode(autoencoder, 0.25 * raw), autoencoder.decode(raw).sample)


def test_the_scale_is_saved_with_the_weights(tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder()
    log_mel = torch.randn(2, 1, 32, 64)
    fit_scale(autoencoder, 3.0 + torch.randn(5, 4, 8, 16))
    autoencoder.save_pretrained(tmp_path)
    again = type(autoencoder).from_pretrained(tmp_path)
    torch.testing.assert_close(encode(again, log_mel), encode(autoencoder, log_mel), rtol=0, atol=0)


# Denoiser

KINDS = ("film", "cross_attention", "time_aligned")
EVERY_CONDITIONING = [kinds for n in (1, 2, 3) for kinds in combinations(KINDS, n)]


def tiny_denoiser(
    conditioning: tuple[str, ...], attention: tuple[bool, ...] = (True, False), head_dim: int = 4
) -> Denoiser:
    sizes = DenoiserConfig(
        channels=(8, 16),
        layers_per_block=1,
        attention=attention,
        head_dim=head_dim,
        norm_groups=4,
        conditioning=conditioning,  # type: ignore[arg-type]
        aligned_channels=2,
    )
    return sizes.build(latent_channels=3, latent_bins=4, cond_dim=6, cond_frames=10).eval().requires_grad_(False)


@pytest.mark.parametrize("conditioning", EVERY_CONDITIONING, ids="+".join)
@pytest.mark.parametrize("attention", [(True, False), (False, True), (True, True)], ids=str)
def test_every_conditioning_builds_runs_and_listens(conditioning: tuple[str, ...], attention: tuple[bool, ...]) -> None:
    denoiser = tiny_denoiser(conditioning, attention)
    latent, t, cond = torch.randn(2, 3, 15, 4), torch.tensor([10, 900]), torch.randn(2, 6, 10)
    out = denoiser(latent, t, cond)
    assert out.shape == latent.shape
    assert torch.isfinite(out).all()
    assert not torch.allclose(denoiser(latent, t, cond.flip(0)), out, atol=1e-4)
    torch.testing.assert_close(denoiser(latent[1:], t[1:], cond[1:]), out[1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("conditioning", [("film",), ("time_aligned",), ("film", "time_aligned")], ids="+".join)
def test_a_denoiser_needs_no_attention(conditioning: tuple[str, ...]) -> None:
    denoiser = tiny_denoiser(conditioning, (False, False))
    latent, t, cond = torch.randn(2, 3, 15, 4), torch.tensor(500), torch.randn(2, 6, 10)
    assert not any("attn" in name for name, _ in denoiser.named_parameters())
    assert not torch.allclose(denoiser(latent, t, cond.flip(0)), denoiser(latent, t, cond), atol=1e-4)


@pytest.mark.parametrize("conditioning", [("film",), ("time_aligned",), ("cross_attention",)], ids="+".join)
def test_heads_are_as_wide_as_the_config_says(conditioning: tuple[str, ...]) -> None:
    denoiser = tiny_denoiser(conditioning, (True, True), head_dim=4)
    heads = {m.inner_dim // m.heads for m in denoiser.modules() if type(m).__name__ == "Attention"}
    assert heads == {4}


def test_only_film_is_blind_to_timing() -> None:
    latent, t, cond = torch.randn(1, 3, 16, 4), torch.tensor(500), torch.randn(1, 6, 10)
    moved = cond.roll(5, dims=2)
    for kind in ("film", "time_aligned"):
        denoiser = tiny_denoiser((kind,))
        assert torch.allclose(denoiser(latent, t, moved), denoiser(latent, t, cond), atol=1e-5) == (kind == "film")


def test_time_aligned_conditioning_reaches_its_own_moment() -> None:
    """A change of the condition at 70 % of the window changes the input there, and nowhere else."""
    denoiser = tiny_denoiser(("time_aligned",), (False, False))
    seen: list[Tensor] = []
    denoiser.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    latent, cond = torch.randn(1, 3, 20, 4), torch.randn(1, 6, 10)
    changed = cond.clone()
    changed[:, :, 7] += 1.0
    for condition in (cond, changed):
        denoiser(latent, torch.tensor(500), condition)
    frames = (seen[1] - seen[0]).abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert 11 <= int(frames.min()) <= 14
    assert 15 <= int(frames.max()) <= 18


def test_lengths_that_do_not_halve_are_padded_with_zeros_and_cropped() -> None:
    denoiser = tiny_denoiser(("film",))
    latent, t, cond = torch.randn(1, 3, 15, 4), torch.tensor(500), torch.randn(1, 6, 10)
    padded = torch.cat([latent, torch.zeros(1, 3, 1, 4)], dim=2)
    wanted = denoiser.unet(padded, t, encoder_hidden_states=None, class_labels=cond.mean(dim=2)).sample[:, :, :15]
    torch.testing.assert_close(denoiser(latent, t, cond), wanted)


def test_dropped_rows_are_the_null_condition() -> None:
    denoiser = tiny_denoiser(("time_aligned",))
    denoiser.null_cond.data.normal_()
    cond = torch.randn(3, 6, 10)
    dropped = denoiser.drop(cond, torch.tensor([False, True, False]))
    assert torch.equal(dropped[1:2], denoiser.null(1))
    assert torch.equal(dropped[::2], cond[::2])
    assert torch.equal(denoiser.null(2)[1], denoiser.null_cond.expand(6, 10))


def test_the_null_condition_is_learned() -> None:
    denoiser = tiny_denoiser(("time_aligned",)).requires_grad_(True)
    cond = denoiser.drop(torch.randn(2, 6, 10), torch.tensor([True, False]))
    denoiser(torch.randn(2, 3, 16, 4), torch.tensor(5), cond).square().mean().backward()
    assert denoiser.null_cond.grad is not None
    assert denoiser.null_cond.grad.abs().sum() > 0


@pytest.mark.parametrize("conditioning", EVERY_CONDITIONING, ids="+".join)
def test_a_saved_denoiser_is_the_same(conditioning: tuple[str, ...], tmp_path: Path) -> None:
    denoiser = tiny_denoiser(conditioning)
    denoiser.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    inputs = torch.randn(1, 3, 15, 4), torch.tensor(500), torch.randn(1, 6, 10)
    torch.testing.assert_close(again(*inputs), denoiser(*inputs), atol=1e-5, rtol=0)


# Vocoder


@pytest.fixture(scope="module")
def speech() -> Tensor:
    """(2, N) synthesised sentences."""
    hibari = pytest.importorskip("hibari")
    voice = hibari.Hibari()
    clips = [
        audio.resample(voice(text, seed=k), 24_000)[:32_000]
        for k, text in enumerate(("Lucy wants seven green chairs.", "Peter sold twelve old boats."))
    ]
    return torch.from_numpy(np.stack([0.06 * c / np.sqrt(np.mean(c**2)) for c in clips])).float()


def test_speech_survives_its_log_mel(speech: Tensor) -> None:
    """Spectral convergence ||S - S'|| / ||S|| of the mel magnitudes after Griffin-Lim from them alone."""
    log_mel = audio.log_mel(speech)[:, 0]
    again = GriffinLimVocoder(32)(log_mel, [1, 2])
    assert again.shape == speech.shape
    mel, mel_again = log_mel.exp(), audio.log_mel(again)[:, 0].exp()
    convergence = (mel_again - mel).norm(dim=(1, 2)) / mel.norm(dim=(1, 2))
    assert float(convergence.max()) < 0.12
    # and far better than the phase it started from
    start = audio.log_mel(GriffinLimVocoder(0)(log_mel, [1, 2]))[:, 0].exp()
    assert float(convergence.max()) < 0.4 * float(((start - mel).norm(dim=(1, 2)) / mel.norm(dim=(1, 2))).min())


def test_overlap_add_inverts_the_transform(speech: Tensor) -> None:
    """With the true phase the waveform comes back, up to the edges that only one window covers."""
    pad = (audio.N_FFT - audio.HOP_LENGTH) // 2
    window = torch.hann_window(audio.N_FFT)
    padded = nn.functional.pad(speech[:, None], (pad, pad), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, audio.N_FFT, audio.HOP_LENGTH, window=window, center=False, return_complex=True)
    again = GriffinLimVocoder._inverse(spectrum, window)[:, pad : pad + speech.shape[1]]
    torch.testing.assert_close(again, speech, atol=1e-5, rtol=0)


def test_an_example_sounds_the_same_in_every_batch() -> None:
    log_mel = audio.log_mel(torch.from_numpy(tones(3, 16_000)))[:, 0]
    vocoder = GriffinLimVocoder(4)
    together = vocoder(log_mel, [5, 6, 7])
    for b in range(3):
        torch.testing.assert_close(vocoder(log_mel[b : b + 1], [5 + b])[0], together[b], atol=1e-5, rtol=0)
    assert not torch.allclose(vocoder(log_mel, [8, 6, 7])[0], together[0], atol=1e-3)


def test_hifi_gan_loads_from_a_folder_and_its_absence_is_said(tmp_path: Path) -> None:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    from eeg2speech.errors import UserError
    from eeg2speech.models.vocoder import HifiGanConfig

    sizes = SpeechT5HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=16,
        upsample_rates=[5, 4, 4, 2],
        upsample_kernel_sizes=[11, 8, 8, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    SpeechT5HifiGan(sizes).save_pretrained(tmp_path / "voice")
    vocoder = HifiGanConfig(path=str(tmp_path / "voice")).build()
    assert vocoder(torch.randn(2, 10, 64)).shape == (2, 1600)
    with pytest.raises(UserError, match=r"vocoder\.path.*nowhere"):
        HifiGanConfig(path=str(tmp_path / "nowhere")).build()


def test_patches_are_invertible_and_cost_no_precision() -> None:
    autoencoder = AutoencoderConfig(patch=4, channels=(8,), layers_per_block=1, norm_groups=4).build()
    log_mel = torch.randn(2, 1, 40, 64) * 3 - 7
    image = to_image(autoencoder, log_mel)
    assert image.shape == (2, 16, 10, 16)
    assert encode(autoencoder, log_mel).shape == (2, 8, 10, 16)
    torch.testing.assert_close(from_image(autoencoder, image), log_mel, rtol=0, atol=1e-5)


def test_euclidean_alignment_whitens_each_subject() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(2, 5, 5)
    subject = torch.arange(40) % 2
    eeg = 0.2 * mixing[subject] @ torch.randn(40, 5, 200)
    encoder = AlignedConvConfig(channels=8, depth=2).build(n_subjects=2, dim=3, n_frames=50, n_channels=5)
    encoder.fit_alignment(eeg, subject)
    for index in range(2):
        whitened = (encoder.alignment[index] @ eeg[subject == index].clamp(-5, 5)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(whitened @ whitened.T / whitened.shape[1], torch.eye(5), atol=1e-3, rtol=0)
    assert encoder(eeg, torch.rand(40, 5, 2), subject).shape == (40, 3, 50)


def test_a_linear_skip_of_deep_mel_is_a_1x1_convolution_beside_it() -> None:
    network = DeepMel(n_bands=5, dim=3, n_frames=12, channels=8, depth=2, linear_skip=True).eval()
    network.fit_scale(features := 2.0 + 3.0 * torch.randn(4, 5, 12))
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    assert network.skip is not None
    standardised = (features - features.mean(dim=(0, 2)).view(-1, 1)) / features.std(dim=(0, 2)).view(-1, 1)
    expected = torch.einsum("dk,bkf->bdf", network.skip.weight[:, :, 0], standardised) + network.skip.bias.view(-1, 1)
    torch.testing.assert_close(network(features), expected, rtol=1e-4, atol=1e-5)
