"""Every system on untrained models: what it hears, what it says, and that nothing else decides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeg2speech.config import ExperimentConfig
from eeg2speech.errors import UserError
from eeg2speech.evaluation import SamplingConfig
from eeg2speech.runs import RunFolder
from eeg2speech.training.run import Trained
from eval import runner
from eval.metrics.base import TestSet
from eval.runner import chosen_systems, make_bench
from eval.systems import SYSTEMS, Bench, phase_randomised
from tests.data_fixture import sentence_study, story_study
from tests.model_fixture import tiny_trained

ROLES = {
    "reference": "ceiling",
    "reconstruction": "ceiling",
    "oracle": "ceiling",
    "eeg": "claim",
    "regression": "rival",
    "retrieved": "rival",
    "shuffled": "floor",
    "noise": "floor",
    "mean": "floor",
    "unconditional": "floor",
}
HEARS_EEG = {"eeg", "regression", "retrieved", "shuffled", "noise"}
SAMPLING = SamplingConfig(num_inference_steps=2, batch_size=5)


def config(**evaluation: object) -> ExperimentConfig:
    stage = {"steps": 1, "batch_size": 2, "learning_rate": 0.001}
    values = {"study": {"name": "matrix"}, "training": {"contrastive": stage}, "evaluation": evaluation}
    return ExperimentConfig.model_validate(values | {"sampling": SAMPLING.model_dump()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("noise")
    return tiny_trained(sentence_study(folder / "sounds", 30), folder)


@pytest.fixture(scope="module")
def bench(trained: Trained) -> Bench:
    return make_bench(config(max_stimuli=None), trained)


@pytest.fixture(scope="module")
def outputs(bench: Bench) -> dict[str, np.ndarray]:
    """(n, N) waveforms of every system."""
    spoken = {}
    for name, system in SYSTEMS.items():
        waveform = system.run(bench).waveform
        assert waveform is not None
        spoken[name] = waveform
    return spoken


# The table


def test_the_ten_rows_and_why_they_are_there() -> None:
    assert {name: system.role for name, system in SYSTEMS.items()} == ROLES
    assert {name for name, system in SYSTEMS.items() if system.hears_eeg} == HEARS_EEG
    assert all(system.name == name and system.description for name, system in SYSTEMS.items())


def test_rows_are_chosen_by_name() -> None:
    assert [s.name for s in chosen_systems(config(systems=["shuffled", "eeg"]))] == ["shuffled", "eeg"]
    assert [s.name for s in chosen_systems(config())] == list(SYSTEMS)
    with pytest.raises(UserError, match=r"evaluation\.systems: charm is unknown"):
        chosen_systems(config(systems=["eeg", "charm"]))
    with pytest.raises(UserError, match="must contain eeg"):
        chosen_systems(config(systems=["shuffled"]))


def test_an_evaluation_is_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process: train in several by `torchrun"):
        runner.run(config(), RunFolder(tmp_path / "run"), "")
    assert not list(tmp_path.iterdir())


def test_speech_is_sampled_in_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    half = config().model_copy(update={"sampling": SAMPLING.model_copy(update={"mixed_precision": "bf16"})})
    monkeypatch.setattr(runner, "has_bfloat16", lambda device: True)
    runner.require_precision(half)
    monkeypatch.setattr(runner, "has_bfloat16", lambda device: False)
    runner.require_precision(config())
    with pytest.raises(UserError, match=r"sampling\.mixed_precision: bf16 would only be imitated"):
        runner.require_precision(half)


def test_the_precision_of_sampling_reaches_the_networks(tmp_path: Path) -> None:
    trained = tiny_trained(sentence_study(tmp_path / "sounds", 30), tmp_path)
    half = config(max_stimuli=4).model_copy(
        update={"sampling": SAMPLING.model_copy(update={"mixed_precision": "bf16"})}
    )
    assert trained.pipeline is not None
    make_bench(config(max_stimuli=4), trained)
    assert (trained.pipeline.denoiser.dtype, trained.pipeline.vae.dtype) == (torch.float32, torch.float32)
    bench = make_bench(half, trained)
    assert (trained.pipeline.denoiser.dtype, trained.pipeline.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    for name in ("reconstruction", "oracle", "eeg", "regression", "unconditional"):
        output = SYSTEMS[name].run(bench)
        assert output.waveform is not None
        assert np.isfinite(output.waveform).all()


# The test set


def test_the_test_set_is_the_test_split(trained: Trained, bench: Bench) -> None:
    test = trained.data.windows[trained.data.windows["split"] == "test"]
    assert set(bench.test.examples["stimulus_id"]) == set(test["stimulus_id"])
    assert len(bench.test.examples) == len(test)
    for place, window in enumerate(bench.windows):
        row, example = trained.data.windows.iloc[window], bench.test.examples.iloc[place]
        assert (row["subject"], row["stimulus_id"]) == (example["subject"], example["stimulus_id"])
        assert bench.test.stimuli["stimulus_id"][example["stimulus"]] == row["stimulus_id"]
        assert bench.stimuli[example["stimulus"]] == row["stimulus"]


def test_a_subset_keeps_all_listeners_of_a_stimulus(trained: Trained) -> None:
    small = make_bench(config(max_stimuli=3), trained)
    assert len(small.test.stimuli) == 3
    assert small.test.examples.groupby("stimulus_id")["subject"].nunique().tolist() == [2, 2, 2]
    other = make_bench(config(max_stimuli=3, seed=1), trained)
    assert set(other.test.stimuli["stimulus_id"]) != set(small.test.stimuli["stimulus_id"])


def test_an_output_says_whose_it_is(bench: Bench) -> None:
    for name in ("eeg", "mean"):
        output = SYSTEMS[name].run(bench)
        assert output.waveform is not None
        assert len(output.rows) == len(output.waveform)
        assert (output.rows["subject"] == "").all() == (name == "mean")
        assert (output.estimate is not None) == (name == "eeg")
        ids = bench.test.stimuli["stimulus_id"].to_numpy()[output.stimulus]
        assert output.rows["stimulus_id"].tolist() == ids.tolist()


# What each hears and says


def test_every_system_makes_three_seconds_of_finite_sound(outputs: dict[str, np.ndarray], bench: Bench) -> None:
    for name, waveform in outputs.items():
        n = len(bench.test.examples if name in HEARS_EEG else bench.test.stimuli)
        assert waveform.shape == (n, 48_000), name
        assert np.isfinite(waveform).all(), name


def test_reference_is_the_recording(outputs: dict[str, np.ndarray], trained: Trained, bench: Bench) -> None:
    waveforms = trained.data.features.waveforms
    assert waveforms is not None
    np.testing.assert_array_equal(outputs["reference"], waveforms[bench.stimuli])


def test_reconstruction_is_the_recording_through_the_autoencoder(
    outputs: dict[str, np.ndarray], trained: Trained, bench: Bench
) -> None:
    mel = torch.from_numpy(trained.data.features.features[bench.stimuli[:2]]).transpose(1, 2).unsqueeze(1)
    vae = bench.pipeline.vae
    wanted = bench.pipeline.vocode(vae.decode(vae.encode(mel).latent_dist.mode()).sample, bench.seeds(np.arange(2)))
    np.testing.assert_allclose(outputs["reconstruction"][:2], wanted.numpy(), atol=1e-4)


def test_eeg_is_the_pipeline_on_the_windows(outputs: dict[str, np.ndarray], trained: Trained, bench: Bench) -> None:
    """Each example alone, through the pipeline's own front door."""
    for place in (0, 7):
        batch = trained.data.batch(bench.windows[place : place + 1])
        seeds = bench.seeds(bench.test.examples["stimulus"].to_numpy()[place : place + 1])
        alone = bench.pipeline(batch.eeg, batch.positions, batch.subject, num_inference_steps=2, seeds=seeds)
        np.testing.assert_allclose(outputs["eeg"][place], alone[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["oracle", "eeg", "mean", "unconditional", "reconstruction", "regression"])
def test_the_batch_size_decides_nothing(name: str, outputs: dict[str, np.ndarray], bench: Bench) -> None:
    again = replace(bench, sampling=SAMPLING.model_copy(update={"batch_size": 3}))
    waveform = SYSTEMS[name].run(again).waveform
    assert waveform is not None
    np.testing.assert_allclose(waveform, outputs[name], atol=1e-5)


def test_a_smaller_test_set_changes_no_sample(trained: Trained, bench: Bench, outputs: dict[str, np.ndarray]) -> None:
    small = make_bench(config(max_stimuli=3), trained)
    kept = bench.test.examples["stimulus_id"].isin(small.test.stimuli["stimulus_id"]).to_numpy()
    waveform = SYSTEMS["eeg"].run(small).waveform
    assert waveform is not None
    np.testing.assert_allclose(waveform, outputs["eeg"][kept], atol=1e-5)


def test_rows_of_one_stimulus_start_from_the_same_noise(bench: Bench) -> None:
    """Listeners and systems share the seed of a stimulus, and no two stimuli do."""
    stimulus = bench.test.examples["stimulus"].to_numpy()
    seeds = np.array(bench.seeds(stimulus))
    assert len(set(seeds)) == len(set(stimulus))
    assert all(len(set(seeds[stimulus == s])) == 1 for s in stimulus)
    other = replace(bench, sampling=SAMPLING.model_copy(update={"seed": 1}))
    assert not set(other.seeds(stimulus)) & set(seeds)


def test_shuffled_and_noise_sample_from_the_seed_of_their_own_row(bench: Bench, outputs: dict[str, np.ndarray]) -> None:
    """The same models on the other window, with the row's own seed: rows differ in their condition alone."""
    stimulus = bench.test.examples["stimulus"].to_numpy()
    batch = bench.trained.data.batch(bench.other_windows)
    cond = bench.trained.eeg_encoder(batch.eeg, batch.positions, batch.subject)
    wanted = bench.pipeline(cond=cond, num_inference_steps=2, seeds=bench.seeds(stimulus))
    np.testing.assert_allclose(outputs["shuffled"], wanted.numpy(), atol=1e-5)
    assert not np.allclose(outputs["shuffled"], outputs["eeg"], atol=1e-3)
    assert not np.allclose(outputs["noise"], outputs["shuffled"], atol=1e-3)


def test_mean_is_the_mean_of_the_training_speech(
    trained: Trained, bench: Bench, outputs: dict[str, np.ndarray]
) -> None:
    train = trained.data.windows[trained.data.windows["split"] == "train"]["stimulus"].unique()
    features = trained.data.features.features
    embeddings = [trained.audio_encoder(torch.from_numpy(features[s][None].copy())) for s in train]
    normal = [e / e.square().mean().sqrt() for e in embeddings]
    cond = torch.cat(normal).mean(dim=0, keepdim=True)
    wanted = bench.pipeline(cond=cond, num_inference_steps=2, seeds=bench.seeds(np.array([1])))
    np.testing.assert_allclose(outputs["mean"][1], wanted[0].numpy(), atol=1e-4)


def test_retrieved_is_the_nearest_training_clip(trained: Trained, bench: Bench, outputs: dict[str, np.ndarray]) -> None:
    """By a loop over every training clip; and never a clip of the test split."""
    waveforms = trained.data.features.waveforms
    assert waveforms is not None
    train = trained.data.windows[trained.data.windows["split"] == "train"]["stimulus"].unique()
    batch = trained.data.batch(bench.windows)
    estimates = trained.eeg_encoder(batch.eeg, batch.positions, batch.subject)
    for place, estimate in enumerate(estimates):
        scores = {}
        for s in train:
            clip = trained.audio_encoder(torch.from_numpy(trained.data.features.features[s][None]))[0]
            scores[s] = float((estimate * clip).sum() / clip.norm())
        best = max(scores, key=lambda s: scores[s])
        np.testing.assert_array_equal(outputs["retrieved"][place], waveforms[best])


def test_regression_is_the_regressor_and_the_same_vocoder(
    trained: Trained, bench: Bench, outputs: dict[str, np.ndarray]
) -> None:
    batch = trained.data.batch(bench.windows[:3])
    assert trained.regressor is not None
    mel = trained.regressor(batch.eeg, batch.positions, batch.subject).transpose(1, 2).unsqueeze(1)
    seeds = bench.seeds(bench.test.examples["stimulus"].to_numpy()[:3])
    np.testing.assert_allclose(outputs["regression"][:3], bench.pipeline.vocode(mel, seeds).numpy(), atol=1e-4)


# What is not there is said


def test_without_audio_every_row_says_so(tmp_path: Path) -> None:
    trained = tiny_trained(story_study(tmp_path), tmp_path)
    bench = make_bench(config(max_stimuli=None), trained)
    assert bench.test.waveform is None
    for name, system in SYSTEMS.items():
        output = system.run(bench)
        assert output.waveform is None
        assert output.waveform_reason == "the study has no audio"
        assert (output.estimate is not None) == (name in HEARS_EEG - {"regression", "retrieved"})


@pytest.mark.parametrize("name", sorted(ROLES))
def test_without_a_diffusion_model_only_recordings_sound(trained: Trained, name: str) -> None:
    bench = make_bench(config(max_stimuli=3), replace(trained, pipeline=None))
    output = SYSTEMS[name].run(bench)
    if name in ("reference", "retrieved"):
        assert output.waveform is not None
    else:
        assert output.waveform is None
        assert "the config trains no diffusion model" in (output.waveform_reason or "")


def test_without_a_regressor_its_row_says_so(trained: Trained) -> None:
    output = SYSTEMS["regression"].run(make_bench(config(max_stimuli=3), replace(trained, regressor=None)))
    assert output.waveform_reason == "the config trains no regressor"


# Shuffling


def shuffling(subjects: list[str], stimuli: list[int], seed: int) -> Bench:
    """A bench of which only the table matters; window 1000 + i belongs to example i."""
    examples = pd.DataFrame({"subject": subjects, "stimulus": stimuli})
    described = pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(max(stimuli) + 1)]})
    test = TestSet(examples, described, None, np.zeros((max(stimuli) + 1, 1, 1)))
    trained = Trained(None, torch.nn.Identity(), torch.nn.Identity(), None, None, "")  # type: ignore[arg-type]
    return Bench(trained, test, 1000 + np.arange(len(examples)), np.arange(max(stimuli) + 1), SAMPLING, seed)


