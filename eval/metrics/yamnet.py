"""YAMNet (Plakal & Ellis, 2020; Apache-2.0), dequantised from its TFLite file into plain torch.

AudioSet's sound classes make it hear degradation that speech models are trained to ignore: of the
embedders here it separates mild noise from clean speech best.
"""

from __future__ import annotations

import struct
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eeg2speech.errors import UserError
from eeg2speech.files import sha256
from eval.metrics.embedders import Embedder

SHA256 = "10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de"
FILE = "yamnet_audio_classifier_with_metadata.tflite of tensorflow/tflite-support"
PATCH, PATCH_HOP = 15_600, 7_680
"""Samples: 96 frames of 25 ms every 10 ms, a new patch every 0.48 s."""


class YAMNet(Embedder):
    """The 1,024 averaged features of each 0.975-s patch of a clip."""

    name = "yamnet"

    def __init__(self, path: Path | None, batch_size: int) -> None:
        self.path, self.batch_size = path, batch_size

    def missing(self) -> str | None:
        if self.path is None:
            return f"weights absent: name {FILE} in metrics.embedding.yamnet"
        return None if self.path.exists() else f"weights absent: {self.path} (metrics.embedding.yamnet) does not exist"

    @property
    def weights(self) -> str:
        return SHA256[:12]

    @cached_property
    def network(self) -> YAMNetwork:
        assert self.path is not None  # `missing` said so
        if sha256(self.path) != SHA256:
            raise UserError(f"{self.path} (metrics.embedding.yamnet): its SHA-256 is not {SHA256[:16]}...; take {FILE}")
        return YAMNetwork(read_tflite(self.path.read_bytes())).eval()

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        length = max(waveforms.shape[1], PATCH)
        found = []
        with torch.inference_mode():
            for start in range(0, len(waveforms), self.batch_size):
                clips = torch.from_numpy(np.array(waveforms[start : start + self.batch_size], dtype=np.float32))
                patches = nn.functional.pad(clips, (0, length - clips.shape[1])).unfold(1, PATCH, PATCH_HOP)
                features = self.network(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
                found.append(features.double().numpy())
        return np.concatenate(found)


class YAMNetwork(nn.Module):
    """MobileNet v1 on a log-mel patch. Batch normalisation is folded into the convolutions of the file."""

    def __init__(self, constants: list[Tensor]) -> None:
        """`constants` as `read_tflite` gives them: each weight is followed by its bias."""
        super().__init__()
        pairs = list(zip(constants, constants[1:], strict=False))
        self.window = next(c for c in constants if c.shape == (400,))
        self.mel, self.offset = next(pair for pair in pairs if pair[0].shape == (64, 257))
        self.kernels = [pair for pair in pairs if pair[0].ndim == 4]
        self.classifier = next(pair for pair in pairs if pair[0].shape == (521, 1024))

    HALVING = frozenset({0, 3, 7, 11, 23})
    """Convolutions of stride 2."""

    def log_mel(self, waveform: Tensor) -> Tensor:
        """(B, 15600) -> (B, 1, 96, 64)"""
        frames = waveform.unfold(1, 400, 160) * self.window
        magnitude = torch.fft.rfft(frames, 512).abs()
        return (magnitude @ self.mel.T + self.offset).log().unsqueeze(1)

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, 15600) at 16 kHz -> (B, 1024), non-negative"""
        x = self.log_mel(waveform)
        for i, (kernel, bias) in enumerate(self.kernels):
            x = torch.relu(same_convolution(x, kernel, bias, stride=2 if i in self.HALVING else 1))
        return x.mean(dim=(2, 3))

    def classes(self, features: Tensor) -> Tensor:
        """(B, 1024) -> (B, 521) probabilities of AudioSet's classes."""
        weight, bias = self.classifier
        return torch.sigmoid(features @ weight.T + bias)


