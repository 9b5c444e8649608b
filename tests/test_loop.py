"""The training loop against a hand-written one, and against itself interrupted."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from eeg2speech.batch import Batch
from eeg2speech.errors import UserError
from eeg2speech.files import sha256
from eeg2speech.runs import is_done, read_done
from eeg2speech.training import processes
from eeg2speech.training.log import read_metrics
from eeg2speech.training.loop import Stage, StageConfig, train
from eeg2speech.training.optim import learning_rate
from eeg2speech.training.processes import share
from eeg2speech.training.stages import ContrastiveStage

WINDOWS = 8


class Regression(Stage):
    """One EEG sample of four channels to the first channel's negative."""

    def __init__(self, network: nn.Module, frozen: nn.Module | None = None) -> None:
        super().__init__("toy", {"network": network}, {"target": frozen} if frozen else None)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        error = self.modules["network"](batch.eeg[..., 0]) + batch.eeg[:, :1, 0]
        return {"loss": error.square().mean(), "bias": error.mean()}


def batch_at(index: int, dtype: torch.dtype = torch.float32) -> Batch:
    eeg = torch.randn(WINDOWS, 4, 1, generator=torch.Generator().manual_seed(index), dtype=dtype)
    rows = torch.arange(WINDOWS)
    return Batch(eeg, torch.zeros(WINDOWS, 4, 2), rows, rows, torch.zeros(WINDOWS, 1, 1), tuple("abcdefgh"))


def validation() -> Iterator[Batch]:
    yield batch_at(10_001)


def config(**values: object) -> StageConfig:
    return StageConfig.model_validate({"steps": 6, "batch_size": WINDOWS, "learning_rate": 0.01} | values)


