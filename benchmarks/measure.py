"""One measurement: how often a call is repeated, and what is written down beside its time."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import device

Result = TypeVar("Result")

SLOW_S = 0.3
"""A call that takes longer is repeated `SLOW_ROUNDS` times, as long as `--benchmark-max-time` asks for no more."""
SLOW_ROUNDS = 3
MOST_ROUNDS = 100
ONCE: dict[str, Any] = {} if device.DEVICE.type == "cuda" else {"rounds": 1, "warm_up": False}
"""For what takes minutes on a CPU, of which preparation is nothing; on a GPU it would be most of a first call."""
COSTLY_S = 3.0
"""A first call on a CPU that takes longer is taken for all: little of it was preparation, and one more would be long to
wait for. On a GPU, where it loads kernels and compiles, the second is."""
COUNTED_S = 1.0
"""Energy is given of what ran as long: NVML's counter is a sample taken several times a second."""
SHORTEST_ROUND_S = 1e-3
"""A shorter call is repeated within a round, beyond what the clock can err by."""

_flops: dict[Hashable, int] = {}


def count_flops(key: Hashable, function: Callable[[], object]) -> int:
    """Floating-point operations of a call, by torch.utils.flop_counter; counted once for each `key`.

    Products and convolutions are counted, a multiply-add as two, and a backward pass where the call
    makes one; element-wise work and Fourier transforms are not. Attention is written out
    while it is counted: the counter does not know the fused kernels of a CPU, and what a fused
    backward computes anew is no work of the model's.
    """
    if key not in _flops:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            function()
        _flops[key] = counter.get_total_flops()
    return _flops[key]


