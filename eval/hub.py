"""A trained pipeline with its model card, to the Hugging Face hub or a folder, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from eeg2speech.errors import UserError
from eeg2speech.files import write_atomically
from eeg2speech.runs import DONE, RunFolder
from eval.results import MetricResult, RunResult, audit_sentence

CARD, INDEX = "README.md", "model_index.json"
NOT_SHARED = [DONE, "*.partial", ".cache*"]


def push(run: Path, target: str) -> str:
    """Writes the card of an evaluated run into its pipeline and uploads that; returns where it is now.

    `target` is `owner/name` on the hub, or a folder (`./name`, or one that exists), which needs no network.
    Raises UserError where the run has no pipeline or no results, or the hub refuses.
    """
    folder = RunFolder(run).pipeline
    _require_pipeline(folder, "train this run first (a study without audio has no pipeline)")
    write_card(run)
    if _is_folder(target):
        _copy(folder, Path(target))
        return target
    from huggingface_hub import HfApi

    with _explained(target):
        api = HfApi()
        api.create_repo(target, exist_ok=True)
        return str(api.upload_folder(repo_id=target, folder_path=folder, ignore_patterns=NOT_SHARED))


def pull(source: str, folder: Path) -> Path:
    """The pipeline of a repository on the hub, or of a folder, in `folder`; `EEG2SpeechPipeline` loads it there."""
    if _is_folder(source):
        _require_pipeline(Path(source), "name the folder that was pushed to")
        _copy(Path(source), folder)
    else:
        from huggingface_hub import snapshot_download

        with _explained(source):
            snapshot_download(source, local_dir=folder)
    _require_pipeline(folder, f"{source} holds no pipeline; name another")
    return folder


def write_card(run: Path) -> Path:
    """`pipeline/README.md`, from `results.json` alone. Raises UserError where the run was not evaluated."""
    result, folder = RunResult.load(run), RunFolder(run).pipeline
    write_atomically(folder / CARD, card(result, json.loads((folder / INDEX).read_text(encoding="utf-8"))))
    return folder / CARD


def card(result: RunResult, index: dict[str, object]) -> str:
    """The model card: data and licence, how to load it, every figure with its interval, and its limits."""
    data, encoder = result.data, index["eeg_encoder"]
    assert isinstance(encoder, list)
    head = {"library_name": "diffusers", "tags": ["eeg", "speech", "latent-diffusion"], "license": "other"}
    head["license_name"] = "see-the-training-data"
    seeds = ", ".join(map(str, result.training_seeds))
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---
# {result.name}

Speech generated from EEG by a latent diffusion model, trained on the study `{result.study}`\
{" (**simulated EEG**: it says nothing about real brains)" if result.simulated else ""}.

```python
from {encoder[0]} import {encoder[1]}
from eeg2speech.pipeline import EEG2SpeechPipeline

pipeline = EEG2SpeechPipeline.from_pretrained("FOLDER")
encoder = {encoder[1]}.from_pretrained("FOLDER", subfolder="eeg_encoder")
```

## Data

| | |
|---|---|
{_facts(data)}

The weights derive from these data, whose licence governs their use; the code is MIT.

## Results

Primary endpoint: {_endpoint(result)}.

{_table(result)}

95 % intervals by bootstrap clustered on stimulus and listener where n allows it; test split only. Training \
seed{"s" if len(result.training_seeds) > 1 else ""} {seeds}, sampling seed {result.sampling_seed}, \
configuration and code `{result.signature}`.

## Limits

{_limits(result)}
"""


def _facts(data: dict[str, object]) -> str:
    keys = ["study", "modality", "licence", "consent", "citation"]
    keys += ["subjects", "recordings", "hours", "channels", "sfreq_hz"]
    return "\n".join(f"| {key} | {_cell(data.get(key, 'not stated'))} |" for key in keys)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def _endpoint(result: RunResult) -> str:
    end = result.endpoint
    if end.gain is None:
        return f"{end.metric}, not measured: {end.reason or 'no reason was given'}"
    interval = "no interval" if end.ci is None else f"95 % interval {end.ci[0]:.3f} to {end.ci[1]:.3f}"
    p = "" if end.p is None else f", p = {end.p:.2g}"
    return f"gain in {end.metric} over the best floor ({end.best_floor}): {end.gain:.3f} ({interval}{p})"


def _table(result: RunResult) -> str:
    """Every system in every metric, over all listeners; the floors and ceilings beside the claim."""
    rows = ["| metric | system | role | value | 95 % interval | n |", "|---|---|---|---|---|---|"]
    roles = {system.name: system.role for system in result.systems}
    for info in result.metrics:
        cells = [r for r in result.results if r.metric == info.name and r.subject is None]
        rows += [
            f"| {_measured(info.label, r.embedder)} | {r.system} | {roles[r.system]} | {_value(r)} | {r.n} |"
            for r in cells
        ]
        if info.chance is not None:
            rows.append(f"| {_cell(info.label)} | chance | | {info.chance:.4g} | | |")
    return "\n".join(rows)


def _measured(label: str, embedder: str | None) -> str:
    return _cell(label if embedder is None else f"{label} ({embedder})")


def _value(row: MetricResult) -> str:
    if row.value is None:
        return f"not run: {_cell(row.reason)} |"
    return f"{row.value:.4g} | " + ("" if row.ci is None else f"{row.ci[0]:.4g} to {row.ci[1]:.4g}")


def _limits(result: RunResult) -> str:
    lines = [
        "A value means what it exceeds its floors by: read the claim beside shuffled EEG, noise and no condition.",
        "Retrieval ranks candidates; it is not word recognition.",
        "It was tested on listeners, sensors and a preprocessing as in training; for others nothing was measured.",
        "For research on speech perception. It reads no thoughts, and is no medical device.",
        audit_sentence(result.audit),
    ]
    if result.simulated:
        lines.insert(0, "The EEG is simulated.")
    if len(result.training_seeds) == 1:
        lines.append("One training seed: how much another would differ is unknown.")
    return "\n".join(f"- {line}" for line in lines)


def _require_pipeline(folder: Path, remedy: str) -> None:
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder / INDEX} does not exist: {remedy}")
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[0]]
    if missing := [name for name in parts if not (folder / name).is_dir()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names: delete it and train again")


def _is_folder(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target.expanduser(), dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_SHARED))


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """What the hub or the network refuses, as a sentence."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - which HTTP library is under huggingface_hub differs by version
        raise UserError(
            f"{repository}: the hub refuses or cannot be reached ({_cell(error)[:200]}); log in by `hf auth login`, "
            "check the name (owner/name), or give a folder such as ./shared"
        ) from error
