"""The arithmetic of the benchmarks: what stands beside a time must be right, whatever the time."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmarks import device, measure
from benchmarks.measure import SLOW_ROUNDS, Comparison, Measure, count_flops, median_interval, ratios
from benchmarks.modules import Made, loss_and_gradients
from benchmarks.sizes import Sizes

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


class Rounds:
    """pytest-benchmark's fixture as far as pairs need it, whose rounds take these seconds."""

    def __init__(self, *data: float) -> None:
        self.extra_info: dict[str, object] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=list(data), median=float(np.median(data))))

    def pedantic(self, target: Callable[[], object], setup: Callable[[], object], rounds: int) -> None:
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