def same_convolution(x: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
    """TFLite's padding SAME: an odd sample of padding goes below and to the right.

    `kernel` as TFLite has it: (out, h, w, in), or (1, h, w, channels) where it is depthwise.
    """
    depthwise = kernel.shape[0] == 1
    weight = kernel.permute(3, 0, 1, 2) if depthwise else kernel.permute(0, 3, 1, 2)
    padding: list[int] = []
    for axis in (3, 2):
        total = max(0, (-(-x.shape[axis] // stride) - 1) * stride + weight.shape[axis] - x.shape[axis])
        padding += [total // 2, total - total // 2]
    groups = x.shape[1] if depthwise else 1
    return nn.functional.conv2d(nn.functional.pad(x, padding), weight, bias, stride, groups=groups)


def read_tflite(data: bytes) -> list[Tensor]:
    """The constant inputs of a TFLite model's operators, in order of use, dequantised to float32.

    A flatbuffer: tables point back to a table of field offsets. Fields by their number in the public
    schema: Model 2 subgraphs, 4 buffers; SubGraph 0 tensors, 3 operators; Operator 1 inputs; Tensor
    0 shape, 1 type, 2 buffer, 4 quantization (2 scale, 3 zero point, 6 axis); Buffer 0 data.
    """
    if data[4:8] != b"TFL3":
        raise UserError("metrics.embedding.yamnet: this is no TFLite file")
    model = _Table(data, struct.unpack_from("<I", data)[0])
    graph, buffers = model.tables(2)[0], model.tables(4)
    tensors = graph.tables(0)
    constants = []
    for operator in graph.tables(3):
        for index in operator.numbers(1, "i"):
            raw = buffers[tensors[index].scalar(2, "I")].numbers(0, "B") if index >= 0 else ()
            if raw:
                constants.append(_dequantised(tensors[index], bytes(raw)))
    return constants


_TYPES = {0: np.float32, 2: np.int32, 9: np.int8}


def _dequantised(tensor: _Table, raw: bytes) -> Tensor:
    shape = tensor.numbers(0, "i")
    values = np.frombuffer(raw, _TYPES[tensor.scalar(1, "b")]).reshape(shape).astype(np.float32)
    quantization = tensor.table(4)
    scale = quantization.numbers(2, "f") if quantization else ()
    if quantization and scale:
        along = [1] * len(shape)
        along[quantization.scalar(6, "i")] = len(scale)
        zero = np.array(quantization.numbers(3, "q"), dtype=np.float32)
        values = (values - zero.reshape(along)) * np.array(scale, dtype=np.float32).reshape(along)
    return torch.from_numpy(values)


class _Table:
    """A table of a flatbuffer, its fields by number; an absent field is 0, empty or None."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]

    def _field(self, number: int) -> int | None:
        size = struct.unpack_from("<H", self.data, self._fields)[0]
        if 4 + 2 * number >= size:
            return None
        offset = struct.unpack_from("<H", self.data, self._fields + 4 + 2 * number)[0]
        return self.at + offset if offset else None

    def _target(self, at: int) -> int:
        return at + struct.unpack_from("<I", self.data, at)[0]

    def scalar(self, number: int, form: str) -> int:
        at = self._field(number)
        return struct.unpack_from(f"<{form}", self.data, at)[0] if at is not None else 0

    def numbers(self, number: int, form: str) -> tuple[int, ...]:
        at = self._field(number)
        if at is None:
            return ()
        start = self._target(at)
        return struct.unpack_from(f"<{struct.unpack_from('<I', self.data, start)[0]}{form}", self.data, start + 4)

    def table(self, number: int) -> _Table | None:
        at = self._field(number)
        return _Table(self.data, self._target(at)) if at is not None else None

    def tables(self, number: int) -> list[_Table]:
        at = self._field(number)
        if at is None:
            return []
        start = self._target(at)
        count = struct.unpack_from("<I", self.data, start)[0]
        return [_Table(self.data, self._target(start + 4 + 4 * i)) for i in range(count)]
