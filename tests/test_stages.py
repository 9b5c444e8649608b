"""The objectives against closed forms; who conditions the diffusion model, and who is trained with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eeg2speech.batch import Batch
from eeg2speech.config import NoiseScheduleConfig
from eeg2speech.models.autoencoder import encode
from eeg2speech.models.denoiser import Denoiser, DenoiserConfig
from eeg2speech.models.schedule import FlowScheduleConfig, noise_scheduler
from eeg2speech.training import processes
from eeg2speech.training.loop import StageConfig, train
from eeg2speech.training.objectives import add_noise
from eeg2speech.training.stages import AutoencoderStage, ContrastiveStage, DiffusionStage
from tests.model_fixture import DIM, FRAMES, tiny_pipeline

KINDS = ("v_prediction", "epsilon", "sample", "flow")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def schedule_of(kind: str, **values: object) -> NoiseScheduleConfig | FlowScheduleConfig:
    if kind == "flow":
        return FlowScheduleConfig()
    return NoiseScheduleConfig(prediction_type=kind, **values)  # type: ignore[arg-type]


def signal_and_noise(zero_terminal_snr: bool) -> tuple[np.ndarray, np.ndarray]:
    """a and s of x_t = a x0 + s eps, from AudioLDM's betas and algorithm 1 of Lin et al. (WACV 2024)."""
    betas = np.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 1000) ** 2
    a = np.sqrt(np.cumprod(1 - betas))
    if zero_terminal_snr:
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    return a, np.sqrt(1 - a**2)


# The objectives


