"""What a newcomer meets first: the README's commands, the layout, what is installed, how commands start and fail."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import importlib.metadata
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eeg2speech.cli import INSTALLED_BY, execute
from eeg2speech.errors import UserError

ROOT = Path(__file__).parents[1]
README = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
PACKAGES = ("eeg2speech", "eval", "reports")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = {
    extra: [Requirement(line) for line in lines]
    for extra, lines in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items()
}
WITHOUT_DEPENDENCIES = {"frechet-audio-distance", "resemblyzer"}
"""What the noxfile installs in a step of its own."""


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listing.stdout.splitlines() if (ROOT / path).exists()]


def imported(*folders: str) -> set[str]:
    """Top-level names of every module that the Python files of these folders import."""
    names = set()
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.partition(".")[0] for name in names}


# The README's commands


def test_readme_names_only_sessions_that_exist() -> None:
    functions = [n for n in ast.parse((ROOT / "noxfile.py").read_text()).body if isinstance(n, ast.FunctionDef)]
    sessions = {f.name for f in functions if "command" in map(ast.unparse, f.decorator_list)}
    named = set(re.findall(r"nox -s (\w+)", README))
    assert {"train", "evaluate", "tests"} <= named
    assert named <= sessions


def test_readme_names_only_commands_and_files_that_exist() -> None:
    for package, subcommand in re.findall(r"python -m (eeg2speech|eval|reports) (\w+)", README):
        parser = importlib.import_module(f"{package}.__main__").parser()
        (commands,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        assert subcommand in commands, f"python -m {package} {subcommand}"
    for path in re.findall(r"\]\(([\w./-]+)\)|--config (configs/(?!mine\.)\w+\.yaml)", README):
        assert (ROOT / "".join(path)).exists(), path


def test_readme_shows_a_manifest_and_a_study_that_are_valid() -> None:
    from eeg2speech.data.folder import FolderStudyConfig, ManifestRow

    (table,) = re.findall(r"```csv\n(.*?)```", README, re.DOTALL)
    given = [{name: value for name, value in row.items() if value} for row in csv.DictReader(table.splitlines())]
    assert given
    assert all(row.keys() <= ManifestRow.model_validate(row).model_fields_set for row in given)
    (config,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    study = yaml.safe_load(config)["study"]
    assert study.keys() <= FolderStudyConfig.model_validate(study).model_fields_set


def test_the_gate_runs_the_readme_test_command() -> None:
    (command,) = (line for line in README.splitlines() if line.endswith("nox -s tests"))
    assert command in (ROOT / ".ci/run").read_text().splitlines()


# The layout


def test_top_level_holds_only_what_the_design_allows() -> None:
    allowed = (
        "eeg2speech benchmarks eval reports configs tests docs noxfile.py pyproject.toml constraints.txt "
        "README.md LICENSE CHANGELOG.md CONTRIBUTING.md CITATION.cff SECURITY.md"
    )
    top = {path.partition("/")[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} <= set(allowed.split())


def test_no_tracked_file_names_a_package_index() -> None:
    # Where packages come from is the machine's to say.
    index = re.compile(r"index[-_]url|//[\w.-]*(?:pypi|pythonhosted)\.|whl/c(?:u|pu)\d*\b", re.IGNORECASE)
    for path in tracked():
        if Path(path).suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".cff", ".json", ".html", ""}:
            assert not index.search((ROOT / path).read_text(encoding="utf-8")), path


# What is installed


def test_every_package_the_project_is_made_of_is_used() -> None:
    used = imported(*PACKAGES)
    named = "torch diffusers torchmetrics frechet_audio_distance jiwer whisper pandas seaborn jinja2"
    assert set(named.split()) <= used
    benchmarks = [ast.parse(p.read_text()) for p in (ROOT / "benchmarks").glob("*.py")]
    functions = [n for tree in benchmarks for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert any(argument.arg == "benchmark" for f in functions for argument in f.args.args)


def test_whatever_is_imported_is_declared() -> None:
    distributions = importlib.metadata.packages_distributions()
    runtime = {canonicalize_name(r.name) for extra in ("", "matrix", "eval") for r in REQUIRED[extra]}
    for module in imported(*PACKAGES) - set(PACKAGES) - set(sys.stdlib_module_names):
        assert module not in {"torchvision", "torchaudio"}
        declared = {canonicalize_name(name) for name in distributions.get(module, [])}
        assert declared & (runtime | WITHOUT_DEPENDENCIES), f"{module} is imported but not in pyproject.toml"


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pins) == len(lines)
    assert not {"torchvision", "torchaudio"} & pins.keys()
    assert pins.keys() >= WITHOUT_DEPENDENCIES
    for requirement in (r for requirements in REQUIRED.values() for r in requirements):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


# How a command starts and fails


def seconds(*arguments: str) -> float:
    """The best of three cold starts of Python with these arguments."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_importing_the_package_is_cheap() -> None:
    assert seconds("-c", "import eeg2speech") < 1.0


@pytest.mark.parametrize("command", ["eeg2speech", "eeg2speech train", "eval", "eval run", "reports", "reports build"])
def test_help_answers_at_once(command: str) -> None:
    assert seconds("-m", *command.split(), "--help") < 1.5


def test_studies_are_listed_with_their_terms(capsys: pytest.CaptureFixture[str]) -> None:
    from eeg2speech.__main__ import main
    from eeg2speech.data.matrix import MatrixStudy

    assert main(["studies"]) == 0
    printed = capsys.readouterr().out
    assert "folder" in printed
    assert all(text in printed for text in ("simulated", MatrixStudy.licence, MatrixStudy.citation))


def fail(error: BaseException) -> int:
    def handler(_: argparse.Namespace) -> None:
        raise error

    return execute(handler, argparse.Namespace())


def test_user_error_is_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(UserError("a.yaml: no such key")) == 2
    assert capsys.readouterr() == ("", "error: a.yaml: no such key\n")


def test_a_missing_package_names_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "whisper", None)
    assert execute(lambda _: importlib.import_module("whisper") and None, argparse.Namespace()) == 2
    assert '-e ".[eval]"' in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        fail(ModuleNotFoundError("ours", name="eeg2speech.missing"))


def test_every_runtime_package_has_its_sentence() -> None:
    distributions = importlib.metadata.packages_distributions()
    for module, what in INSTALLED_BY.items():
        names = {canonicalize_name(name) for name in distributions[module]}
        assert names & {canonicalize_name(r.name) for r in REQUIRED[what.strip(".[]")]}, module
    assert len(INSTALLED_BY) == sum(len(REQUIRED[extra]) for extra in ("", "matrix", "eval"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(lambda _: Path("/dev/full").write_text("x") and None, argparse.Namespace()) == 2
    assert "no space left" in capsys.readouterr().err


def test_defects_keep_their_traceback_and_interrupts_their_code() -> None:
    with pytest.raises(FileNotFoundError):
        fail(FileNotFoundError(2, "ours"))
    assert fail(KeyboardInterrupt()) == 130


def test_a_config_that_does_not_exist_is_named() -> None:
    command = [sys.executable, "-m", "eeg2speech", "train", "--config", "configs/absent.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr
    assert len(done.stderr.splitlines()) == 1
