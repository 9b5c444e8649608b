"""The arithmetic of the benchmarks: what stands beside a time must be right, whatever the time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from math import comb
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
import torch
import yaml

from benchmarks import conftest, device, measure, modules
from benchmarks.measure import SLOW_ROUNDS, Comparison, Measure, count_flops, median_interval, ratios, shares
from benchmarks.modules import Made, loss_and_gradients
from benchmarks.sizes import Sizes
from eeg2speech import config

ROOT = Path(__file__).parents[1]


def test_flops_of_a_product_and_of_attention() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops("product", lambda: left @ right) == 2 * 3 * 5 * 7
    q = torch.ones(2, 4, 16, 8)  # 2 x 4 heads, 16 tokens, 8 wide: scores and weighted sum
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_flops("attention", lambda: attention(q, q, q)) == 2 * (2 * 2 * 4 * 16 * 16 * 8)


def test_flops_of_a_backward_pass_are_counted() -> None:
    layer, x = torch.nn.Linear(5, 7, bias=False), torch.ones(3, 5, requires_grad=True)
    assert count_flops("linear", lambda: layer(x).sum().backward()) == 3 * (2 * 3 * 5 * 7)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 30, 101])
def test_interval_of_the_median_covers_what_it_says(n: int) -> None:
    low, high, coverage = median_interval(list(range(1, n + 1)))
    k = int(low)
    assert high == n + 1 - k
    assert coverage == pytest.approx(sum(comb(n, i) for i in range(k, n - k + 1)) / 2**n)
    wider_exists = k > 1
    assert coverage >= 0.95 or not wider_exists
    narrower = sum(comb(n, i) for i in range(k + 1, n - k)) / 2**n
    assert narrower < 0.95


def test_interval_of_the_median_in_a_simulation() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(4_000):
        low, high, coverage = median_interval(rng.exponential(size=9).tolist())
        inside.append(low <= np.log(2) <= high)
    assert np.mean(inside) == pytest.approx(coverage, abs=3 * np.sqrt(coverage * (1 - coverage) / 4_000))


def test_peak_memory_sees_what_is_held_and_let_go_again() -> None:
    memory = device.PeakMemory()
    memory.start()
    if not memory.resettable:
        pytest.skip("this system does not let a process reset its peak")
    held = np.ones(50 * 2**20, dtype=np.uint8)
    del held
    assert 49 <= memory.stop()["host_beyond_mib"] < 80
    memory.start()
    assert memory.stop()["host_beyond_mib"] < 10


def test_garbage_does_not_hide_what_is_held() -> None:
    memory, cycle = device.PeakMemory(), [np.ones(50 * 2**20, dtype=np.uint8)]
    cycle.append(cycle)  # type: ignore[arg-type]
    del cycle
    memory.start()
    if not memory.resettable:
        pytest.skip("this system does not let a process reset its peak")
    gc.collect()
    held = np.ones(50 * 2**20, dtype=np.uint8)
    assert memory.stop()["host_beyond_mib"] > 49
    assert held.any()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As much of a GPU as measuring asks for; it has used 90 J more each time it is asked."""
    state = SimpleNamespace(name="NVIDIA A100-SXM4-80GB", allocated=0, joules=0)

    def joules(handle: object) -> int:
        state.joules += 90
        return state.joules * 1000

    monkeypatch.setattr(device, "DEVICE", SimpleNamespace(type="cuda"))
    for name, answer in {
        "init": lambda: None,
        "is_available": lambda: True,
        "reset_peak_memory_stats": lambda: None,
        "memory_stats": lambda: {"allocation.all.allocated": state.allocated},
        "max_memory_allocated": lambda: 3 * 2**20,
        "get_device_name": lambda: state.name,
        "get_device_properties": lambda _: SimpleNamespace(uuid="1"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", joules)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda handle, kind: 1410)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: 0x4)
    return state


@pytest.mark.parametrize("used", [True, False])
def test_figures_of_a_gpu_are_of_what_used_it(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    def work() -> None:
        gpu.allocated += used

    monkeypatch.setattr(measure, "COUNTED_S", 0.0)
    monkeypatch.setattr(measure, "_seconds", lambda _: 0.1)
    rounds = Rounds(1.0, 3.0, 2.0)
    Measure(rounds, max_time_s=1.0, min_rounds=3)(work, items=5, rounds=3)  # type: ignore[arg-type]
    info = rounds.extra_info
    assert info["device"] == ("cuda" if used else "cpu")
    of_gpu = {"device_peak_mib": 3.0, "sm_mhz": 1410, "held_back_by": ["power"], "energy_j_per_item": 90 / 5 / 3}
    assert {key: info.get(key) for key in of_gpu} == (of_gpu if used else dict.fromkeys(of_gpu))


def test_a_moment_has_no_energy(gpu: SimpleNamespace) -> None:
    def work() -> None:
        gpu.allocated += 1

    rounds = Rounds(1.0)
    Measure(rounds, max_time_s=1.0, min_rounds=1)(work, rounds=1)  # type: ignore[arg-type]
    assert rounds.extra_info["device"] == "cuda"
    assert "energy_j_per_item" not in rounds.extra_info


def test_a_gpu_without_nvml_is_measured_all_the_same(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert device.energy_j() is None
    assert device.clock_now() == {}


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", None),
        ("NVIDIA A1000", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_a_data_sheet_is_of_one_gpu(gpu: SimpleNamespace, name: str, tflops: float | None) -> None:
    gpu.name = name
    assert device.datasheet_tflops() == tflops


def test_what_computes_on_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.environment.describe()["cuda"] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with device.float32_of_others():
        cuda = device.environment.describe()["cuda"]
    assert cuda["tf32"] == {"products": False, "convolutions": True}
    assert cuda["version"] == torch.version.cuda


def test_a_gpu_that_pytorch_does_not_see_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.environment, "describe", lambda: {"gpu": None})
    assert device.unseen() is None
    gpus = [{"name": "NVIDIA T4", "driver": "450.1", "memory": "16 GB"}]
    monkeypatch.setattr(device.environment, "describe", lambda: {"gpu": gpus})
    assert "NVIDIA T4 with driver 450.1" in str(device.unseen())
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert device.unseen() is None


def test_float32_is_that_of_others_for_a_while() -> None:
    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    assert settings() == ("highest", False)
    with device.float32_of_others("high"):
        assert settings() == ("high", True)
        with device.float32_of_others():
            assert settings() == ("highest", True)
    assert settings() == ("highest", False)


def test_a_benchmark_that_a_gpu_is_too_small_for_is_skipped() -> None:
    call = conftest.pytest_runtest_call()
    next(call)
    with pytest.raises(pytest.skip.Exception, match="is too small: CUDA out of memory$"):
        call.throw(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB."))


@pytest.mark.parametrize(("kind", "variable", "language"), [("cpu", "CXX", r"C\+\+"), ("cuda", "CC", "C")])
def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, kind: str, variable: str, language: str) -> None:
    monkeypatch.setattr(modules, "DEVICE", SimpleNamespace(type=kind))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"needs a {language} compiler"):
        modules.require_compiler()
    monkeypatch.setenv(variable, "/somewhere/else")
    modules.require_compiler()


@pytest.mark.parametrize(
    ("kind", "seconds", "rounds"),
    [("cpu", (0.5, 0.005), 100), ("cpu", (4.0,), 3), ("cuda", (4.0, 0.005), 100), ("cpu", (0.5, 0.5), 3)],
)
def test_rounds_are_planned_from_a_second_call(
    monkeypatch: pytest.MonkeyPatch, gpu: SimpleNamespace, kind: str, seconds: tuple[float, ...], rounds: int
) -> None:
    """The first prepares; on a CPU one of seconds is not repeated for that."""
    calls = iter(seconds)
    monkeypatch.setattr(device, "DEVICE", SimpleNamespace(type=kind))
    monkeypatch.setattr(measure, "_seconds", lambda _: next(calls))
    fixture = Rounds(1.0)
    Measure(fixture, max_time_s=1.0, min_rounds=5)(lambda: None)  # type: ignore[arg-type]
    assert fixture.rounds == rounds
    assert next(calls, None) is None


@pytest.mark.parametrize(
    ("expected_s", "rounds", "plan"),
    [
        (0.1, None, (10, 1)),
        (0.25, None, (5, 1)),
        (0.5, None, (SLOW_ROUNDS, 1)),
        (10.0, None, (SLOW_ROUNDS, 1)),
        (10.0, 1, (1, 1)),
        (1e-5, None, (100, 100)),
    ],
)
def test_rounds_fit_the_time(expected_s: float, rounds: int | None, plan: tuple[int, int]) -> None:
    assert Measure(None, max_time_s=1.0, min_rounds=5).plan(expected_s, rounds) == plan  # type: ignore[arg-type]


def row(name: str, median: float, **info: object) -> dict:
    return {"name": name, "stats": {"median": median}, "extra_info": {"items": 1} | info}


def test_ratios_are_of_the_seconds_an_item_takes() -> None:
    measured = [
        row("slow", 6.0, compare="a", role="peer", items=3),
        row("fast", 1.0, compare="a", role="ours", items=5, promise=9),
        row("alone", 1.0, compare="b", role="ours", promise=2),
        row("other", 1.0),
    ]
    (found,) = ratios(measured)
    assert found == {"name": "a", "ours": "fast", "peer": "slow", "ratio": pytest.approx(10.0), "promise": 9}


def test_shares_of_the_peak_are_those_of_which_something_was_promised() -> None:
    measured = [row("promised", 1.0, mfu=0.5, promised_mfu=0.45), row("other", 1.0, mfu=0.9)]
    assert shares(measured) == [{"name": "promised", "mfu": 0.5, "promise": 0.45}]
    assert [conftest.kept(0.5, promise) for promise in (0.45, 0.5, 0.55)] == ["kept", "kept", "MISSED"]


class Rounds:
    """pytest-benchmark's fixture as far as a measurement needs it, whose rounds take these seconds."""

    name = "rounds"

    def __init__(self, *data: float) -> None:
        self.extra_info: dict[str, object] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=list(data), median=float(np.median(data))))

    def pedantic(
        self,
        target: Callable[[], object],
        rounds: int,
        setup: Callable[[], object] = lambda: None,
        iterations: int = 1,
    ) -> None:
        self.rounds = rounds
        for _ in range(rounds):
            setup()
            target()


def test_pairs_alternate_and_their_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second pair ran, the machine was busy."""
    order: list[str] = []
    peer_s = iter([3.0, 90.0, 8.0])

    def timed(function: Callable[[], object]) -> float:
        function()
        return next(peer_s)

    monkeypatch.setattr(measure, "_seconds", timed)
    rounds = Rounds(1.0, 3.0, 2.0)
    Measure(rounds, max_time_s=1.0, min_rounds=5).pairs(  # type: ignore[arg-type]
        lambda: order.append("ours"),
        lambda: order.append("peer"),
        compare=Comparison("a", "ours", 2),
        rounds=3,
        items=4,
    )
    assert order == ["peer", "ours"] * 4  # the first pair warms up
    (found,) = ratios([row("both", 1.0, **rounds.extra_info)])
    assert found == {"name": "a", "ours": "both", "peer": "both", "ratio": 4.0, "promise": 2}
    assert rounds.extra_info["calls_per_s"] == 2.0
    assert rounds.extra_info["median_interval_s"] == [1.0, 3.0]
    assert rounds.extra_info["interval_coverage"] == 0.75


@pytest.mark.parametrize("name", ["cpu", "a100"])
def test_sizes_are_valid_and_hold_audioldm_s(name: str) -> None:
    sizes = Sizes.model_validate(yaml.safe_load((ROOT / f"configs/bench_{name}.yaml").read_text(encoding="utf-8")))
    assert sizes.whole in sizes.shapes
    with torch.device("meta"):
        model = sizes.shapes["audioldm_s"].model
        unet = model.denoiser.build(latent_channels=8, latent_bins=16, cond_dim=512, cond_frames=256).unet
        autoencoder = model.autoencoder.build()
    counts = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (unet, autoencoder)]
    assert counts == [pytest.approx(185.0, abs=0.1), pytest.approx(55.4, abs=0.1)]


@pytest.mark.parametrize("name", ["audioldm_s", "audioldm_l"])
def test_a_gpu_trains_the_shapes_of_the_configs_and_as_they_do(gpu: SimpleNamespace, name: str) -> None:
    sizes = Sizes.model_validate(yaml.safe_load((ROOT / "configs/bench_a100.yaml").read_text(encoding="utf-8")))
    shape, experiment = sizes.shapes[name], config.load(ROOT / f"configs/{name}.yaml")
    diffusion = experiment.training.diffusion
    assert diffusion is not None
    assert (shape.model, shape.contrastive_weight) == (experiment.model, diffusion.contrastive_weight)
    assert shape.trained.compile == diffusion.compile
    assert shape.film_only.model.denoiser.conditioning == ("film",)
    assert shape.film_only.model.denoiser.channels == shape.model.denoiser.channels


def test_the_default_shape_is_the_default_config() -> None:
    sizes = Sizes.model_validate(yaml.safe_load((ROOT / "configs/bench_cpu.yaml").read_text(encoding="utf-8")))
    written = yaml.safe_load((ROOT / "configs/default.yaml").read_text(encoding="utf-8"))
    model = sizes.shapes["default"].model.model_dump(mode="json")
    assert model["denoiser"]["channels"] == written["model"]["denoiser"]["channels"]
    assert model["embedding"]["dim"] == written["model"]["embedding"]["dim"]


def test_every_network_of_the_default_shape_can_be_measured() -> None:
    """The benchmarks themselves run where somebody wants their times; what they measure must be buildable here."""
    sizes = Sizes.model_validate(yaml.safe_load((ROOT / "configs/bench_cpu.yaml").read_text(encoding="utf-8")))
    made = Made(sizes.shapes["default"])
    batch = made.batch(2)
    diffusion = made.diffusion_stage(2)
    for stage in (made.autoencoder_stage(), made.contrastive_stage(2), diffusion):
        loss_and_gradients(stage, batch)()
        assert all(torch.isfinite(term) for term in stage.loss(batch).values()), stage.name
    prior = diffusion.denoiser.latent_prior
    assert prior is not None
    assert not any(p.requires_grad for p in prior.parameters())
    waveform = made.pipeline("dpmsolver++")(batch.eeg, batch.positions, batch.subject, num_inference_steps=1)
    assert waveform.shape == (2, 48_000)


def test_slug_is_a_file_name() -> None:
    assert device.slug().replace("-", "").isalnum()