def noisy_network() -> nn.Module:
    """Everything that has a state or is random: batch norm, dropout."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 1))


def without_times(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_metrics(folder)]


def test_weights_and_average_equal_a_hand_written_adamw(tmp_path: Path) -> None:
    steps, parts, peak, warmup, decay, clip, ema_decay = 12, 2, 0.05, 4, 0.1, 0.5, 0.4
    torch.manual_seed(3)
    network = nn.Linear(4, 1).double()
    theta = [p.detach().clone() for p in network.parameters()]
    trajectory = [[p.clone() for p in theta]]
    first, second = [torch.zeros_like(p) for p in theta], [torch.zeros_like(p) for p in theta]
    norms = []
    for step in range(steps):
        gradients = [torch.zeros_like(p) for p in theta]
        for part in range(parts):
            x = batch_at(step * parts + part, torch.float64).eeg[..., 0]
            error = x @ theta[0].T + theta[1] + x[:, :1]
            gradients[0] += 2 * error.T @ x / WINDOWS / parts
            gradients[1] += 2 * error.mean(0) / parts
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        norms.append(norm)
        gradients = [g * min(1.0, clip / norm) for g in gradients]
        half_cosine = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
        rate = peak * (step + 1) / warmup if step < warmup else peak * half_cosine
        for p, g, m, v, shrink in zip(theta, gradients, first, second, (decay, 0.0), strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            p.sub_(rate * shrink * p + rate * m_hat / (v_hat.sqrt() + 1e-8))
        trajectory.append([p.clone() for p in theta])
    assert max(norms) > clip > min(norms), "clipping must be exercised both ways"

    stage = Regression(network)
    settings = config(
        steps=steps, learning_rate=peak, warmup_steps=warmup, weight_decay=decay, gradient_clip=clip,
        gradient_accumulation=parts, ema_decay=0.0, log_every=1,
    )  # fmt: skip
    train(stage, lambda i: batch_at(i, torch.float64), list, settings, tmp_path / "raw", "d", 0, progress=False)
    raw = load_file(tmp_path / "raw" / "weights.safetensors")
    assert torch.allclose(raw["network.weight"], trajectory[-1][0], rtol=1e-6, atol=1e-8)
    assert torch.allclose(raw["network.bias"], trajectory[-1][1], rtol=1e-6, atol=1e-8)
    logged = [row["train/gradient_norm"] for row in read_metrics(tmp_path / "raw")]
    assert logged == pytest.approx(norms, rel=1e-5)

    # Closed form of the average: sum over t of (1 - d_t) (product of later d) theta_t, from theta_0.
    d = [min(ema_decay, (1 + t) / (10 + t)) for t in range(1, steps + 1)]
    assert d[0] < ema_decay == d[-1], "warm-up and plateau must both be exercised"
    weights = [math.prod(d)] + [(1 - d[t]) * math.prod(d[t + 1 :]) for t in range(steps)]
    assert math.fsum(weights) == pytest.approx(1.0)
    expected = sum(w * point[0] for w, point in zip(weights, trajectory, strict=True))
    with torch.no_grad():
        for p, start in zip(network.parameters(), trajectory[0], strict=True):
            p.copy_(start)
    settings = settings.model_copy(update={"ema_decay": ema_decay})
    train(stage, lambda i: batch_at(i, torch.float64), list, settings, tmp_path / "ema", "d", 0, progress=False)
    averaged = load_file(tmp_path / "ema" / "weights.safetensors")["network.weight"]
    assert torch.allclose(averaged, expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(network.weight, averaged), "the result is left in the modules"


def test_learning_rate_has_its_corners() -> None:
    assert learning_rate(0, 1.0, 100, 10, "cosine") == pytest.approx(0.1)
    assert learning_rate(9, 1.0, 100, 10, "constant") == learning_rate(10, 1.0, 100, 10, "cosine") == 1.0
    assert learning_rate(55, 1.0, 100, 10, "cosine") == pytest.approx(0.5)
    assert learning_rate(100, 1.0, 100, 10, "cosine") == pytest.approx(0.0)
    assert learning_rate(99, 1.0, 100, 10, "constant") == 1.0


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"ema_decay": 0.0, "weight_decay": 0.0, "schedule": "constant", "gradient_clip": None},
        {"gradient_accumulation": 3, "mixed_precision": "bf16"},
    ],
)
def test_interrupted_training_equals_uninterrupted(
    tmp_path: Path, values: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "has_bfloat16", lambda device: True)
    settings = config(log_every=2, validate_every=2, warmup_steps=2, **values)
    parts = settings.gradient_accumulation
    train(Regression(noisy_network()), batch_at, validation, settings, tmp_path / "whole", "d", 5, progress=False)

    def interrupted_at(index: int) -> Batch:
        if index == 3 * parts - 1:  # in the third step
            signal.raise_signal(signal.SIGINT)
        return batch_at(index)

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(Regression(noisy_network()), interrupted_at, validation, settings, broken, "d", 5, progress=False)
    state = json.loads((broken / "checkpoint" / "state.json").read_text())
    assert state["step"] == 3
    assert not is_done(broken, "d")
    torch.manual_seed(99)  # neither the generators nor the starting weights may matter on resume
    other_start = noisy_network().apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    train(Regression(other_start), batch_at, validation, settings, broken, "d", 5, progress=False)

    assert sha256(broken / "weights.safetensors") == sha256(tmp_path / "whole" / "weights.safetensors")
    assert without_times(broken) == without_times(tmp_path / "whole")
    assert not (broken / "checkpoint").exists()
    assert (read_done(broken) or {})["wall_s"] > state["scalars"]["wall_s"] > 0


def test_after_a_crash_no_row_is_there_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(log_every=1, checkpoint_every=2)

    def crashing_at(index: int) -> Batch:
        if index == 5:
            raise RuntimeError("power cut")
        return batch_at(index)

    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError):
        train(Regression(noisy_network()), crashing_at, validation, settings, broken, "d", 0, progress=False)
    assert [row["step"] for row in read_metrics(broken)] == [1, 2, 3, 4, 5]  # the checkpoint is of step 4
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')
    train(Regression(noisy_network()), batch_at, validation, settings, broken, "d", 0, progress=False)
    train(Regression(noisy_network()), batch_at, validation, settings, tmp_path / "whole", "d", 0, progress=False)
    assert without_times(broken) == without_times(tmp_path / "whole")
    board = EventAccumulator(str(broken / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_sigterm_gets_through_once_the_checkpoint_is_safe(tmp_path: Path) -> None:
    seen: list[bool] = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append((tmp_path / "s" / "checkpoint").exists()))

    def stopping_at(index: int) -> Batch:
        if index == 1:
            signal.raise_signal(signal.SIGTERM)
            assert not seen
        return batch_at(index)

    try:
        with pytest.raises(KeyboardInterrupt):
            train(
                Regression(noisy_network()), stopping_at, validation, config(), tmp_path / "s", "d", 0, progress=False
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [True]


def test_a_loss_that_is_not_finite_names_stage_step_and_lever(tmp_path: Path) -> None:
    def poisoned_at(index: int) -> Batch:
        batch = batch_at(index)
        return replace(batch, eeg=batch.eeg * (math.inf if index == 4 else 1.0))

    settings = config(log_every=2, checkpoint_every=1)
    with pytest.raises(UserError, match=r"toy: the loss .* steps 5 to 5; lower its learning_rate \(now 0.01\)"):
        train(Regression(nn.Linear(4, 1)), poisoned_at, validation, settings, tmp_path / "s", "d", 0, progress=False)
    state = json.loads((tmp_path / "s" / "checkpoint" / "state.json").read_text())
    assert state["step"] == 4, "the checkpoint from before stands"


def test_a_finished_stage_is_left_alone_and_a_changed_one_redone(tmp_path: Path) -> None:
    def forbidden(index: int) -> Batch:
        raise AssertionError("trained again")

    folder = tmp_path / "s"
    train(Regression(nn.Linear(4, 1)), batch_at, validation, config(), folder, "one", 0, progress=False)
    train(Regression(nn.Linear(4, 1)), forbidden, validation, config(), folder, "one", 0, progress=False)
    train(Regression(nn.Linear(4, 1)), batch_at, validation, config(steps=2), folder, "two", 0, progress=False)
    done = read_done(folder) or {}
    assert (done["depends"], done["steps"], done["parameters"]) == ("two", 2, 5)
    assert [row["step"] for row in read_metrics(folder)] == [2]
    (folder / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="weights.safetensors does not match the hash"):
        train(Regression(nn.Linear(4, 1)), forbidden, validation, config(), folder, "two", 0, progress=False)


def test_a_named_checkpoint_must_be_of_this_configuration(tmp_path: Path) -> None:
    def stopping_at(index: int) -> Batch:
        if index == 2:
            signal.raise_signal(signal.SIGINT)
        return batch_at(index)

    with pytest.raises(KeyboardInterrupt):
        train(Regression(noisy_network()), stopping_at, validation, config(), tmp_path / "a", "one", 0, progress=False)
    found = tmp_path / "a" / "checkpoint"
    arguments = (batch_at, validation, config(), tmp_path / "b")
    with pytest.raises(UserError, match="belongs to another configuration"):
        train(Regression(noisy_network()), *arguments, "two", 0, progress=False, resume_from=found)
    with pytest.raises(UserError, match="is no checkpoint"):
        train(Regression(noisy_network()), *arguments, "one", 0, progress=False, resume_from=tmp_path)
    train(Regression(noisy_network()), *arguments, "one", 0, progress=False, resume_from=found)
    train(Regression(noisy_network()), batch_at, validation, config(), tmp_path / "c", "one", 0, progress=False)
    assert sha256(tmp_path / "b" / "weights.safetensors") == sha256(tmp_path / "c" / "weights.safetensors")


def test_validation_sees_the_average_in_eval_mode_and_changes_nothing(tmp_path: Path) -> None:
    network = noisy_network()
    seen: list[dict[str, Tensor]] = []

    class Watched(Regression):
        def validate(self, batches: object) -> dict[str, float]:
            assert not self.modules["network"].training
            assert not torch.is_grad_enabled()
            seen.append({k: v.clone() for k, v in self.modules.state_dict().items()})
            return {"draw": float(torch.rand(()))}

    settings = config(validate_every=1, ema_decay=0.9)
    train(Watched(network), batch_at, validation, settings, tmp_path / "often", "d", 0, progress=False)
    rarely = settings.model_copy(update={"validate_every": 500})
    train(Regression(noisy_network()), batch_at, validation, rarely, tmp_path / "rarely", "d", 0, progress=False)
    assert sha256(tmp_path / "often" / "weights.safetensors") == sha256(tmp_path / "rarely" / "weights.safetensors")
    final = load_file(tmp_path / "often" / "weights.safetensors")
    assert all(torch.equal(seen[-1][name], tensor) for name, tensor in final.items())
    draws = {row["valid/draw"] for row in read_metrics(tmp_path / "often") if "valid/draw" in row}
    assert len(draws) == 1, "each validation draws the same noise"
    assert len(seen) == 6


def test_validation_weights_batches_by_their_windows() -> None:
    stage = Regression(nn.Linear(4, 1))
    large = batch_at(0)
    small = share(batch_at(1), 0, 4)
    values = stage.validate([large, small])
    x = torch.cat([large.eeg, small.eeg])[..., 0].double()
    layer = stage.modules["network"].double()
    error = x @ layer.weight.T + layer.bias + x[:, :1]
    assert len(x) == 10
    assert values == pytest.approx({"loss": error.square().mean().item(), "bias": error.mean().item()}, abs=1e-6)


def test_a_term_that_is_undefined_is_left_out_of_the_log(tmp_path: Path) -> None:
    class Undefined(Regression):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            return super().loss(batch) | {"correlation": torch.tensor(math.nan)}

    train(Undefined(nn.Linear(4, 1)), batch_at, list, config(validate_every=99), tmp_path, "d", 0, progress=False)
    (row,) = read_metrics(tmp_path)
    assert "train/loss" in row
    assert "train/correlation" not in row


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    teacher, network = nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    network[0].requires_grad_(False)
    held = network[0].weight.clone()

    class Taught(Regression):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            assert not self.frozen["target"].training
            return super().loss(replace(batch, eeg=self.frozen["target"](batch.eeg[..., 0])[..., None]))

    train(Taught(network, teacher), batch_at, validation, config(), tmp_path / "s", "d", 0, progress=False)
    saved = load_file(tmp_path / "s" / "weights.safetensors")
    assert set(saved) == {f"network.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert torch.equal(saved["network.0.weight"], held)
    assert (read_done(tmp_path / "s") or {})["parameters"] == 5
    assert int(teacher.num_batches_tracked) == 0


def test_precision_is_each_stages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "has_bfloat16", lambda device: True)
    dtypes: list[torch.dtype] = []

    class Watched(Regression):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            dtypes.append(self.modules["network"](batch.eeg[..., 0]).dtype)
            return super().loss(batch)

    for precision in ("no", "bf16", "no"):
        stage, settings = Watched(nn.Linear(4, 1)), config(steps=1, mixed_precision=precision)
        train(stage, batch_at, lambda: [batch_at(0)], settings, tmp_path / f"{len(dtypes)}", "d", 0, progress=False)
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2 + [torch.float32] * 2
    assert read_done(tmp_path / "2")["precision"] == "bfloat16"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="toy: mixed_precision fp16 needs a GPU"):
            train(stage, batch_at, validation, config(mixed_precision="fp16"), tmp_path / "h", "d", 0, progress=False)


def test_a_processor_that_only_imitates_bfloat16_trains_in_float32_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "has_bfloat16", lambda device: False)
    weights = []
    for precision in ("no", "bf16"):
        settings = config(steps=2, mixed_precision=precision)
        torch.manual_seed(0)
        train(Regression(nn.Linear(4, 1)), batch_at, validation, settings, tmp_path / precision, "d", 0, progress=False)
        weights.append(load_file(tmp_path / precision / "weights.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert read_done(tmp_path / "bf16")["precision"] == "float32"
    assert [r.getMessage() for r in caplog.records] == [
        "stage toy: trained in float32, for this processor can only imitate bf16"
    ]


def test_a_training_that_went_on_in_another_precision_says_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(index: int) -> Batch:
        if index == 1:
            signal.raise_signal(signal.SIGINT)
        return batch_at(index)

    settings = config(steps=4, mixed_precision="bf16")
    for runs, batches in ((True, interrupted), (False, batch_at)):
        monkeypatch.setattr(processes, "has_bfloat16", lambda device, runs=runs: runs)
        with pytest.raises(KeyboardInterrupt) if runs else nullcontext():
            train(Regression(nn.Linear(4, 1)), batches, validation, settings, tmp_path, "d", 0, progress=False)
    assert read_done(tmp_path)["precision"] == "bfloat16 and float32"


def test_channels_last_trains_to_the_same_weights(tmp_path: Path) -> None:
    class Image(Regression):
        def loss(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": self.modules["network"](batch.eeg.reshape(-1, 1, 2, 2)).square().mean()}

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 2, padding=1), nn.GELU(), nn.Conv2d(4, 2, 2)).double()

    results = []
    for value in (False, True):
        stage, settings = Image(network()), config(channels_last=value)
        folder = tmp_path / str(value)
        train(stage, lambda i: batch_at(i, torch.float64), list, settings, folder, "d", 0, progress=False)
        weight = stage.modules["network"][2].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is value
        results.append(load_file(folder / "weights.safetensors"))
    for name, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][name], rtol=1e-9)


class Embedding(nn.Module):
    """(B, 4, 1) to itself times a matrix: an encoder of EEG or of audio."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(4, 3).double()

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.matrix(x[..., 0])[..., None]


