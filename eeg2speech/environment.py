"""What a result was made with: machine, versions, code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "eeg2speech",
    "torch",
    "accelerate",
    "diffusers",
    "transformers",
    "torchmetrics",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "mne",
    "jiwer",
    "openai-whisper",
    "frechet-audio-distance",
)


def describe() -> dict[str, Any]:
    """Plain data for `RunResult.environment`; a fact that cannot be had is None.

    Memory is in GiB. `peak_memory_gib` is that of this process so far.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(),
        "cuda": _cuda(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).resolve().parents[1]),
        "peak_memory_gib": peak_memory_gib(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """`sha` and `dirty` of the checkout whose top is `folder`; None for an installed package."""
    if not (folder / ".git").exists():
        return None
    sha = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(folder), "status", "--porcelain")
    return None if sha is None or changes is None else {"sha": sha, "dirty": bool(changes)}


def peak_memory_gib() -> float | None:
    """The most memory this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's rusage would count the parent that started this process, too
        peak = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return None if peak is None else int(peak) / 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or None


def _cores() -> int | None:
    """Those this process may run on, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError, AttributeError):
        return None


def _gpu() -> list[dict[str, str]] | None:
    """Name, driver and memory of each NVIDIA GPU, asked of the driver so that torch need not be loaded."""
    answer = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if not answer:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    return [dict(zip(("name", "driver", "memory"), row, strict=True)) for row in rows]


def _cuda() -> dict[str, Any] | None:
    """What computes on the GPU; `tf32` tells what is rounded to TensorFloat-32. None where torch has no GPU, or is not
    loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    backends = torch.backends
    return {
        "version": torch.version.cuda,
        "cudnn": backends.cudnn.version(),
        "triton": _version("triton"),
        "tf32": {"products": backends.cuda.matmul.allow_tf32, "convolutions": backends.cudnn.allow_tf32},
    }


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
