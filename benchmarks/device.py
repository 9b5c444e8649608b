"""The device that is measured: its name, its peak, its memory and energy. `python -m benchmarks.device` names it."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pynvml
import torch
from accelerate.utils import parse_flag_from_env

from eeg2speech import environment
from eeg2speech.device import device, has_bfloat16

DEVICE = device()

DATASHEET_BF16_TFLOPS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "L40S": 362.1,
    "L4": 121.0,
}
"""Dense bfloat16 multiply-adds counted as two operations, 10^12 a second, as NVIDIA's data sheets state them (halved,
where they count zeros that are skipped). Of several names that fit, the first counts."""


def name() -> str:
    """As the maker calls it; a CPU with its vector instructions (virtual machines hide the model) and the number
    of cores that may be used."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    facts = environment.describe()
    can = torch.backends.cpu.get_cpu_capability() + (", bfloat16" if has_bfloat16(DEVICE.type) else "")
    return f"{facts['cpu'] or 'CPU'} ({can}), {facts['cores']} cores"


def slug() -> str:
    """The name of the device's file in `results/`, without suffix."""
    return re.sub(r"[^a-z0-9]+", "-", name().lower()).strip("-")


@contextmanager
def float32_of_others(products: Literal["highest", "high"] = "highest") -> Iterator[None]:
    """float32 as a program has it that sets nothing, or `products` alone: convolutions on a GPU in TensorFloat-32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def synchronise() -> None:
    """Waits until the GPU has done what it was given."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def datasheet_tflops() -> float | None:
    """None of a GPU that is not known, and of a slice of one."""
    words = set(re.split(r"[\s-]", name()))  # "NVIDIA A100-SXM4-80GB"; an L40 is no L4
    fits = (tflops for model, tflops in DATASHEET_BF16_TFLOPS.items() if words.issuperset(model.split()))
    return None if "MIG" in words else next(fits, None)


@lru_cache
def peak_flops(dtype: torch.dtype) -> tuple[float, str]:
    """Floating-point operations a second that can be had at best, and where the number comes from.

    Of a GPU that is known, the data sheet's (bfloat16 only); else the fastest of several square
    matrix products, which is what can be had and not what the maker promises.
    """
    if DEVICE.type == "cuda" and dtype == torch.bfloat16 and (tflops := datasheet_tflops()):
        return tflops * 1e12, "data sheet"
    n = 8192 if DEVICE.type == "cuda" else 2048
    left, right = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        synchronise()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best, f"measured, {n} x {n} matrix product"


class PeakMemory:
    """The most memory held between `start` and `stop`, in MiB; a number the system does not give is left out."""

    device = "cpu"
    """Once stopped: where the work was done. On a machine with a GPU, `cuda` if anything was allocated there."""

    def start(self) -> None:
        gc.collect()  # garbage that is freed meanwhile would hide as much of what is held
        if DEVICE.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
            self.allocations = _allocations()
        self.before = _status("VmRSS")
        self.resettable = os.access("/proc/self/clear_refs", os.W_OK)
        if self.resettable:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS

    def stop(self) -> dict[str, float]:
        """`device_peak_mib`: tensors on the GPU, where it was used; `host_peak_mib`: the process; `host_beyond_mib`:
        what was added."""
        found = {}
        if DEVICE.type == "cuda" and _allocations() > self.allocations:
            self.device = "cuda"
            found["device_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        peak = _status("VmHWM")
        if self.resettable and peak is not None and self.before is not None:
            found |= {"host_peak_mib": peak, "host_beyond_mib": peak - self.before}
        return {key: round(value, 1) for key, value in found.items()}


def _allocations() -> int:
    """Blocks of the GPU's memory given out so far, from PyTorch's cache or new."""
    return torch.cuda.memory_stats()["allocation.all.allocated"]


def _status(key: str) -> float | None:
    """A line of Linux's /proc/self/status, in MiB."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), None)


def energy_j() -> float | None:
    """What the GPU has used since its driver was loaded; None without a GPU, or where NVML does not say."""
    if DEVICE.type != "cuda":
        return None
    try:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(_handle()) / 1000
    except pynvml.NVMLError:
        return None


HELD_BACK = {
    "power": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "temperature": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "temperature, by hardware": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "hardware": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "clocks set by its owner": pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting,
}


def clock_now() -> dict[str, Any]:
    """`sm_mhz` and `held_back_by` of the GPU, read before it idles; empty where NVML does not say."""
    if DEVICE.type != "cuda":
        return {}
    try:
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(_handle())
        mhz = pynvml.nvmlDeviceGetClockInfo(_handle(), pynvml.NVML_CLOCK_SM)
    except pynvml.NVMLError:
        return {}
    return {"sm_mhz": mhz, "held_back_by": [name for name, bit in HELD_BACK.items() if reasons & bit]}


def _handle() -> Any:
    """NVML's name of the GPU that is measured. Raises NVMLError without its library, and for a slice of a GPU."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(DEVICE).uuid}")


def clocks() -> str | None:
    """The GPU's clocks and power limit as its driver states them."""
    fields = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def unseen() -> str | None:
    """What the driver knows of GPUs, where PyTorch finds none of them and the CPU was not asked for."""
    gpus = environment.describe()["gpu"]
    if torch.cuda.is_available() or not gpus or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return None
    found = ", ".join(f"{gpu['name']} with driver {gpu['driver']}" for gpu in gpus)
    return (
        f"nvidia-smi finds {found}, and PyTorch {torch.__version__} (CUDA {torch.version.cuda}) no GPU: install one "
        "for this driver, or set ACCELERATE_USE_CPU=1 to measure the CPU"
    )


if __name__ == "__main__":
    if refused := unseen():
        sys.exit(refused)
    print(slug())
