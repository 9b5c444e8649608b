"""AudioLDM's checkpoints in this project's modules, against outputs of the original's own."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eeg2speech import __main__ as command
from eeg2speech.errors import UserError
from eeg2speech.importers.audioldm import Published, convert, read
from eeg2speech.importers.audioldm_names import without_weight_norm
from eeg2speech.models.autoencoder import AutoencoderConfig, decode, encode
from eeg2speech.models.denoiser import Denoiser, DenoiserConfig
from eeg2speech.models.vocoder import HifiGanConfig
from eeg2speech.training.pretrained import start_autoencoder, start_denoiser
from tests.golden import audioldm as golden

CLOSE = {"rtol": 0, "atol": 1e-4}
LDM = golden.checkpoints()["ldm"]
HIFIGAN = golden.checkpoints()["hifigan"]


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    return golden.tensors()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "audioldm.ckpt"
    torch.save({"state_dict": LDM, "global_step": 7}, path)
    return path


@pytest.fixture(scope="module")
def published(checkpoint: Path) -> Published:
    return read(checkpoint)


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    """What the command writes."""
    assert command.main(["import", "audioldm", str(checkpoint), "--to", str(checkpoint.parent / "imported")]) == 0
    return checkpoint.parent / "imported"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[object], Path]:
    def save(held: object) -> Path:
        torch.save(held, tmp_path / "mine.ckpt")
        return tmp_path / "mine.ckpt"

    return save


@torch.no_grad()
def denoised(denoiser: Denoiser, original: dict[str, Tensor]) -> Tensor:
    return denoiser(original["latent"], original["t"], original["film"].unsqueeze(2))


def film_denoiser(cond_dim: int = golden.FILM, **values: object) -> Denoiser:
    choice = {"channels": (32, 64, 64, 96), "conditioning": ("film",)} | values
    sizes = {"latent_channels": 8, "latent_bins": 8, "cond_frames": 1, "latent_frames": 1}
    return DenoiserConfig.model_validate(choice).build(cond_dim=cond_dim, **sizes).eval()


# The same numbers


@torch.no_grad()
def test_unet_and_its_average_are_the_originals(checkpoint: Path, original: dict[str, Tensor]) -> None:
    call = {"encoder_hidden_states": None, "class_labels": original["film"]}
    for ema, wanted in ((False, "unet"), (True, "ema")):
        unet = read(checkpoint, ema=ema).modules["unet"]
        torch.testing.assert_close(unet(original["latent"], original["t"], **call).sample, original[wanted], **CLOSE)


@torch.no_grad()
def test_autoencoder_is_the_originals(published: Published, original: dict[str, Tensor]) -> None:
    vae = published.modules["vae"]
    torch.testing.assert_close(vae.encode(original["log_mel"]).latent_dist.parameters, original["moments"], **CLOSE)
    torch.testing.assert_close(vae.decode(original["z"]).sample, original["decoded"], **CLOSE)


@torch.no_grad()
def test_vocoder_is_the_originals_with_and_without_weight_norm(
    published: Published, original: dict[str, Tensor], saved: Callable[[object], Path]
) -> None:
    mel = original["log_mel"][:, 0]
    torch.testing.assert_close(published.modules["vocoder"](mel), original["waveform"], **CLOSE)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in HIFIGAN.items()}
    for generator in (HIFIGAN, compiled):
        vocoder = read(saved({"generator": generator})).modules["vocoder"]
        torch.testing.assert_close(vocoder(mel), original["weight_normed"], **CLOSE)


def test_weight_norm_is_torchs() -> None:
    for module in (torch.nn.Conv1d(3, 5, 4), torch.nn.ConvTranspose1d(3, 5, 4)):
        wanted = module.weight.detach().clone()
        normed = torch.nn.utils.parametrizations.weight_norm(module)
        g, v = (getattr(normed.parametrizations.weight, f"original{k}").detach() for k in (0, 1))
        made = without_weight_norm({"a.weight_g": g, "a.weight_v": 3 * v, "a.bias": torch.ones(1)})
        assert sorted(made) == ["a.bias", "a.weight"]
        torch.testing.assert_close(made["a.weight"], wanted)


def test_an_autoencoder_alone_is_read(original: dict[str, Tensor], saved: Callable[[object], Path]) -> None:
    """`vae_mel_16k_64bins.ckpt`: no prefix, a loss beside it, and no scale."""
    first_stage = {
        n.removeprefix("first_stage_model."): t for n, t in LDM.items() if n.startswith("first_stage_model.")
    }
    alone = read(saved({"state_dict": first_stage}))
    assert set(alone.modules) == {"vae", "vocoder"}
    assert alone.modules["vae"].config.scaling_factor == 1.0
    with torch.no_grad():
        torch.testing.assert_close(alone.modules["vae"].decode(original["z"]).sample, original["decoded"], **CLOSE)


def test_what_was_read_is_written_down(folder: Path) -> None:
    facts = json.loads((folder / "import.json").read_text())
    assert facts["unet"] == "moving average"
    mine = {"unet": "model.diffusion_model.", "vocoder": "first_stage_model.vocoder."}
    for part, prefix in mine.items():
        assert facts["parameters"][part] == sum(t.numel() for n, t in LDM.items() if n.startswith(prefix))


# A start for training


def test_a_denoiser_starts_as_the_original(folder: Path, original: dict[str, Tensor]) -> None:
    denoiser = film_denoiser()
    assert start_denoiser(denoiser, folder) == []
    torch.testing.assert_close(denoised(denoiser, original), original["ema"], **CLOSE)


def test_time_alignment_starts_without_influence(folder: Path, original: dict[str, Tensor]) -> None:
    denoiser = film_denoiser(conditioning=("film", "time_aligned"))
    assert start_denoiser(denoiser, folder) == []
    torch.testing.assert_close(denoised(denoiser, original), original["ema"], **CLOSE)
    denoiser.requires_grad_(True)
    denoiser(original["latent"], original["t"], original["film"].unsqueeze(2)).square().sum().backward()
    assert denoiser.unet.conv_in.weight.grad[:, 8:].abs().max() > 0  # and can gain it


def test_only_what_the_condition_enters_by_is_new(folder: Path) -> None:
    assert start_denoiser(film_denoiser(cond_dim=9), folder) == ["class_embedding.weight"]
    new = start_denoiser(film_denoiser(conditioning=("film", "cross_attention")), folder)
    assert len(new) == 32  # keys and values of (2 + 3) layers at 3 levels and one in the middle
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in new)


@torch.no_grad()
def test_an_autoencoder_starts_with_the_published_scale(folder: Path, original: dict[str, Tensor]) -> None:
    autoencoder = AutoencoderConfig(channels=(32, 64, 128)).build().eval()
    start_autoencoder(autoencoder, folder)
    latent = encode(autoencoder, original["log_mel"])
    torch.testing.assert_close(latent, golden.SCALE_FACTOR * original["moments"][:, :8], **CLOSE)
    torch.testing.assert_close(decode(autoencoder, golden.SCALE_FACTOR * original["z"]), original["decoded"], **CLOSE)


@torch.no_grad()
def test_the_vocoder_of_the_folder_is_a_config_value(folder: Path, original: dict[str, Tensor]) -> None:
    vocoder = HifiGanConfig(path=str(folder / "vocoder")).build()
    torch.testing.assert_close(vocoder(original["log_mel"][:, 0]), original["waveform"], **CLOSE)


def test_a_diffusers_folder_is_read(folder: Path, original: dict[str, Tensor], tmp_path: Path) -> None:
    """With PyTorch files and the names that attention had in diffusers when AudioLDM was published."""
    old = tmp_path / "old"
    shutil.copytree(folder, old, ignore=shutil.ignore_patterns("vocoder"))
    for part in ("unet", "vae"):
        (weights,) = (old / part).glob("*.safetensors")
        tensors = load_file(weights)
        if part == "vae":
            for ours, theirs in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
                tensors = {n.replace(f".{ours}.", f".{theirs}."): t for n, t in tensors.items()}
        torch.save(tensors, weights.with_suffix(".bin"))
        weights.unlink()
    facts = convert(old, tmp_path / "new")
    assert set(facts["parameters"]) == {"unet", "vae"}
    autoencoder, denoiser = AutoencoderConfig(channels=(32, 64, 128)).build().eval(), film_denoiser()
    start_autoencoder(autoencoder, tmp_path / "new")
    start_denoiser(denoiser, tmp_path / "new")
    torch.testing.assert_close(denoised(denoiser, original), original["ema"], **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(autoencoder.decode(original["z"]).sample, original["decoded"], **CLOSE)


def test_heads_that_a_conversion_lost_are_set_anew(folder: Path, original: dict[str, Tensor], tmp_path: Path) -> None:
    """diffusers' script for AudioLDM writes no attention_head_dim, whose default means 8 heads at every level."""
    lost = tmp_path / "lost"
    shutil.copytree(folder, lost, ignore=shutil.ignore_patterns("vocoder", "vae"))
    stated = json.loads((lost / "unet" / "config.json").read_text())
    del stated["attention_head_dim"]
    (lost / "unet" / "config.json").write_text(json.dumps(stated))
    denoiser = film_denoiser()
    with pytest.raises(UserError, match=r"attention_head_dim is 8, the config's \[1, 2, 2, 3\].*--head-dim"):
        start_denoiser(denoiser, lost)
    assert command.main(["import", "audioldm", str(lost), "--to", str(tmp_path / "new"), "--head-dim", "32"]) == 0
    start_denoiser(denoiser, tmp_path / "new")
    torch.testing.assert_close(denoised(denoiser, original), original["ema"], **CLOSE)


