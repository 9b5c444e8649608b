"""Benchmarks run with `--benchmark-only` and never among the tests; each records what its time means."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import device
from benchmarks.measure import Measure, ratios, shares
from benchmarks.sizes import SIZES
from eeg2speech import environment

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

LOAD_BEFORE = os.getloadavg() if hasattr(os, "getloadavg") else None
"""Processes that wanted the CPU over the last 1, 5 and 15 minutes: near 0 on a machine fit for measuring."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects what pytest-benchmark would skip one by one, benchmarks where only tests are wanted, and, unless
    `-m` speaks of them, those that take minutes each (`nox -s bench` runs them)."""
    only, slow = config.getoption("benchmark_only"), "slow" in config.getoption("markexpr")
    kept, left_out = [], []
    for item in items:
        is_benchmark = "benchmark" in getattr(item, "fixturenames", ())
        wanted = is_benchmark == only and (slow or not only or item.get_closest_marker("slow") is None)
        (kept if wanted else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture
def measure(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Measure:
    """Times a call, the GPU's work included, and records memory, operations and rates: see `Measure.__call__`."""
    benchmark.group = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    option = request.config.getoption
    return Measure(benchmark, float(option("benchmark_max_time")), int(option("benchmark_min_rounds")))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Each benchmark starts from the same random numbers, as if no other had compiled or held memory before it."""
    torch.manual_seed(0)
    torch.compiler.reset()  # else a second shape of a network would be compiled as any shape, which is slower
    for kept in ("last_exc", "last_value", "last_traceback"):  # by pytest, of a failure, and tensors with it
        vars(sys).pop(kept, None)
    gc.collect()
    if device.DEVICE.type == "cuda":
        torch.cuda.empty_cache()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """What a GPU is too small for is skipped."""
    try:
        return (yield)
    except torch.cuda.OutOfMemoryError as error:
        pytest.skip(f"{device.name()} is too small: {str(error).partition('. ')[0]}")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a reader needs in order to believe the numbers; the host's name is not part of it."""
    machine_info.pop("node", None)
    machine_info.get("cpu", {}).pop("flags", None)
    machine_info |= {
        "device": device.name(),
        "clocks": device.clocks(),
        "threads": torch.get_num_threads(),
        "load_before": LOAD_BEFORE,
        "environment": environment.describe(),
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Adds the comparisons and the sizes; single rounds are left out, their median and its interval stay."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
        benchmark.pop("params", None)  # whole shapes: their names are in `param`, what they are in `sizes`
    output_json["ratios"] = ratios(output_json["benchmarks"])
    output_json["sizes"] = SIZES.model_dump(mode="json")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    measured = [b.as_dict(include_data=False) for b in session.benchmarks if not b.has_error] if session else []
    if found := ratios(measured):
        terminalreporter.section("ratios of this run (peer / ours)")
    for row in found:
        promise = row["promise"]
        verdict = "" if promise is None else f"  promised {promise:g}: {kept(row['ratio'], promise)}"
        terminalreporter.write_line(f"{row['ratio']:10.1f}x  {row['name']}  [{row['ours']}]{verdict}")
    for row in shares(measured):
        verdict = f"promised {row['promise']:.0%}: {kept(row['mfu'], row['promise'])}"
        terminalreporter.write_line(f"{row['mfu']:11.1%}  of the peak  [{row['name']}]  {verdict}")


def kept(found: float, promise: float) -> str:
    return "kept" if found >= promise else "MISSED"
