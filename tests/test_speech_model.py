"""Pretrained speech models on tiny random checkpoints of the published layout."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eeg2speech import config as configuration
from eeg2speech.data.features import StimulusFeatures
from eeg2speech.errors import UserError
from eeg2speech.models.audio_encoder import SpeechHead
from eeg2speech.models.speech_model import ClapEncoderConfig, Wav2Vec2EncoderConfig
from eeg2speech.runs import RunFolder
from eeg2speech.training import run

N = 16000
LAYERS = (1, 2)


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    sizes = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=True, feat_extract_norm="layer",
    )  # fmt: skip
    Wav2Vec2Model(sizes).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    audio = {
        "spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "hidden_size": 16,
        "num_attention_heads": [2, 2], "window_size": 4, "projection_dim": 12, "patch_size": 4, "patch_stride": [4, 4],
    }  # fmt: skip
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    ClapModel(ClapConfig(audio_config=audio, text_config=text, projection_dim=12)).save_pretrained(folder)
    ClapFeatureExtractor(feature_size=16, truncation="rand_trunc", max_length_s=2).save_pretrained(folder)
    return folder


@pytest.fixture
def waveform() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (3, N)).astype(np.float32)


def test_wav2vec2_is_the_mean_of_its_hidden_layers(wav2vec2: Path, waveform: np.ndarray) -> None:
    """Each layer's output as a hook hears it; zero mean and unit variance of each clip, as the checkpoint wants."""
    from transformers import Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(wav2vec2).eval()
    heard: list[Tensor] = []
    for layer in LAYERS:
        block = model.encoder.layers[layer - 1]
        block.register_forward_hook(lambda m, i, out: heard.append(out[0] if isinstance(out, tuple) else out))
    standard = (waveform - waveform.mean(axis=1, keepdims=True)) / waveform.std(axis=1, keepdims=True)
    with torch.no_grad():
        model(torch.from_numpy(standard))
    wanted = torch.stack(heard).mean(dim=0).transpose(1, 2)
    features = Wav2Vec2EncoderConfig(path=str(wav2vec2), layers=LAYERS).pretrained()
    assert wanted.shape == (3, features.n_bands, 49)
    torch.testing.assert_close(features(waveform), wanted, atol=1e-4, rtol=1e-4)