def median_interval(times: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Low, high and coverage of the shortest symmetric order-statistic interval of the median that covers `level`.

    P(x_(k) <= median <= x_(n+1-k)) = 1 - 2 P(Binomial(n, 1/2) < k). Below six rounds no interval
    covers 95 %: then it is the whole range, with the coverage that it has.
    """
    ordered, n = sorted(times), len(times)
    k, coverage, tail = 1, 1 - 2 * 0.5**n, 0.0
    for candidate in range(1, (n + 1) // 2 + 1):
        tail += math.comb(n, candidate - 1) * 0.5**n
        if candidate > 1 and 1 - 2 * tail < level:
            break
        k, coverage = candidate, 1 - 2 * tail
    return ordered[k - 1], ordered[n - k], max(0.0, coverage)


@dataclass(frozen=True)
class Comparison:
    """Two ways to do one thing, measured in one run: ratio = seconds per item of the peer / of ours."""

    name: str
    role: str
    """ours or peer"""
    promise: float | None = None
    """The least ratio that was promised."""


class Measure:
    """Times a call and fills in `benchmark.extra_info`. See the fixture `measure`."""

    def __init__(self, benchmark: BenchmarkFixture, max_time_s: float, min_rounds: int) -> None:
        self.benchmark, self.max_time_s, self.min_rounds = benchmark, max_time_s, min_rounds

    def __call__(
        self,
        function: Callable[[], Result],
        *,
        items: float = 1,
        unit: str = "call",
        dtype: torch.dtype | None = None,
        flops: int | None = None,
        signal_s: float | None = None,
        compare: Comparison | None = None,
        rounds: int | None = None,
        warm_up: bool = True,
        **facts: Any,
    ) -> Result:
        """Calls `function` once to warm up, then several times against the clock, and returns its last result.

        `items` of `unit` are done by one call, `flops` are its operations at `dtype`, `signal_s` the
        seconds of sound or EEG it makes or reads; `facts` are written down as they are. `rounds`, or as many as
        `--benchmark-max-time` allows, at least `--benchmark-min-rounds`.
        """

        def timed() -> Result:
            result = function()
            device.synchronise()
            return result

        info = self.benchmark.extra_info
        info |= {"items": items, "unit": unit, **facts}
        first_s = _seconds(timed) if warm_up else None
        again = first_s is not None and (device.DEVICE.type == "cuda" or first_s < COSTLY_S)
        expected_s = _seconds(timed) if again else first_s
        rounds, iterations = (rounds or 1, 1) if expected_s is None else self.plan(expected_s, rounds)
        memory = device.PeakMemory()
        memory.start()
        energy, begun = device.energy_j(), time.perf_counter()
        result = self.benchmark.pedantic(timed, rounds=rounds, iterations=iterations)
        took_s, clock, energy_after = time.perf_counter() - begun, device.clock_now(), device.energy_j()
        info |= memory.stop()
        info["device"] = memory.device
        on_gpu = memory.device == "cuda"
        if on_gpu:
            info |= clock
        self._trace(timed)
        if self.benchmark.stats is None:  # --benchmark-disable
            return result
        stats = self.benchmark.stats.stats
        low, high, coverage = median_interval(stats.data)
        info |= {"median_interval_s": [low, high], "interval_coverage": round(coverage, 4), "first_call_s": first_s}
        info[f"{unit}s_per_s"] = items / stats.median
        if on_gpu and energy is not None and energy_after is not None and took_s >= COUNTED_S:
            # Where a round repeats the call, pytest-benchmark calls it once more for the result.
            info["energy_j_per_item"] = (energy_after - energy) / items / (rounds * iterations + (iterations > 1))
        if dtype is not None:
            info["dtype"] = str(dtype).removeprefix("torch.")
        if signal_s is not None:
            info["real_time_factor"] = stats.median / signal_s
        if flops is not None:
            assert dtype is not None, "a share of the peak needs to know whose"
            peak, source = device.peak_flops(dtype)
            info |= {
                "flops": flops,
                "mfu": flops / stats.median / peak,
                "peak_flops_per_s": peak,
                "peak_source": source,
            }
        if compare is not None:
            info |= {"compare": compare.name, "role": compare.role, "promise": compare.promise}
        return result

    def pairs(
        self,
        ours: Callable[[], object],
        peer: Callable[[], object],
        *,
        compare: Comparison,
        rounds: int = 5,
        items: float = 1,
        unit: str = "call",
        **facts: Any,
    ) -> None:
        """Times `ours`, and before each of its rounds `peer`, after a call of each to warm up.

        What else the machine does then falls on both alike, and the ratio is the median of the pairs'.
        """
        info = self.benchmark.extra_info
        info |= {"items": items, "unit": unit, "compare": compare.name, **facts}
        peer_s: list[float] = []

        def finished(function: Callable[[], object]) -> None:
            function()
            device.synchronise()

        finished(peer)
        finished(ours)
        memory = device.PeakMemory()
        memory.start()
        self.benchmark.pedantic(
            lambda: finished(ours), setup=lambda: peer_s.append(_seconds(lambda: finished(peer))), rounds=rounds
        )
        clock = device.clock_now()
        memory.stop()  # of both sides, which says nothing of either
        info |= {"device": memory.device} | (clock if memory.device == "cuda" else {})
        if self.benchmark.stats is None:  # --benchmark-disable
            return
        stats = self.benchmark.stats.stats
        found = [theirs / mine for theirs, mine in zip(peer_s, stats.data, strict=True)]
        low, high, coverage = median_interval(stats.data)
        info |= {"peer_s": peer_s, "pair_ratios": found, "promise": compare.promise}
        info |= {"median_interval_s": [low, high], "interval_coverage": round(coverage, 4)}
        info[f"{unit}s_per_s"] = items / stats.median

    def plan(self, expected_s: float, rounds: int | None) -> tuple[int, int]:
        """Rounds, and calls in each."""
        iterations = max(1, math.ceil(SHORTEST_ROUND_S / max(expected_s, 1e-9)))
        if rounds is not None:
            return rounds, iterations
        affordable = int(self.max_time_s / (expected_s * iterations))
        least = min(self.min_rounds, SLOW_ROUNDS) if expected_s > SLOW_S else self.min_rounds
        return max(least, min(affordable, MOST_ROUNDS)), iterations

    def _trace(self, function: Callable[[], object]) -> None:
        """One more call under torch.profiler, as a Chrome trace, where BENCHMARK_TRACES names a folder."""
        folder = os.environ.get("BENCHMARK_TRACES")
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.DEVICE.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            function()
        profile.export_chrome_trace(str(Path(folder) / f"{self.benchmark.name.replace('/', '-')}.json"))


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(benchmarks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as long the peer takes, for every comparison of which both sides were measured, or pairs of both.

    `benchmarks` as pytest-benchmark writes them to JSON.
    """
    found = [
        {
            "name": b["extra_info"]["compare"],
            "ours": b["name"],
            "peer": b["name"],
            "ratio": statistics.median(b["extra_info"]["pair_ratios"]),
            "promise": b["extra_info"]["promise"],
        }
        for b in benchmarks
        if b["extra_info"].get("pair_ratios")
    ]
    peers = {b["extra_info"]["compare"]: b for b in benchmarks if b["extra_info"].get("role") == "peer"}
    for ours in (b for b in benchmarks if b["extra_info"].get("role") == "ours"):
        info = ours["extra_info"]
        peer = peers.get(info["compare"])
        if peer is None:
            continue
        ratio = _per_item(peer) / _per_item(ours)
        found.append(
            {
                "name": info["compare"],
                "ours": ours["name"],
                "peer": peer["name"],
                "ratio": ratio,
                "promise": info["promise"],
            }
        )
    return found


def shares(benchmarks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shares of the peak that something was promised of. `benchmarks` as for `ratios`."""
    infos = [(b["name"], b["extra_info"]) for b in benchmarks if "promised_mfu" in b["extra_info"]]
    return [{"name": name, "mfu": info["mfu"], "promise": info["promised_mfu"]} for name, info in infos]


def _per_item(benchmark: dict[str, Any]) -> float:
    return benchmark["stats"]["median"] / benchmark["extra_info"]["items"]