STAGES: dict[str, Callable[[], Stage]] = {
    "rows": lambda: Regression(nn.Linear(4, 1).double()),
    "contrastive": lambda: ContrastiveStage(Embedding(), Embedding()),  # whose loss is no mean over rows
}
TWO_PROCESSES = """
import os, sys
from pathlib import Path
import torch
from tests.test_loop import STAGES, batches64, config, train, validation64
torch.manual_seed(int(os.environ["RANK"]))  # the first process's start must win
train(STAGES[sys.argv[2]](), batches64, validation64, config(log_every=1), Path(sys.argv[1]), "d", 0, progress=False)
"""


def batches64(index: int) -> Batch:
    """Two pairs of windows are of the same speech, and lie in the shares of different processes."""
    batch = batch_at(index, torch.float64)
    return replace(batch, features=batch.eeg.flip(1), stimulus=torch.tensor([0, 1, 2, 3, 4, 0, 6, 3]))


def validation64() -> Iterator[Batch]:
    yield batches64(10_001)


@pytest.mark.parametrize("kind", ["contrastive", pytest.param("rows", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(kind: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "two"), kind]
    running = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    torch.manual_seed(0)
    one = tmp_path / "one"
    train(STAGES[kind](), batches64, validation64, config(log_every=1), one, "d", 0, progress=False)
    for name, tensor in load_file(one / "weights.safetensors").items():
        assert torch.allclose(load_file(tmp_path / "two" / "weights.safetensors")[name], tensor, rtol=1e-9)
    for row, other in zip(without_times(one), without_times(tmp_path / "two"), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def test_shares_are_the_whole_batch_in_order() -> None:
    batch = batch_at(0)
    parts = [share(batch, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat([part.eeg for part in parts]), batch.eeg)
    assert sum((part.text for part in parts), ()) == batch.text
    with pytest.raises(UserError, match="batch_size: 8 windows cannot be shared by 3"):
        share(batch, 0, 3)


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"learning_rate": 0}, {"ema_decay": 1.0}, {"minutes": 5}, {"schedule": "linear"}]
)
def test_impossible_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        config(**values)


@pytest.mark.slow
def test_compiled_training_agrees(tmp_path: Path) -> None:
    results = []
    for value in (False, True):
        torch.manual_seed(0)
        stage = Regression(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)))
        train(stage, batch_at, validation, config(compile=value), tmp_path / str(value), "d", 0, progress=False)
        results.append(load_file(tmp_path / str(value) / "weights.safetensors"))
    for name, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][name], atol=1e-5)