@given(data=st.data())
def test_shuffled_is_never_the_same_speech_and_always_the_same_listener(data: st.DataObject) -> None:
    rows: list[tuple[str, int]] = []
    for subject in ("a", "b", "c")[: data.draw(st.integers(1, 3))]:
        counts = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=8))
        while max(counts) > sum(counts) - max(counts):  # more than half the same: nothing could be done
            counts.append(1)
        rows += [(subject, s) for s, n in enumerate(counts) for _ in range(n)]
    rows = data.draw(st.permutations(rows))
    subjects, stimuli = [r[0] for r in rows], [r[1] for r in rows]
    other = shuffling(subjects, stimuli, data.draw(st.integers(0, 5))).other_windows - 1000
    assert sorted(other) == list(range(len(rows))), "every window is used once"
    assert [subjects[i] for i in other] == subjects
    assert all(stimuli[i] != s for i, s in zip(other, stimuli, strict=True))


def test_shuffling_is_seeded_and_not_the_same_neighbour() -> None:
    subjects, stimuli = ["a"] * 40, list(range(40))
    first, again, other = (shuffling(subjects, stimuli, seed).other_windows for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.8
    assert len(set(first - 1000 - np.arange(40))) > 10


@pytest.mark.parametrize("stimuli", [[0], [0, 0, 0, 1]])
def test_too_little_speech_to_shuffle_is_said(stimuli: list[int]) -> None:
    with pytest.raises(UserError, match=r"listener a .*splits\.test"):
        _ = shuffling(["a"] * len(stimuli), stimuli, 0).other_windows


# The surrogate


@pytest.mark.parametrize("n_samples", [360, 361])
def test_a_surrogate_keeps_spectra_and_cross_spectra(n_samples: int) -> None:
    """Power, coherence and phase between every two channels, and so the covariance; but not the waveform."""
    eeg = torch.randn(3, 5, n_samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eeg = eeg.cumsum(dim=-1) + torch.arange(5.0).view(1, 5, 1)
    surrogate = phase_randomised(eeg, [1, 2, 3])
    assert surrogate.shape == eeg.shape
    before, after = (np.fft.rfft(x.numpy(), axis=-1) for x in (eeg, surrogate))
    for a in range(5):
        for b in range(5):
            np.testing.assert_allclose(
                after[:, a] * after[:, b].conj(),
                before[:, a] * before[:, b].conj(),
                atol=1e-6 * np.abs(before).max() ** 2,
            )
    for x, y in zip(eeg.numpy(), surrogate.numpy(), strict=True):
        np.testing.assert_allclose(np.cov(y), np.cov(x), atol=1e-9 * np.abs(np.cov(x)).max())
        np.testing.assert_allclose(y.mean(axis=1), x.mean(axis=1), atol=1e-9)
        assert abs(np.corrcoef(x[0], y[0])[0, 1]) < 0.9


def test_surrogates_of_many_windows_share_no_phase() -> None:
    """White noise stays white, and is uncorrelated with what it came from."""
    eeg = torch.randn(200, 1, 360, generator=torch.Generator().manual_seed(0))
    surrogate = phase_randomised(eeg, range(200))
    correlation = (eeg * surrogate).mean(dim=(1, 2)).numpy()
    assert abs(correlation.mean()) < 3 / np.sqrt(200 * 360)
    # 180 frequencies of exponential power, each turned by its own cosine
    assert correlation.std() == pytest.approx(np.sqrt(2 / 360), rel=0.15)


def test_a_surrogate_does_not_depend_on_its_batch() -> None:
    eeg = torch.randn(4, 2, 360, generator=torch.Generator().manual_seed(0))
    together = phase_randomised(eeg, [3, 4, 5, 3])
    for b, seed in enumerate([3, 4, 5, 3]):
        torch.testing.assert_close(phase_randomised(eeg[b : b + 1], [seed])[0], together[b], atol=1e-6, rtol=0)


def test_noise_is_a_surrogate_of_the_shuffled_eeg(bench: Bench) -> None:
    """Window by window the same spectra; a phase of its own for every listener and stimulus."""
    (noise,), (shuffled,) = (list(SYSTEMS[name].heard(bench)) for name in ("noise", "shuffled"))  # type: ignore[attr-defined]
    spectra = [torch.fft.rfft(batch.eeg, dim=-1) for batch in (noise, shuffled)]
    torch.testing.assert_close(spectra[0].abs(), spectra[1].abs(), atol=1e-3, rtol=1e-3)
    turns = (spectra[0] / spectra[1])[:, 0, 1:-1].angle()
    assert len(turns.round(decimals=3).unique(dim=0)) == len(turns)