@pytest.mark.parametrize("zero_terminal_snr", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_noisy_latent_and_its_target_are_the_papers(kind: str, zero_terminal_snr: bool) -> None:
    """Ho et al. (2020), equation 4; v = a eps - s x0 (Salimans & Ho 2022); a flow's line and its slope."""
    x0 = 2.0 + torch.randn(400, 2, 3, 4)
    noised = add_noise(noise_scheduler(schedule_of(kind, zero_terminal_snr=zero_terminal_snr)), x0)
    x0, latent, target = (x.double().numpy() for x in (x0, noised.latent, noised.target))
    if kind == "flow":
        a, s = 1 - noised.t.numpy() / 1000, noised.t.numpy() / 1000
    else:
        a, s = (values[noised.t.numpy()] for values in signal_and_noise(zero_terminal_snr))
    a, s = a.reshape(-1, 1, 1, 1), s.reshape(-1, 1, 1, 1)
    eps = (latent - a * x0) / s
    wanted = {"epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0, "flow": eps - x0}[kind]
    np.testing.assert_allclose(s * target, s * wanted, atol=2e-3)
    clear = s.ravel() > 0.2  # where dividing by s costs no precision
    assert eps[clear].mean() == pytest.approx(0.0, abs=0.05)
    assert eps[clear].std() == pytest.approx(1.0, abs=0.03)
    assert noised.t.float().mean() == pytest.approx(500, abs=60)
    assert noised.t.float().std() == pytest.approx(1000 / math.sqrt(12), abs=40)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_answer_to_the_objective_is_the_ideal_denoiser(kind: str) -> None:
    """Of normal data: what the conditional mean leaves over is uncorrelated with the noisy latent, at any time."""
    mean, sd, n = 0.5, 0.7, 200_000
    noised = add_noise(noise_scheduler(schedule_of(kind)), mean + sd * torch.randn(n, 1, 1, 1))
    latent, target, t = (x.flatten().double().numpy() for x in (noised.latent, noised.target, noised.t))
    a, s = (1 - t / 1000, t / 1000) if kind == "flow" else (v[t.astype(int)] for v in signal_and_noise(True))
    variance = a**2 * sd**2 + s**2
    x0 = mean + a * sd**2 / variance * (latent - a * mean)
    eps = s / variance * (latent - a * mean)
    left = target - {"epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0, "flow": eps - x0}[kind]
    for part in (t < 300, (t > 300) & (t < 700), t > 700):
        bound = 5 * left[part].std() / math.sqrt(part.sum())
        assert abs(left[part].mean()) < bound
        assert abs(np.corrcoef(left[part], latent[part])[0, 1]) < 5 / math.sqrt(part.sum())


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_min_snr_weighs_each_example_by_its_own_moment(gamma: float | None) -> None:
    noised = add_noise(noise_scheduler(NoiseScheduleConfig()), torch.zeros(500, 1, 1, 1), gamma)
    a, s = (values[noised.t.numpy()] for values in signal_and_noise(True))
    snr = a**2 / s**2
    wanted = np.ones(500) if gamma is None else np.minimum(snr, gamma) / (snr + 1)
    np.testing.assert_allclose(noised.weight.numpy(), wanted, atol=1e-4)


# The condition


class Recorder(nn.Module):
    """A denoiser that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.null_cond = nn.Parameter(torch.full((DIM, 1), 9.0))
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []

    drop = Denoiser.drop

    def forward(self, latent: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.shown.append((latent.detach(), t, cond.detach()))
        return latent * self.null_cond.mean() + 0 * cond.mean()


class Fixed(nn.Module):
    """An encoder whose embedding is one constant, learnable."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.embedding = nn.Parameter(value * torch.ones(DIM, FRAMES))

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.embedding.expand(len(x), -1, -1) + 0 * x.mean()


def batch(size: int, stimuli: int = 6) -> Batch:
    return Batch(
        eeg=torch.randn(size, 2, 360),
        positions=torch.rand(size, 2, 2),
        subject=torch.arange(size) % 2,
        stimulus=torch.arange(size) % stimuli,
        features=torch.randn(stimuli, 64, 32, generator=torch.Generator().manual_seed(0))[torch.arange(size) % stimuli],
    )


def recording_stage(**values: object) -> DiffusionStage:
    settings = {"audio_share": 0.25, "null_share": 0.1, "min_snr_gamma": None, "contrastive_weight": None}
    latents, scheduler = torch.randn(6, 4, 8, 16), noise_scheduler(NoiseScheduleConfig())
    # Normalised, the EEG's embedding is -1 and the audio's +1 everywhere.
    return DiffusionStage(
        Recorder(), Fixed(-2.0), Fixed(3.0), scheduler, latents, **(settings | values)  # type: ignore[arg-type]
    )  # fmt: skip


def shares(stage: DiffusionStage, size: int = 3000) -> dict[str, float]:
    """Which conditions the examples of a batch had."""
    stage.loss(replace(batch(size), eeg=torch.zeros(size, 1, 1)))
    first = stage.denoiser.shown[-1][2][:, 0, 0]
    assert torch.equal(stage.denoiser.shown[-1][2], first.view(-1, 1, 1).expand(-1, DIM, FRAMES)), "whole rows"
    return {name: float((first - v).abs().lt(1e-4).float().mean()) for name, v in CONDITIONS.items()}


CONDITIONS = {"eeg": -1.0, "audio": 1.0, "null": 9.0}


def test_each_example_draws_its_own_condition() -> None:
    found = shares(recording_stage())
    assert found == pytest.approx({"eeg": 0.9 * 0.75, "audio": 0.9 * 0.25, "null": 0.1}, abs=0.04)
    assert sum(found.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(("audio", "null"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_shares_at_their_ends_are_exact(audio: float, null: float) -> None:
    found = shares(recording_stage(audio_share=audio, null_share=null), 200)
    assert found == {"eeg": (1 - audio) * (1 - null), "audio": audio * (1 - null), "null": null}


def test_audio_comes_first_and_eeg_after_it() -> None:
    """And validation is of the later task all along."""
    stage = recording_stage(audio_first=0.5)
    stage.modules.train()
    for progress, wanted in ((0.0, 0.0), (0.499, 0.0), (0.5, 0.675), (0.9, 0.675)):
        stage.progress = progress
        assert shares(stage)["eeg"] == pytest.approx(wanted, abs=0.04 if wanted else 0)
    stage.modules.eval()
    stage.progress = 0.0
    assert shares(stage)["eeg"] == pytest.approx(0.675, abs=0.04)


@pytest.mark.parametrize("crop_frames", [None, 3, 8])
def test_a_crop_takes_the_same_stretch_of_latent_and_condition(crop_frames: int | None) -> None:
    """A latent of frame t that is t everywhere, and a condition of 2 t and 2 t + 1; validation sees all of both."""
    stage = recording_stage(crop_frames=crop_frames)
    frames = torch.arange(8.0).view(1, 1, 8, 1).expand(2, 4, 8, 16)
    cond = torch.arange(16.0).view(1, 1, 16).expand(2, DIM, 16)
    starts = set()
    for _ in range(60):
        stage.modules.train()
        latent, seen = stage._crop(frames, cond)
        assert latent.shape[2] == (crop_frames or 8)
        assert torch.equal(seen[:, 0, ::2], 2 * latent[:, 0, :, 0])
        assert torch.equal(seen[:, 0, 1::2], 2 * latent[:, 0, :, 0] + 1)
        starts.add(int(latent[0, 0, 0, 0]))
    assert starts == (set(range(6)) if crop_frames == 3 else {0})
    stage.modules.eval()
    assert stage._crop(frames, cond)[0].shape[2] == 8


@pytest.mark.parametrize("stopped_at", [None, 1, 3])
def test_the_loop_tells_the_stage_how_far_it_is(stopped_at: int | None, tmp_path: Path) -> None:
    """Audio for the first half of four steps, wherever training was interrupted."""
    settings = StageConfig(steps=4, batch_size=50, learning_rate=1e-3, ema_decay=0.0, checkpoint_every=1)
    first, second = (recording_stage(audio_first=0.5, null_share=0.0, audio_share=0.0) for _ in range(2))

    def batch_at(index: int) -> Batch:
        return replace(batch(50), eeg=torch.zeros(50, 1, 1))

    def failing_at(index: int) -> Batch:
        if index == stopped_at:
            raise RuntimeError
        return batch_at(index)

    if stopped_at is not None:
        with pytest.raises(RuntimeError):
            train(first, failing_at, list, settings, tmp_path, "d", 0, progress=False)
    train(second, batch_at, list, settings, tmp_path, "d", 0, progress=False)
    shown = [cond for _, _, cond in first.denoiser.shown + second.denoiser.shown]
    assert [float(cond.mean().round()) for cond in shown] == [1, 1, -1, -1]


# Who is trained


def tiny_stage(**values: object) -> DiffusionStage:
    torch.manual_seed(0)
    parts = tiny_pipeline()
    modules = (parts.denoiser, parts.eeg_encoder, parts.audio_encoder)
    for module in modules:
        module.requires_grad_(True)
    settings = {"audio_share": 0.25, "null_share": 0.1, "min_snr_gamma": 5.0, "contrastive_weight": None} | values
    latents = settings.pop("latents", torch.randn(6, 4, 8, 16))
    scheduler = noise_scheduler(settings.pop("schedule", NoiseScheduleConfig()))  # type: ignore[arg-type]
    return DiffusionStage(*modules, scheduler, latents, **settings)  # type: ignore[arg-type]


def moved(stage: DiffusionStage, folder: Path, **values: object) -> set[str]:
    """The parts whose parameters two steps of training change."""
    parts = {"denoiser": stage.denoiser, "eeg_encoder": stage.eeg_encoder, "audio_encoder": stage.audio_encoder}
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    settings = StageConfig.model_validate(
        {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.0, "ema_decay": 0.0} | values
    )
    train(stage, lambda i: batch(4), lambda: iter([batch(4)]), settings, folder, "d", 0, progress=False)
    return {
        name
        for name, part in parts.items()
        if any(not torch.equal(p, q) for p, q in zip(part.parameters(), before[name], strict=True))
    }


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_are_frozen_or_trained_with_it(kind: str, tmp_path: Path) -> None:
    schedule = schedule_of(kind)
    assert moved(tiny_stage(schedule=schedule, min_snr_gamma=None), tmp_path / "frozen") == {"denoiser"}
    saved = load_file(tmp_path / "frozen" / "weights.safetensors")
    assert {name.partition(".")[0] for name in saved} == {"denoiser"}
    joint = tiny_stage(schedule=schedule, min_snr_gamma=None, contrastive_weight=0.1, null_share=0.0)
    assert moved(joint, tmp_path / "joint") == {"denoiser", "eeg_encoder", "audio_encoder"}


def test_the_denoisers_error_reaches_a_jointly_trained_encoder() -> None:
    stage = tiny_stage(contrastive_weight=0.0, audio_share=0.0, null_share=0.0)
    nn.init.normal_(stage.denoiser.unet.conv_out.weight)
    stage.loss(batch(4))["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.eeg_encoder.parameters())


# What torch.compile reaches


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "latents encoded at each step"])
def test_every_network_of_a_stage_is_compiled_in_training_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backend that counts graphs and runs them as they are."""
    graphs: list[torch.fx.GraphModule] = []
    compiled: list[nn.Module] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def compile_(module: nn.Module) -> None:
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend=count)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    vae = tiny_pipeline().vae.requires_grad_(True)
    stages = {
        "autoencoder": lambda: AutoencoderStage(vae, kl_weight=1e-4, crop_frames=32),
        "diffusion": tiny_stage,
        "latents encoded at each step": lambda: tiny_stage(latents=vae),
    }
    stage, settings = stages[kind](), StageConfig(steps=1, batch_size=4, learning_rate=1e-3, compile=True)
    train(stage, lambda i: short(4), list, settings, tmp_path, "d", 0, progress=False)
    parts = [vae.encoder, vae.decoder] if kind != "diffusion" else []
    parts += [] if kind == "autoencoder" else [stage.denoiser, stage.eeg_encoder, stage.audio_encoder]
    assert {id(m) for m in compiled} == {id(m) for m in parts}
    made = len(graphs)
    assert made >= 2
    for module in parts:
        assert module._compiled_call_impl is None
    encode(vae, short(4).log_mel)
    assert len(graphs) == made, "what is sampled is not compiled"


# Latents and activations, kept or made again


def test_cached_latents_are_those_encoded_at_each_step() -> None:
    vae = tiny_pipeline().vae
    cached = encode(vae, batch(6).log_mel).detach()
    shown = []
    for latents in (cached, vae):
        stage = recording_stage()
        stage.latents = latents
        torch.manual_seed(5)
        stage.loss(replace(batch(6), eeg=torch.zeros(6, 1, 1)))
        shown.append(stage.denoiser.shown[0])
    torch.testing.assert_close(shown[0][0], shown[1][0], atol=1e-5, rtol=0)
    assert torch.equal(shown[0][1], shown[1][1])


def test_the_autoencoder_that_encodes_at_each_step_is_frozen(tmp_path: Path) -> None:
    vae = tiny_pipeline().vae.requires_grad_(True).train()
    stage = tiny_stage(latents=vae)
    before = [p.detach().clone() for p in vae.parameters()]
    train(
        stage, lambda i: short(4), list, StageConfig(steps=1, batch_size=4, learning_rate=0.1), tmp_path, "d", 0,
        progress=False,
    )  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))
    assert not vae.training
    assert not any(name.startswith("autoencoder") for name in load_file(tmp_path / "weights.safetensors"))


def short(size: int) -> Batch:
    return replace(batch(size), features=torch.randn(size, 64, 32, generator=torch.Generator().manual_seed(1)))


def autoencoder_stage() -> AutoencoderStage:
    torch.manual_seed(0)
    return AutoencoderStage(tiny_pipeline().vae.requires_grad_(True), kl_weight=1e-4, crop_frames=32)


@pytest.mark.parametrize("make", [tiny_stage, autoencoder_stage], ids=["denoiser", "autoencoder"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_checkpointed_gradients_are_the_same_from_fewer_activations(
    make: Callable[[], DiffusionStage | AutoencoderStage],
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "has_bfloat16", lambda device: True)
    weights, calls, kept = [], [], []
    for on in (False, True):
        stage = make()
        module = stage.denoiser if isinstance(stage, DiffusionStage) else stage.autoencoder
        if on:
            module.enable_gradient_checkpointing()
        counted: list[str] = []
        for name, part in module.named_modules():
            if type(part).__name__ == "ResnetBlock2D":
                part.register_forward_pre_hook(lambda *_, name=name, counted=counted: counted.append(name))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            stage.modules.train()
            stage.loss(short(4))
        kept.append(sum(sizes))
        counted.clear()
        settings = StageConfig(steps=2, batch_size=4, learning_rate=1e-2, mixed_precision=precision)  # type: ignore[arg-type]
        train(stage, lambda i: short(4), list, settings, tmp_path / str(on), "d", 0, progress=False)
        weights.append(load_file(tmp_path / str(on) / "weights.safetensors"))
        calls.append(len(counted))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert calls[1] > 1.5 * calls[0]
    assert kept[1] < 0.7 * kept[0]


def validation() -> Iterator[Batch]:
    yield batch(4)


@pytest.mark.parametrize("conditioning", [("film",), ("cross_attention",), ("film", "cross_attention", "time_aligned")])
def test_every_conditioning_trains_and_learns_its_null(conditioning: tuple[str, ...], tmp_path: Path) -> None:
    stage = tiny_stage()
    sizes = DenoiserConfig(
        channels=(8, 16), layers_per_block=1, attention=(False, True), head_dim=4, norm_groups=4,
        conditioning=conditioning, aligned_channels=2,  # type: ignore[arg-type]
    )  # fmt: skip
    denoiser = sizes.build(latent_channels=4, latent_bins=16, cond_dim=DIM, cond_frames=FRAMES)
    stage = DiffusionStage(
        denoiser, stage.eeg_encoder, stage.audio_encoder, stage.scheduler, torch.randn(6, 4, 8, 16),
        audio_share=0.25, null_share=0.5, min_snr_gamma=None, contrastive_weight=None,
    )  # fmt: skip
    null = denoiser.null_cond.detach().clone()
    settings = StageConfig(steps=3, batch_size=8, learning_rate=1e-2, ema_decay=0.0, log_every=1)
    train(stage, lambda i: batch(8), validation, settings, tmp_path, "d", 0, progress=False)
    assert not torch.equal(denoiser.null_cond, null)


# The contrastive pair on the validation split


class Given(nn.Module):
    """An encoder that says what is written down for each stimulus."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, marked: Tensor, *_: Tensor) -> Tensor:
        return self.embeddings[marked[:, 0, 0].long()]


def test_contrastive_validation_is_over_windows_and_unique_stimuli() -> None:
    """Two batches of unequal size, a stimulus in both: by hand."""
    generator = torch.Generator().manual_seed(3)
    heard, said = (torch.randn(4, 3, 5, generator=generator) for _ in range(2))
    stage = ContrastiveStage(Given(heard), Given(said))

    def batch(*stimuli: int) -> Batch:
        marks = torch.tensor(stimuli, dtype=torch.float32).view(-1, 1, 1)
        n = len(stimuli)
        return Batch(
            eeg=marks, positions=torch.zeros(n, 1, 2), subject=torch.zeros(n, dtype=torch.long),
            stimulus=torch.tensor(stimuli), features=marks,
        )  # fmt: skip

    with torch.no_grad():
        found = stage.validate([batch(0, 1, 2), batch(2, 3)])

    def score(estimate: int, candidate: int) -> float:
        direction = said[candidate] / said[candidate].norm()
        return float((heard[estimate] * direction).sum())

    def loss(*stimuli: int) -> float:
        rows = [[score(e, c) for c in stimuli] for e in stimuli]
        return sum(math.log(sum(math.exp(s) for s in row)) - row[i] for i, row in enumerate(rows))

    assert found["loss"] == pytest.approx((loss(0, 1, 2) + loss(2, 3)) / 5, rel=1e-5)
    hits = [max(range(4), key=lambda c: score(e, c)) == e for e in (0, 1, 2, 2, 3)]
    assert found["top1"] == pytest.approx(sum(hits) / 5)
    assert 0 < sum(hits) < 5, "an example that tells right from wrong"
