"""The commands of the project. Each only chains commands that can be run by hand in `.nox/eeg2speech`.

What follows `--` goes on to the commands: `nox -s evaluate -- --config configs/default.yaml --name mine`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

ENVIRONMENT = "eeg2speech"
PROJECT = ".[matrix,eval,tests,lint]"
# What these two require would bring torchvision, torchaudio and an old numpy, none of which their used parts need.
WITHOUT_DEPENDENCIES = ("frechet-audio-distance", "Resemblyzer")


@nox.session(name=ENVIRONMENT)
def environment(session: nox.Session) -> None:
    """Install the project into the one environment that every other session runs in."""
    recipe = (PROJECT, *WITHOUT_DEPENDENCIES, Path("pyproject.toml").read_text(), Path("constraints.txt").read_text())
    wanted = hashlib.sha256("\0".join(recipe).encode()).hexdigest()
    stamp = session.env_dir / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    # pip compiles what it installs and uv does not: then every first import would, or each one, where none may be kept.
    uv = {"UV_FIND_LINKS": local_wheels(), "UV_COMPILE_BYTECODE": "1"} if session.venv_backend == "uv" else {}
    session.install("-c", "constraints.txt", "-e", PROJECT, env=uv)
    session.install("-c", "constraints.txt", "--no-deps", *WITHOUT_DEPENDENCIES, env=uv)
    stamp.write_text(wanted)


def local_wheels() -> str:
    """Where pip was told to look for wheels, such as a CPU build of torch: uv does not look there by itself."""
    ask_pip = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    links = os.environ.get("UV_FIND_LINKS", "").replace(",", " ") or os.environ.get("PIP_FIND_LINKS")
    links = links or subprocess.run(ask_pip, capture_output=True, text=True, check=False).stdout
    return ",".join(links.split())


def run(session: nox.Session, program: str, *arguments: str, capture: bool = False) -> str:
    """Run a program of the environment; with `capture`, return what it printed."""
    folder = session.cache_dir.parent / ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
    # An interrupted training run gets the time to save where it is.
    printed = session.run(
        str(folder / program), *arguments, external=True, silent=capture, log=not capture, interrupt_timeout=30
    )
    return str(printed).strip()


def command(function: Callable[[nox.Session], None]) -> Callable[[nox.Session], None]:
    """A session that runs in the shared environment."""
    return nox.session(venv_backend="none", requires=[ENVIRONMENT])(function)


@command
def train(session: nox.Session) -> None:
    """Train the models of a config; continue where an interrupted run stopped."""
    run(session, "python", "-m", "eeg2speech", "train", *session.posargs)


@command
def evaluate(session: nox.Session) -> None:
    """Train where that is not done, generate and score speech, render reports/index.html."""
    run(session, "python", "-m", "eval", "run", *session.posargs)  # which trains first
    report(session)


@command
def ablate(session: nox.Session) -> None:
    """Run the sets of configs/ablation.yaml, each with several seeds, and write one table over seeds."""
    run(session, "python", "-m", "eval", "ablate", *session.posargs)


@command
def report(session: nox.Session) -> None:
    """Render reports/index.html from the results of a run."""
    run(session, "python", "-m", "reports", "build", *session.posargs)


@command
def calibrate(session: nox.Session) -> None:
    """Measure what the instrument reads where the truth is known; the next report shows it."""
    run(session, "python", "-m", "eval", "calibrate", *session.posargs)


@command
def tests(session: nox.Session) -> None:
    """Run the tests, without the slow ones."""
    run(session, "pytest", "-m", "not slow", "--benchmark-skip", "--durations=10", *session.posargs)


@command
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes each."""
    run(session, "pytest", "-m", "slow", "--benchmark-skip", "--durations=0", *session.posargs)


@command
def bench(session: nox.Session) -> None:
    """Measure speed and memory; without arguments, everything, and record it in benchmarks/results/<device>.json."""
    record = []
    if not session.posargs:
        printed = run(session, "python", "-m", "benchmarks.device", capture=True)
        device = printed.splitlines()[-1]  # libraries may have warned before it
        record = ["-m", "slow or not slow", f"--benchmark-json=benchmarks/results/{device}.json"]
    run(session, "pytest", "--benchmark-only", *record, *session.posargs)


@command
def lint(session: nox.Session) -> None:
    """Check style, types and the direction of imports."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "mypy")
    run(session, "lint-imports")
