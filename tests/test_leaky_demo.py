"""The deliberate mistake: the audit finds it before training, and where it may go on it is worth a lot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from eeg2speech.__main__ import main as train
from eval.__main__ import main as evaluate
from eval.results import RunResult, load_examples
from reports.finding import find_out

pytest.importorskip("hibari")

CONFIGS = Path(__file__).parents[1] / "configs"
LEAKY, HONEST = CONFIGS / "leaky_demo.yaml", CONFIGS / "honest_demo.yaml"
SMALL = (
    "study.n_sentences=40", "study.snr_db=20", "training.contrastive.steps=60", "training.contrastive.batch_size=16",
    "evaluation.systems=[reference, eeg, retrieved, shuffled]", "evaluation.metrics.names=[mrr]",
    "evaluation.max_stimuli=null", "splits.valid=0.2", "splits.test=0.2",
)  # fmt: skip
FOUND = {"shared stimulus identity", "duplicated audio", "shared text", "encoder-train against diffusion-test"}


def arguments(config: Path, name: str, runs: Path, *sets: str) -> list[str]:
    return ["--config", str(config), "--runs", str(runs), "--name", name] + [
        part for value in (*SMALL, *sets) for part in ("--set", value)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "runs"
    for config, name in ((LEAKY, "leaky"), (HONEST, "honest")):
        assert evaluate(["run", *arguments(config, name, folder)]) == 0
    return folder


def test_the_two_differ_in_the_split_alone() -> None:
    leaky, honest = (yaml.safe_load(path.read_text()) for path in (LEAKY, HONEST))
    assert leaky.pop("splits") == {"by": "recording", "valid": 0.15, "test": 0.15, "strict": False}
    assert honest.pop("splits") == {"by": "stimulus", "valid": 0.15, "test": 0.15}
    assert leaky == honest


def test_strict_stops_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["train", *arguments(LEAKY, "strict", tmp_path / "runs", "splits.strict=true")]) == 2
    error = capsys.readouterr().err
    assert "the split leaks" in error
    assert all(check in error for check in FOUND)
    assert not (tmp_path / "runs" / "strict" / "contrastive").exists()
    verdict = json.loads(next((tmp_path / "runs" / "cache").glob("*/audit.json")).read_text())
    assert {f["check"] for f in verdict["findings"] if not f["passed"]} == FOUND


def test_the_audit_catches_it_and_the_report_draws_no_finding(runs: Path) -> None:
    leaky, honest = (RunResult.load(runs / name) for name in ("leaky", "honest"))
    assert {f.check for f in leaky.audit if not f.passed} == FOUND
    assert all(f.passed for f in honest.audit)
    assert find_out(leaky).verdict == "void"
    assert find_out(honest).verdict != "void"


def said_the_very_sentence(folder: Path) -> float:
    """Share of test windows for which the nearest training clip is the reading that was to be decoded."""
    examples = load_examples(folder).set_index("system")
    truth = examples.loc["reference"].set_index("stimulus_id")["wav"]
    retrieved = examples.loc["retrieved"]
    same = [
        (folder / wav).read_bytes() == (folder / truth[stimulus]).read_bytes()
        for wav, stimulus in zip(retrieved["wav"], retrieved["stimulus_id"], strict=True)
    ]
    return sum(same) / len(same)


def test_what_the_mistake_is_worth(runs: Path) -> None:
    """A system that can only repeat training clips repeats test sentences, which an honest split makes impossible."""
    assert said_the_very_sentence(runs / "leaky") > 0.5
    assert said_the_very_sentence(runs / "honest") == 0
