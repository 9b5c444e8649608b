"""Sharing a pipeline with its card: through a folder, and through the calls the hub would get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from eeg2speech.errors import UserError
from eeg2speech.pipeline import EEG2SpeechPipeline
from eeg2speech.runs import is_done, step
from eval import hub
from eval.__main__ import main
from eval.results import RunResult
from tests.model_fixture import tiny_pipeline
from tests.report_fixture import Fake, write_fake_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_fake_run(folder, Fake(n_stimuli=6))
    with step(folder / "pipeline", "depends"):
        tiny_pipeline().save_pretrained(folder / "pipeline")
    return folder


def test_a_folder_takes_and_gives_back_the_same_pipeline(run: Path, tmp_path: Path) -> None:
    shared, back = tmp_path / "shared", tmp_path / "back"
    assert main(["push", str(run), str(shared)]) == 0
    assert main(["pull", str(shared), str(back)]) == 0
    assert not (back / "done.json").exists()
    assert (back / "README.md").read_text() == (run / "pipeline" / "README.md").read_text()
    ours, theirs = tiny_pipeline(), EEG2SpeechPipeline.from_pretrained(back)
    theirs.set_progress_bar_config(disable=True)
    eeg, subject = (torch.randn(1, 2, 360), torch.rand(1, 2, 2)), torch.zeros(1, dtype=torch.int64)
    sound = [p(*eeg, subject, num_inference_steps=2) for p in (ours, theirs)]
    torch.testing.assert_close(sound[1], sound[0])
    encoder = type(ours.eeg_encoder).from_pretrained(back, subfolder="eeg_encoder").eval()
    torch.testing.assert_close(encoder(*eeg, subject), ours.eeg_encoder(*eeg, subject))
    assert is_done(run / "pipeline", "depends")  # the card leaves the step as it was


def test_the_card_says_what_the_results_say(run: Path) -> None:
    result = RunResult.load(run)
    text = hub.write_card(run).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "diffusers"
    assert "synthetic, no licence needed" in text
    assert "simulated" in text
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    labels = {info.name: info.label for info in result.metrics}
    overall = [row for row in result.results if row.subject is None]
    assert any(row.value is None for row in overall)
    for row in overall:
        label = labels[row.metric] + (f" ({row.embedder})" if row.embedder else "")
        (said,) = (c for c in table if len(c) == 6 and c[:2] == [label, row.system])
        if row.value is None:
            assert row.reason is not None
            assert said[3] == f"not run: {row.reason}"
        else:
            assert float(said[3]) == pytest.approx(row.value, rel=1e-3)
            interval = [float(x) for x in said[4].split(" to ")] if said[4] else None
            assert interval == (None if row.ci is None else pytest.approx(list(row.ci), rel=1e-3))
    assert "One training seed" in text


def test_the_hub_gets_the_folder_without_our_records(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "create_repo", lambda self, repo, **kw: calls.append((repo, kw)))
    monkeypatch.setattr(api, "upload_folder", lambda self, **kw: calls.append(("upload", kw)) or "address")
    assert hub.push(run, "me/model") == "address"
    assert calls[0] == ("me/model", {"exist_ok": True})
    sent = calls[1][1]
    assert (sent["repo_id"], sent["folder_path"]) == ("me/model", run / "pipeline")
    assert "done.json" in sent["ignore_patterns"]
    assert (run / "pipeline" / "README.md").exists()


def test_what_is_missing_or_refused_is_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert main(["pull", "me/model", str(tmp_path / "back")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "me/model: the hub refuses or cannot be reached (no network at all)" in said
    with pytest.raises(UserError, match=r"model_index\.json does not exist: name the folder"):
        hub.pull(str(tmp_path), tmp_path / "back")
    (run / "results.json").unlink()
    with pytest.raises(UserError, match=r"results\.json does not exist"):
        hub.push(run, str(tmp_path / "shared"))
    with pytest.raises(UserError, match=r"model_index\.json does not exist: train"):
        hub.push(tmp_path, str(tmp_path / "shared"))
