"""The pipeline: sampling against closed forms, seeds, batches, saving."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import ModelMixin
from torch import Tensor, nn

from benchmarks.modules import Made
from benchmarks.sizes import Shape
from eeg2speech import models
from eeg2speech.config import NoiseScheduleConfig
from eeg2speech.evaluation import SamplingConfig
from eeg2speech.models.autoencoder import AutoencoderConfig, decode
from eeg2speech.models.eeg_encoder import LinearEncoderConfig
from eeg2speech.models.layers import normalise_embedding
from eeg2speech.models.schedule import FlowScheduleConfig, network_calls
from eeg2speech.pipeline import EEG2SpeechPipeline, rescale
from eeg2speech.training.run import noise_scheduler, sampler_of
from tests.model_fixture import DIM, FRAMES, tiny_pipeline

EEG = torch.randn(3, 2, 360, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1))
SUBJECT = torch.tensor([0, 1, 1])
COND = torch.randn(3, DIM, FRAMES, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def pipeline() -> EEG2SpeechPipeline:
    return tiny_pipeline()


def test_eeg_becomes_three_seconds_of_sound(pipeline: EEG2SpeechPipeline) -> None:
    waveform = pipeline(EEG, POSITIONS, SUBJECT, num_inference_steps=2)
    assert waveform.shape == (3, 48_000)
    assert float(waveform.abs().max()) <= 1.0
    assert float(waveform.std()) > 0


def test_eeg_enters_through_its_normalised_embedding(pipeline: EEG2SpeechPipeline) -> None:
    cond = pipeline.eeg_encoder(EEG, POSITIONS, SUBJECT)
    from_eeg = pipeline(EEG, POSITIONS, SUBJECT, num_inference_steps=2)
    torch.testing.assert_close(pipeline(cond=7.0 * cond, num_inference_steps=2), from_eeg, atol=1e-4, rtol=0)


def test_something_to_listen_to_is_required(pipeline: EEG2SpeechPipeline) -> None:
    with pytest.raises(ValueError, match="eeg, positions and subject, or cond"):
        pipeline(EEG, POSITIONS)


def test_a_sample_depends_on_its_own_input_and_seed_alone(pipeline: EEG2SpeechPipeline) -> None:
    """Not on the batch's size, nor on its place in it."""
    values = {"num_inference_steps": 3, "guidance_scale": 2.0}
    together = pipeline(cond=COND, seeds=[11, 22, 33], **values)
    turned = pipeline(cond=COND.flip(0), seeds=[33, 22, 11], **values).flip(0)
    alone = torch.cat([pipeline(cond=COND[b : b + 1], seeds=[11 * (b + 1)], **values) for b in range(3)])
    torch.testing.assert_close(turned, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    assert not torch.allclose(pipeline(cond=COND, seeds=[11, 22, 34], **values)[2], together[2], atol=1e-3)


def test_starting_noise_is_standard_normal_and_a_function_of_the_seed(pipeline: EEG2SpeechPipeline) -> None:
    noise = pipeline.noise([5, 2**62 + 1, 5])
    assert torch.equal(noise[0], noise[2])
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    assert abs(float((noise[0] * noise[1]).mean())) < 0.05


def test_guidance_goes_away_from_the_null_condition(pipeline: EEG2SpeechPipeline) -> None:
    """One DDIM step to x0: the three samples lie on a line, in the proportion of their scales."""
    one_step = tiny_pipeline(SamplingConfig(scheduler="ddim"))
    cond = normalise_embedding(COND)
    null, plain, strong = (
        one_step.sample(c, 1, scale, [1, 2, 3])
        for c, scale in ((one_step.denoiser.null(3), 1.0), (cond, 1.0), (cond, 3.0))
    )
    torch.testing.assert_close(strong - null, 3.0 * (plain - null), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one_step.sample(cond, 1, 0.0, [1, 2, 3]), null, atol=1e-5, rtol=0)


def test_unconditional_is_the_null_condition(pipeline: EEG2SpeechPipeline) -> None:
    latent = pipeline.sample(pipeline.denoiser.null(2), 2, 1.0, [4, 5])
    wanted = pipeline.vocode(decoded(pipeline, latent), [4, 5])
    torch.testing.assert_close(pipeline.unconditional([4, 5], num_inference_steps=2), wanted)


def decoded(pipeline: EEG2SpeechPipeline, latent: Tensor) -> Tensor:
    config = pipeline.vae.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return pipeline.vae.decode(latent * std + mean).sample


@pytest.mark.parametrize(("guidance_scale", "bound"), [(1.0, 0.005), (2.0, 0.007)])
def test_in_bfloat16_only_the_networks_round(pipeline: EEG2SpeechPipeline, guidance_scale: float, bound: float) -> None:
    """What lies between ten steps is not rounded, which would double the error."""
    half = tiny_pipeline()
    half.use("bf16")
    assert {p.dtype for m in (half.denoiser, half.vae) for p in m.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.eeg_encoder.parameters()} == {torch.float32}
    values = (normalise_embedding(COND), 10, guidance_scale, [1, 2, 3])
    wanted, latent = pipeline.sample(*values), half.sample(*values)
    assert latent.dtype == torch.float32
    assert 0.0 < float((latent - wanted).norm() / wanted.norm()) < bound
    sound = half(EEG, POSITIONS, SUBJECT, num_inference_steps=2)
    assert sound.dtype == torch.float32
    assert float(sound.abs().mean()) == pytest.approx(
        float(pipeline(EEG, POSITIONS, SUBJECT, num_inference_steps=2).abs().mean()), rel=0.1
    )


class Known(nn.Module):
    """The ideal denoiser of latents that are normal with one mean and deviation at every point.

    E[x0 | x_t] of x_t = a x0 + s eps is  mean + a sd² / (a² sd² + s²) (x_t - a mean); in diffusion
    a² = alphas_cumprod[t], in a flow a = 1 - t / 1000 and s = t / 1000.
    """

    dtype = torch.float32

    def __init__(self, kind: str, alphas_cumprod: Tensor | None, mean: float, sd: float) -> None:
        super().__init__()
        self.kind, self.alphas_cumprod, self.mean, self.sd = kind, alphas_cumprod, mean, sd
        self.calls = 0

    def forward(self, latent: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.calls += 1
        if self.alphas_cumprod is None:
            a, s = 1 - t / 1000, t / 1000
        else:
            a, s = self.alphas_cumprod[t] ** 0.5, (1 - self.alphas_cumprod[t]) ** 0.5
        x0 = self.mean + a * self.sd**2 / (a**2 * self.sd**2 + s**2) * (latent - a * self.mean)
        eps = (latent - a * x0) / s.clamp(min=1e-4)
        return {"sample": x0, "epsilon": eps, "v_prediction": a * eps - s * x0, "flow": eps - x0}[self.kind]

    def null(self, batch: int) -> Tensor:
        return torch.zeros(batch, DIM, FRAMES)


def ideal(scheduler: str, kind: str, mean: float, sd: float) -> EEG2SpeechPipeline:
    """A pipeline whose denoiser is `Known`."""
    pipeline = tiny_pipeline(SamplingConfig(scheduler=scheduler), prediction=kind)  # type: ignore[arg-type]
    alphas_cumprod = None if kind == "flow" else pipeline.scheduler.alphas_cumprod
    object.__setattr__(pipeline, "denoiser", Known(kind, alphas_cumprod, mean, sd))
    return pipeline


SOLVERS = [
    *((scheduler, kind) for scheduler in ("ddim", "dpmsolver++") for kind in ("v_prediction", "sample", "epsilon")),
    ("euler", "flow"),
    ("heun", "flow"),
]


@pytest.mark.parametrize(("scheduler", "kind"), SOLVERS)
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_an_ideal_denoiser_of_one_point_is_sampled_exactly(scheduler: str, kind: str, steps: int) -> None:
    latent = ideal(scheduler, kind, 0.7, 0.0).sample(COND, steps, 1.0, [1, 2, 3])
    torch.testing.assert_close(latent, torch.full_like(latent, 0.7), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("scheduler", "order"), [("euler", 1), ("heun", 2)])
def test_a_flow_converges_to_the_exact_map_at_its_order(scheduler: str, order: int) -> None:
    """From noise z, the ordinary differential equation of N(mean, sd²) ends at mean + sd z."""
    pipeline = ideal(scheduler, "flow", -0.3, 0.6)
    exact = -0.3 + 0.6 * pipeline.noise([1, 2, 3])
    errors = [float((pipeline.sample(COND, n, 1.0, [1, 2, 3]) - exact).abs().mean()) for n in (9, 17, 33)]
    assert errors[2] < (0.03 if order == 1 else 2e-4)
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 0.7 * 2**order < coarse / fine < 1.2 * 2**order, errors


@pytest.mark.parametrize("scheduler", ["euler", "heun"])
def test_a_flow_is_solved_as_the_textbook_does(scheduler: str) -> None:
    """Step by step, in numbers: the velocity of N(mean, sd²) along x_s = (1 - s) x0 + s eps."""
    mean, sd, steps = 0.4, 0.5, 6

    def velocity(x: Tensor, s: float) -> Tensor:
        variance = (1 - s) ** 2 * sd**2 + s**2
        return (s - (1 - s) * sd**2) / variance * (x - (1 - s) * mean) - mean

    pipeline = ideal(scheduler, "flow", mean, sd)
    x = pipeline.noise([1, 2, 3]).double()
    # Heun's last step, from s = 1 / 1000, is Euler's: at s = 0 nothing is predicted.
    grid = torch.linspace(1, 0, steps + 1) if scheduler == "euler" else torch.linspace(1, 0.001, steps)
    for s, after in zip(grid.tolist(), [*grid.tolist()[1:], 0.0], strict=True):
        slope = velocity(x, s)
        if scheduler == "heun" and after > 0:
            slope = (slope + velocity(x + (after - s) * slope, after)) / 2
        x = x + (after - s) * slope
    torch.testing.assert_close(pipeline.sample(COND, steps, 1.0, [1, 2, 3]).double(), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("scheduler", "kind"), SOLVERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_cost_of_a_sample_is_counted(scheduler: str, kind: str, guidance_scale: float) -> None:
    pipeline = ideal(scheduler, kind, 0.0, 1.0)
    pipeline.sample(COND, 5, guidance_scale, [1, 2, 3])
    values = SamplingConfig(scheduler=scheduler, num_inference_steps=5, guidance_scale=guidance_scale)  # type: ignore[arg-type]
    assert pipeline.denoiser.calls == network_calls(values)


@pytest.mark.parametrize(("scheduler", "steps", "tolerance"), [("ddim", 200, 0.02), ("dpmsolver++", 100, 0.02)])
def test_an_ideal_denoiser_of_a_normal_is_sampled_with_its_spread(scheduler: str, steps: int, tolerance: float) -> None:
    pipeline = tiny_pipeline(SamplingConfig(scheduler=scheduler))
    object.__setattr__(pipeline, "denoiser", Known("v_prediction", pipeline.scheduler.alphas_cumprod, -0.3, 0.6))
    latent = pipeline.sample(COND, steps, 1.0, [1, 2, 3])
    assert float(latent.mean()) == pytest.approx(-0.3, abs=0.02)
    assert float(latent.std()) == pytest.approx(0.6, abs=tolerance)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "epsilon"])
def test_training_and_sampling_share_one_schedule(kind: str) -> None:
    """And with zero terminal SNR the last step is pure noise (but for what keeps a solver finite)."""
    schedule = NoiseScheduleConfig(prediction_type=kind)  # type: ignore[arg-type]
    forward = noise_scheduler(schedule)
    x0, eps = torch.full((1, 4), 3.0), torch.ones(1, 4)
    torch.testing.assert_close(forward.add_noise(x0, eps, torch.tensor([999])), eps)
    for scheduler in ("ddim", "dpmsolver++"):
        backward = sampler_of(schedule, SamplingConfig(scheduler=scheduler))
        backward.set_timesteps(10)
        assert int(backward.timesteps[0]) == 999
        assert backward.config.prediction_type == kind
        torch.testing.assert_close(backward.alphas_cumprod, forward.alphas_cumprod, atol=1e-6, rtol=1e-5)


def test_rescaled_guidance_is_the_papers() -> None:
    """Lin et al. (WACV 2024), equations 15 and 16: each sample back to the deviation of its conditioned prediction."""
    guided, cond = 3.0 + 5.0 * torch.randn(2, 4, 7, 3), torch.randn(2, 4, 7, 3)
    cond[1] *= 10.0
    for b in range(2):
        whole = guided[b] * cond[b].std() / guided[b].std()
        assert float(rescale(guided, cond, 1.0)[b].std()) == pytest.approx(float(cond[b].std()), rel=1e-5)
        for phi in (0.0, 0.7, 1.0):
            torch.testing.assert_close(rescale(guided, cond, phi)[b], phi * whole + (1 - phi) * guided[b])


def test_guidance_is_rescaled_at_every_step() -> None:
    """Two steps of Euler by hand; nothing changes without guidance, nor at phi 0."""
    pipeline = tiny_pipeline(SamplingConfig(scheduler="euler"), prediction="flow")
    cond, seeds = normalise_embedding(COND), [1, 2, 3]
    x, null = pipeline.noise(seeds), pipeline.denoiser.null(3)
    for s in (1.0, 0.5):
        t = torch.tensor(1000 * s)
        with_cond, free = pipeline.denoiser(x, t, cond), pipeline.denoiser(x, t, null)
        guided = free + 4.0 * (with_cond - free)
        scale = torch.stack([a.std() / b.std() for a, b in zip(with_cond, guided, strict=True)]).view(3, 1, 1, 1)
        x = x - 0.5 * (0.7 * guided * scale + 0.3 * guided)
    torch.testing.assert_close(pipeline.sample(cond, 2, 4.0, seeds, guidance_rescale=0.7), x, atol=1e-4, rtol=1e-4)
    assert torch.equal(pipeline.sample(cond, 2, 1.0, seeds, 0.7), pipeline.sample(cond, 2, 1.0, seeds))
    assert not torch.allclose(pipeline.sample(cond, 2, 4.0, seeds), x, atol=1e-2)
    spoken = [
        pipeline(cond=COND, num_inference_steps=2, guidance_scale=4.0, guidance_rescale=phi, seeds=seeds)
        for phi in (0.0, 0.7)
    ]
    torch.testing.assert_close(spoken[1], pipeline.vocode(decoded(pipeline, x), seeds), atol=1e-3, rtol=0)
    assert not torch.allclose(spoken[0], spoken[1], atol=1e-3)


@pytest.mark.parametrize("scheduler", ["euler", "heun"])
def test_a_saved_flow_says_the_same(scheduler: str, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(SamplingConfig(scheduler=scheduler), prediction="flow")  # type: ignore[arg-type]
    pipeline.save_pretrained(tmp_path)
    again = EEG2SpeechPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    values = {"num_inference_steps": 2, "guidance_scale": 1.5, "seeds": [1, 2, 3]}
    torch.testing.assert_close(again(cond=COND, **values), pipeline(cond=COND, **values), atol=1e-5, rtol=0)


def test_a_sampler_of_another_objective_is_refused() -> None:
    for schedule, scheduler in ((FlowScheduleConfig(), "ddim"), (NoiseScheduleConfig(), "heun")):
        with pytest.raises(ValueError, match=rf"sampling\.scheduler: {scheduler} does not solve"):
            sampler_of(schedule, SamplingConfig(scheduler=scheduler))  # type: ignore[arg-type]


KNOWN = {"ch_names": ["Fz", "Cz"], "sfreq_hz": 120.0, "n_times": 360, "subjects": ["1", "2"]}


@pytest.mark.parametrize(
    ("eeg", "positions", "subject", "message"),
    [
        (EEG[0], POSITIONS, SUBJECT, r"eeg is \(2, 360\): give \(windows, channels, samples\)"),
        (EEG[:, :, :120], POSITIONS, SUBJECT, "eeg has 120 samples, the training's had 360"),
        (EEG, POSITIONS[:, :1], SUBJECT, r"positions are \(3, 1, 2\)"),
        (EEG, POSITIONS, SUBJECT[:2], r"subject is torch.int64 \(2,\): give a whole number for each window"),
        (EEG, POSITIONS, SUBJECT + 0.5, "subject is torch.float32"),
        (EEG, POSITIONS, torch.tensor([0, 2, -1]), "subject goes from -1, unknown, to 1"),
        (EEG.where(EEG < 1.0, torch.nan), POSITIONS, SUBJECT, "no finite numbers"),
    ],
)
def test_eeg_unlike_the_trainings_is_refused(
    eeg: torch.Tensor, positions: torch.Tensor, subject: torch.Tensor, message: str, pipeline: EEG2SpeechPipeline
) -> None:
    held = EEG2SpeechPipeline(**pipeline.components, eeg_input=KNOWN)
    with pytest.raises(ValueError, match=message):
        held(eeg, positions, subject, num_inference_steps=1)


def test_an_encoder_that_knows_its_channels_takes_no_others(pipeline: EEG2SpeechPipeline) -> None:
    linear = LinearEncoderConfig(lags=3).build(n_subjects=2, dim=DIM, n_frames=FRAMES, n_channels=3).eval()
    held = EEG2SpeechPipeline(**pipeline.components | {"eeg_encoder": linear}, eeg_input=KNOWN)
    with pytest.raises(ValueError, match="eeg has 2 channels, the training's had 3"):
        held(EEG, POSITIONS, SUBJECT)


def test_arrays_are_taken_and_volts_are_warned_of(pipeline: EEG2SpeechPipeline) -> None:
    arrays = [x.numpy().astype(kind) for x, kind in ((EEG, "f8"), (POSITIONS, "f8"), (SUBJECT, "i4"))]
    heard = pipeline(*arrays, num_inference_steps=1)
    torch.testing.assert_close(heard, pipeline(EEG, POSITIONS, SUBJECT, num_inference_steps=1))
    with pytest.warns(UserWarning, match=r"eeg deviates by 1e-06, which is no scaled EEG"):
        pipeline(1e-6 * EEG, POSITIONS, SUBJECT, num_inference_steps=1)


def test_each_example_has_a_seed_and_each_call_a_step(pipeline: EEG2SpeechPipeline) -> None:
    for values in ({"seeds": [1]}, {"num_inference_steps": 0}):
        with pytest.raises(ValueError, match="3 examples need as many seeds and a step at least"):
            pipeline(cond=COND, **values)


def test_a_saved_pipeline_says_the_same(pipeline: EEG2SpeechPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = EEG2SpeechPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    values = {"num_inference_steps": 2, "guidance_scale": 1.5, "seeds": [1, 2, 3]}
    torch.testing.assert_close(
        again(EEG, POSITIONS, SUBJECT, **values), pipeline(EEG, POSITIONS, SUBJECT, **values), atol=1e-5, rtol=0
    )
    assert (tmp_path / "model_index.json").exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_the_default_autoencoder_is_saved_with_its_pipeline(pipeline: EEG2SpeechPipeline, tmp_path: Path) -> None:
    kind = AutoencoderConfig(
        channels=(4,), patch=4, linear_skip=True, floor=-6, layers_per_block=1, latent_channels=4, norm_groups=4
    )
    components = pipeline.components | {"vae": kind.build()}
    components["vae"].fit_skip(torch.randn(2, 16, 75, 16))
    saved = EEG2SpeechPipeline(**components, latent_frames=75, latent_bins=16)
    saved.save_pretrained(tmp_path)
    again = EEG2SpeechPipeline.from_pretrained(tmp_path)
    for values in (saved, again):
        values.set_progress_bar_config(disable=True)
    sounds = [p(cond=COND, num_inference_steps=2, seeds=[1, 2, 3]) for p in (saved, again)]
    torch.testing.assert_close(sounds[1], sounds[0], atol=1e-5, rtol=0)


def test_half_precision_speaks() -> None:
    """UNet and autoencoder in bfloat16, as on a GPU, also where a prior's prediction is float32."""
    config = yaml.safe_load((Path(__file__).parents[1] / "configs/default.yaml").read_text(encoding="utf-8"))["model"]
    made = Made(Shape(model=config, clip_s=3.0, batches=(1,), training_batches=(1,), samplers=()))
    for scheduler in ("dpmsolver++", "ddim"):
        pipeline, cond = made.pipeline(scheduler), made.cond(1)
        torch.nn.init.normal_(pipeline.denoiser.unet.conv_out.weight, std=0.01)  # a prior's UNet starts at nothing
        with torch.no_grad():
            full = decode(pipeline.vae, pipeline.sample(cond, 2, 1.0, [5]))
            pipeline.use("bf16")
            half = decode(pipeline.vae, pipeline.sample(cond, 2, 1.0, [5]))
        assert float(torch.corrcoef(torch.stack([full.flatten(), half.flatten()]))[0, 1]) > 0.99
        assert pipeline(cond=cond, num_inference_steps=2).shape == (1, 48_000)


def test_every_model_can_be_loaded_from_a_saved_pipeline() -> None:
    """Of a component's own module, diffusers asks for the class that says how it is loaded."""
    modules = [importlib.import_module(f"eeg2speech.models.{m.name}") for m in pkgutil.iter_modules(models.__path__)]
    found = [
        (module, kind)
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, ModelMixin) and kind.__module__ == module.__name__
    ]
    assert len(found) >= 8
    assert [kind.__name__ for module, kind in found if getattr(module, "ModelMixin", None) is not ModelMixin] == []


def test_a_pipeline_needs_no_audio_encoder(pipeline: EEG2SpeechPipeline, tmp_path: Path) -> None:
    names = ("eeg_encoder", "denoiser", "vae", "vocoder", "scheduler")
    slim = EEG2SpeechPipeline(**{name: getattr(pipeline, name) for name in names})
    slim.save_pretrained(tmp_path)
    again = EEG2SpeechPipeline.from_pretrained(tmp_path)
    assert again.audio_encoder is None
    assert again.config.latent_frames == 75


def test_temperature_scales_the_noise_that_sampling_starts_from() -> None:
    """One step of DPM-Solver++ from pure noise is the network's x0, which saw that noise at that size."""
    pipeline = tiny_pipeline()
    cond, seeds = torch.randn(2, DIM, FRAMES), [3, 4]
    t = torch.tensor([999, 999])
    for temperature in (1.0, 0.5, 0.0):
        with torch.no_grad():
            x0 = -pipeline.denoiser(temperature * pipeline.noise(seeds), t, cond)  # v at no signal
        found = pipeline.sample(cond, 1, 1.0, seeds, temperature=temperature)
        torch.testing.assert_close(found, x0, rtol=1e-3, atol=1e-3)
