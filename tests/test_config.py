"""What a user may write, and the sentence that answers what cannot be right."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eeg2speech import __main__ as train_command
from eeg2speech.config import ExperimentConfig, load
from eeg2speech.errors import UserError
from eval import __main__ as eval_command
from eval import runner

ROOT = Path(__file__).parents[1]
STAGE = {"steps": 1, "batch_size": 2, "learning_rate": 0.001}
VALID: dict[str, Any] = {
    "study": {"name": "matrix"},
    "training": {"autoencoder": STAGE, "contrastive": STAGE, "regression": STAGE, "diffusion": STAGE},
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    def write(values: Any) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return path

    return write


EXPERIMENTS = sorted(p for p in (ROOT / "configs").glob("*.yaml") if not p.name.startswith(("bench_", "ablation")))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.name)
def test_every_config_of_the_project_is_valid(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem


def test_a_config_survives_its_own_yaml(written: Callable[[Any], Path]) -> None:
    """`config.yaml` of a run folder is the configuration."""
    config = load(written(VALID), ["study.snr_db=-.inf", "model.eeg_encoder={name: linear, lags: 31}"], "mine")
    again = ExperimentConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config
    assert again.study.snr_db == -math.inf  # type: ignore[union-attr]


def test_overrides_are_yaml_values(written: Callable[[Any], Path]) -> None:
    sets = [
        "seed=3",
        "study.snr_db=-2.5",
        "evaluation.systems=[eeg, shuffled]",
        "training.diffusion.min_snr_gamma=null",
    ]
    config = load(written(VALID), sets, "mine")
    assert config.seed == 3
    assert config.study.snr_db == -2.5  # type: ignore[union-attr]
    assert config.evaluation.systems == ("eeg", "shuffled")
    assert config.training.diffusion is not None
    assert config.training.diffusion.min_snr_gamma is None


LEVERS = {
    "model.denoiser.prior": True,
    "training.prior_weight": 2.0,
    "training.diffusion.audio_first": 0.5,
    "training.diffusion.cache_latents": False,
    "training.diffusion.gradient_checkpointing": True,
    "training.autoencoder.gradient_checkpointing": True,
    "sampling.guidance_rescale": 0.7,
    "sampling.temperature": 0.5,
}


def test_a_lever_is_written_out_only_where_it_is_pulled(written: Callable[[Any], Path]) -> None:
    """So that a run from before there were these levers keeps its hashes, and one that pulls them gets its own."""
    path, plain = written(VALID), load(written(VALID)).model_dump(mode="json")
    assert "objective" not in plain["model"]["schedule"]
    for key, value in LEVERS.items():
        config = load(path, [f"{key}={yaml.safe_dump(value).splitlines()[0]}"], "mine")
        part, before = config.model_dump(mode="json"), plain
        *parents, last = key.split(".")
        for parent in parents:
            part, before = part[parent], before[parent]
        assert last not in before
        assert part[last] == value
        assert ExperimentConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_objective_survives_its_own_yaml(written: Callable[[Any], Path]) -> None:
    flow = ["model.schedule.objective=flow_matching", "sampling.scheduler=heun", FREE]
    for sets in ([], ["model.schedule.prediction_type=sample"], flow):
        config = load(written(VALID), sets, "mine")
        again = ExperimentConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
        assert again == config
        assert type(again.model.schedule) is type(config.model.schedule)


def test_what_differs_has_another_name(written: Callable[[Any], Path]) -> None:
    path = written(VALID)
    names = [load(path, sets).name for sets in ([], ["seed=1"], ["seed=2"], ["seed=1"])]
    assert names[0] == "mine"
    assert names[1] == names[3] != names[2]
    assert names[1].startswith("mine-")


FREE = "training.diffusion.min_snr_gamma=null"
MISTAKES = [
    (["study.snr=5"], "study.snr: is not a known key"),
    (["sede=5"], "sede: is not a known key"),
    (["study.snr_db=.nan"], "study.snr_db: must be a number of decibels"),
    (["study.snr_db=loud"], "study.snr_db"),
    (["study.snr_db=.inf"], "study.snr_db: must be a number of decibels"),
    (["study.name=nonesuch"], "study"),
    (["study.n_sentences=0"], "study.n_sentences"),
    (["training.contrastive.steps=0"], "training.contrastive.steps"),
    (["training.contrastive=null"], "training.contrastive"),
    (["training.autoencoder=null"], "training.diffusion needs training.autoencoder"),
    (["training.autoencoder.crop_frames=98"], "training.autoencoder.crop_frames: 98"),
    (["windows.length_s=2.5"], "windows.length_s: 250"),
    (["model.denoiser.attention=[true]"], "model.denoiser: attention has 1 values for 4 channels"),
    (["model.denoiser.conditioning=[]"], "model.denoiser: conditioning is empty"),
    (["model.denoiser.conditioning=[telepathy]"], "model.denoiser.conditioning"),
    (
        ["model.denoiser.conditioning=[cross_attention]", "model.denoiser.attention=[false, false, false, false]"],
        "model.denoiser: conditioning by cross_attention needs attention",
    ),
    (["model.denoiser.norm_groups=7"], "model.denoiser: norm_groups 7"),
    (["model.autoencoder.norm_groups=7"], "model.autoencoder: norm_groups 7"),
    (
        ["model.eeg_encoder={name: clip_conv, fourier_size: 100}"],
        "model.eeg_encoder.fourier_size: must be twice a square",
    ),
    (["splits={valid: 0.5, test: 0.5}"], "splits: valid + test must leave something"),
    (["sampling.scheduler=leap"], "sampling.scheduler"),
    (
        ["sampling.scheduler=euler"],
        "sampling.scheduler: euler does not solve the objective of model.schedule, diffusion",
    ),
    (["model.schedule.objective=flow_matching", FREE], "choose euler or heun"),
    (["sampling.scheduler=heun", "model.schedule.objective=flow_matching"], "training.diffusion.min_snr_gamma"),
    (["model.schedule.objective=score"], "model.schedule.objective"),
    (
        ["model.schedule={objective: flow_matching, zero_terminal_snr: true}", "sampling.scheduler=heun", FREE],
        "model.schedule.zero_terminal_snr: is not a known key",
    ),
    (["model.schedule=7"], "model.schedule"),
    (["model.schedule.prediction_type=epsilon"], "model.schedule: pure noise says nothing about x0"),
    (["sampling.guidance_rescale=1.5"], "sampling.guidance_rescale"),
    (["training.diffusion.audio_first=2"], "training.diffusion.audio_first"),
    (
        ["training.contrastive.gradient_checkpointing=true"],
        "training.contrastive.gradient_checkpointing: is not a known",
    ),
    (["seed"], "--set seed: write it as key.key=value"),
    (["=3"], "--set =3: write it as key.key=value"),
    (["seed.deep=3"], "--set seed.deep=3: seed is a value and has no keys below it"),
    (["study.snr_db=[1"], "--set study.snr_db=[1: '[1' is not a YAML value"),
]


@pytest.mark.parametrize(("sets", "sentence"), MISTAKES, ids=[" ".join(s) for s, _ in MISTAKES])
def test_a_mistake_is_named(written: Callable[[Any], Path], sets: list[str], sentence: str) -> None:
    path = written(VALID | {"seed": 0})
    with pytest.raises(UserError) as caught:
        load(path, sets)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sets[0].startswith(("=", "seed", "study.snr_db=[1")) or "mine.yaml" in str(caught.value)


def test_every_mistake_is_named_at_once(written: Callable[[Any], Path]) -> None:
    with pytest.raises(UserError, match=r"study\.snr_db.*sede"):
        load(written(VALID | {"sede": 1, "study": {"name": "matrix", "snr_db": "loud"}}))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("- a\n- b\n", "must hold keys and values"), ("study: [", "is not YAML"), ("", "study: Field")],
)
def test_a_file_that_is_no_config_is_named(written: Callable[[Any], Path], text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load(written(text))
    assert "mine.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read.*configs/"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize("command", [train_command, eval_command], ids=["train", "run"])
@pytest.mark.parametrize(
    ("sets", "field"),
    [
        ("study.snr_db=.nan", "study.snr_db"),
        ("sede=1", "sede"),
        ("seed", "--set seed"),
        ("study.n_sentences=100000", "study.n_sentences"),
    ],
)
def test_commands_end_with_exit_code_two(
    written: Callable[[Any], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: Any,
    sets: str,
    field: str,
) -> None:
    verb = "train" if command is train_command else "run"
    code = command.main([verb, "--config", str(written(VALID)), "--set", sets, "--runs", str(tmp_path / "runs")])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("error: ")
    assert field in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ("evaluation.systems=[eeg, telepathy]", "evaluation.systems: telepathy is unknown"),
        ("evaluation.systems=[shuffled]", "evaluation.systems must contain eeg"),
        ("evaluation.metrics.names=[wer, charm]", "evaluation.metrics.names: 'charm' is unknown"),
        ("evaluation.metrics.embedders=[nonesuch]", "evaluation.metrics.embedders: 'nonesuch' is unknown"),
        ("evaluation.primary=charm", "evaluation.primary: 'charm' is unknown"),
        ("evaluation.ceiling=sky", "evaluation.ceiling: sky is unknown"),
    ],
)
def test_an_unknown_system_or_metric_is_refused_before_training(
    written: Callable[[Any], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sets: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(runner, "train", lambda *_: pytest.fail("training began"))
    arguments = ["run", "--config", str(written(VALID)), "--set", sets, "--runs", str(tmp_path / "runs")]
    assert eval_command.main(arguments) == 2
    assert sentence in capsys.readouterr().err