def test_clap_is_the_audio_side_of_the_whole_model(clap: Path, waveform: np.ndarray) -> None:
    from transformers import ClapFeatureExtractor, ClapModel

    model = ClapModel.from_pretrained(clap).eval()
    extractor = ClapFeatureExtractor.from_pretrained(clap)
    features = ClapEncoderConfig(path=str(clap)).pretrained()
    out = features(waveform)
    assert out.shape == (3, features.n_bands, 1)
    from scipy.signal import resample_poly

    for row, wave in zip(out, waveform, strict=True):  # one by one: a row depends on its own sound alone
        inputs = extractor(resample_poly(wave, 3, 1), sampling_rate=48000, return_tensors="pt")
        with torch.no_grad():
            wanted = model.get_audio_features(inputs.input_features, inputs.is_longer).pooler_output[0]
        torch.testing.assert_close(row[:, 0], wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(out[0], out[1], atol=1e-3)
    with pytest.raises(UserError, match="CLAP hears 2 s at once"):
        features(np.zeros((1, 3 * N), dtype=np.float32))


def sounds(waveform: np.ndarray) -> StimulusFeatures:
    mel = np.zeros((len(waveform), 64, 100), dtype=np.float32)
    return StimulusFeatures(mel, waveform, 100.0, tuple(str(row.sum()) for row in waveform))


def test_features_are_computed_once_and_anew_for_other_layers(
    wav2vec2: Path, waveform: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Wav2Vec2EncoderConfig(path=str(wav2vec2), layers=LAYERS).pretrained()
    made = sounds(waveform).with_speech(model, tmp_path)
    assert made.speech is not None
    np.testing.assert_allclose(made.speech, model(waveform), atol=1e-6)
    np.testing.assert_array_equal(made.heard, made.speech)
    other = Wav2Vec2EncoderConfig(path=str(wav2vec2), layers=(3,)).pretrained()
    assert not np.allclose(sounds(waveform).with_speech(other, tmp_path).heard, made.speech)
    monkeypatch.setattr(type(model), "__call__", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(sounds(waveform).with_speech(model, tmp_path).heard, made.speech)
    with pytest.raises(UserError, match="needs sound"):
        replace(sounds(waveform), waveforms=None).with_speech(model, tmp_path)


def test_the_head_trains_nothing_where_widths_agree() -> None:
    features = 5.0 + 2.0 * torch.randn(20, 6, 49)
    same, other = (SpeechHead(n_bands=6, dim=dim, n_frames=49) for dim in (6, 4))
    same.fit_scale(features)
    assert not list(same.parameters())
    out = same(features)
    np.testing.assert_allclose(out.mean(dim=(0, 2)), np.zeros(6), atol=1e-4)
    np.testing.assert_allclose(out.std(dim=(0, 2)), np.ones(6), atol=1e-4)
    assert other(features).shape == (20, 4, 49)
    one_vector = SpeechHead(n_bands=6, dim=6, n_frames=5)(features[:, :, :1])
    torch.testing.assert_close(one_vector, features[:, :, :1].expand(-1, -1, 5))


@pytest.mark.parametrize(("choice", "name"), [(Wav2Vec2EncoderConfig, "wav2vec2"), (ClapEncoderConfig, "clap")])
def test_missing_weights_are_one_sentence_with_the_command(
    choice: type[Wav2Vec2EncoderConfig], name: str, tmp_path: Path
) -> None:
    source = choice().path
    wanted = rf"{name} weights .*missing.*`hf download {source} --local-dir weights/.*without a network"
    for path in (str(tmp_path / "nowhere"), source):
        with pytest.raises(UserError, match=wanted) as caught:
            choice(path=path).pretrained()
        assert "\n" not in str(caught.value)


def test_a_checkpoint_with_a_hole_is_refused(wav2vec2: Path, tmp_path: Path) -> None:
    """transformers would fill it with random numbers."""
    broken = shutil.copytree(wav2vec2, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state.pop("encoder.layers.1.attention.k_proj.weight")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"no whole wav2vec2 model \(encoder\.layers\.1\.attention\.k_proj\.weight"):
        Wav2Vec2EncoderConfig(path=str(broken), layers=LAYERS).pretrained()
    with pytest.raises(UserError, match="has layers 0 to 3, not"):
        Wav2Vec2EncoderConfig(path=str(wav2vec2)).pretrained()


@pytest.mark.parametrize("dim", [16, 6], ids=["of the model's width", "mapped"])
def test_a_run_trains_generates_and_embeds_with_it(wav2vec2: Path, tmp_path: Path, dim: int) -> None:
    from eval.runner import make_bench
    from tests.toy_fixture import toy_data, toy_experiment

    data = toy_data(tmp_path)
    choice = f"model.audio_encoder={{name: wav2vec2, path: '{wav2vec2}', layers: [1, 2]}}"
    settings = toy_experiment(choice, f"model.embedding.dim={dim}")
    model = run.pretrained_speech_model(settings)
    assert model is not None
    data = replace(data, features=data.features.with_speech(model, tmp_path / "cache"))
    trained = run._Trainer(settings, RunFolder(tmp_path / "run"), data, model).run()
    assert trained.pipeline is not None
    assert isinstance(trained.pipeline.audio_encoder, SpeechHead)
    bench = make_bench(settings, trained)
    assert bench.test.embed_audio is not None
    assert bench.test.waveform is not None
    # the true sound, heard as generated sound is, lies where the candidates are
    np.testing.assert_allclose(bench.test.embed_audio(bench.test.waveform), bench.test.candidates, atol=1e-4)
    np.testing.assert_allclose(bench.embed_speech(bench.stimuli), bench.test.candidates, atol=1e-5)
    assert bench.test.candidates.shape[1:] == (dim, 30)


TINY = Path(__file__).parents[1] / "configs" / "tiny.yaml"


def test_a_run_says_so_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = configuration.load(TINY, [f"model.audio_encoder={{name: wav2vec2, path: {tmp_path}}}"], "tiny")
    monkeypatch.setattr(run.StudyData, "prepare", lambda *_: pytest.fail("data were prepared first"))
    with pytest.raises(UserError, match="hf download"):
        run.train(experiment, RunFolder(tmp_path / "tiny"))