# What cannot be read


class Code:
    def __reduce__(self) -> tuple:
        return (print, ("code was run",))


def test_code_in_a_file_is_not_run(saved: Callable[[object], Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = saved({"state_dict": LDM, "hyper_parameters": Code()})
    with pytest.raises(UserError, match=r"mine\.ckpt holds more than weights"):
        read(path)
    path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(UserError, match=r"mine\.ckpt"):
        read(path)
    assert "code was run" not in capsys.readouterr().out


def without(*names: str) -> dict[str, Tensor]:
    return {n: t for n, t in LDM.items() if n not in names}


MISFITS = [
    (without("model.diffusion_model.middle_block.1.norm.bias"), r"1 tensors missing \(mid_block\.attentions\.0\.norm"),
    (LDM | {"model.diffusion_model.id_predictor.0.weight": torch.ones(1)}, r"missing.*model_ema"),
    (without("model_ema.diffusion_modelout2bias"), r"1 tensors missing \(model_ema\.diffusion_modelout2bias"),
    (without("model.diffusion_model.film_emb.weight"), "lacks film_emb.weight: only AudioLDM's UNet"),
    (LDM | {"first_stage_model.encoder.down.0.attn.0.q.bias": torch.ones(1)}, r"autoencoder.*1 tensors unexpected"),
    (LDM | {"first_stage_model.decoder.conv_out.bias": torch.ones(2)}, r"1 tensors of another shape \(decoder"),
    (without("first_stage_model.post_quant_conv.weight"), "lacks post_quant_conv.weight"),
    (without("first_stage_model.vocoder.conv_pre.weight"), "the vocoder lacks conv_pre.weight"),
    (LDM | {"first_stage_model.vocoder.ups.0.weight": torch.ones(64, 32, 12)}, r"kernels \[12, 16, 8, 4, 4\]"),
    ({"a.weight": torch.ones(1)}, r"holds no part of AudioLDM \(it begins with a\.weight\)"),
    ([1, 2], "holds a list, not tensors by name"),
]


@pytest.mark.parametrize(("held", "sentence"), MISFITS, ids=[sentence for _, sentence in MISFITS])
def test_what_does_not_fit_is_named(held: object, sentence: str, saved: Callable[[object], Path]) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read(saved({"state_dict": held} if isinstance(held, dict) else held))
    assert "mine.ckpt" in str(caught.value)


def test_absent_and_damaged_files_are_named(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    (tmp_path / "empty").mkdir()
    for path, sentence in (
        (tmp_path / "none.ckpt", r"none\.ckpt does not exist"),
        (cut, r"cut\.ckpt is no PyTorch checkpoint, or is damaged"),
        (tmp_path / "empty", "empty holds none of the folders unet, vae, vocoder"),
    ):
        with pytest.raises(UserError, match=sentence):
            read(path)
    with pytest.raises(UserError, match="imported exists"):
        convert(checkpoint, folder)
    assert not list(folder.parent.glob("*.partial"))


def test_a_model_that_is_another_does_not_start(folder: Path, tmp_path: Path) -> None:
    for model, sentence in (
        (film_denoiser(head_dim=16), r"attention_head_dim is \[1, 2, 2, 3\].*\[2, 4, 4, 6\]"),
        (film_denoiser(norm_groups=16), "norm_num_groups is 32"),
        (film_denoiser(conditioning=("time_aligned",)), "add film to model.denoiser.conditioning"),
        (film_denoiser(channels=(32, 64, 64, 96), layers_per_block=1), "tensor .* is .* the model has"),
    ):
        with pytest.raises(UserError, match=sentence):
            start_denoiser(model, folder)
    with pytest.raises(UserError, match=r"vae: tensor .* the model has"):
        start_autoencoder(AutoencoderConfig(channels=(32, 64, 64)).build(), folder)
    with pytest.raises(UserError, match=r"unet holds no config\.json.*import audioldm"):
        start_denoiser(film_denoiser(), tmp_path)
