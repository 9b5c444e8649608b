"""The run folder: names, records of what is done, the lock; and the facts of the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from eeg2speech import environment
from eeg2speech.errors import UserError
from eeg2speech.files import require_free_space
from eeg2speech.runs import RunFolder, is_done, read_done, run_name, step


def test_a_run_is_named_after_its_config() -> None:
    path = Path("configs/default.yaml")
    assert run_name(path, [], None, {"a": 1}) == "default"
    assert run_name(path, ["a=2"], "mine", {"a": 2}) == "mine"
    digits = hashlib.sha256(b'{"a":2}').hexdigest()[:6]
    assert run_name(path, ["a=2"], None, {"a": 2}) == f"default-{digits}"


@pytest.mark.parametrize("name", ["../other", "a/b", "..", ".hidden", "-flag", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        run_name(Path("default.yaml"), [], name, {})


def test_parts_of_a_run_lie_inside_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    places = [run.config, run.data, run.pipeline, run.evaluation, run.stage("contrastive")]
    assert len(set(places)) == 5
    assert all(place.parent == tmp_path for place in places)


def test_a_step_is_done_for_what_it_depended_on(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert not is_done(folder, "one")
    with step(folder, "one") as record:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("hello")
        record.facts["n"] = 3
        assert not is_done(folder, "one")
    assert is_done(folder, "one")
    assert not is_done(folder, "two")
    done = read_done(folder) or {}
    assert done["files"] == {"deep/a.txt": hashlib.sha256(b"hello").hexdigest()}
    assert done["n"] == 3
    assert done["wall_s"] >= 0


def test_a_failed_step_is_not_done_even_where_it_was_before(tmp_path: Path) -> None:
    with step(tmp_path, "one"):
        pass
    with pytest.raises(RuntimeError), step(tmp_path, "two"):
        raise RuntimeError
    assert read_done(tmp_path) is None


def test_only_listed_files_are_watched(tmp_path: Path) -> None:
    with step(tmp_path, "one") as record:
        (tmp_path / "kept").write_text("a")
        (tmp_path / "scratch").write_text("b")
        record.files = ["kept"]
    (tmp_path / "scratch").unlink()
    assert is_done(tmp_path, "one")


def test_a_file_that_was_changed_or_removed_is_named(tmp_path: Path) -> None:
    with step(tmp_path, "one"):
        (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a.txt").write_text("hullo")
    with pytest.raises(UserError, match="a.txt does not match the hash in done.json: restore it or delete"):
        is_done(tmp_path, "one")
    assert not is_done(tmp_path, "two"), "what is to be redone need not be whole"
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match="a.txt is missing"):
        is_done(tmp_path, "one")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"depends": "one"}', '{"depends": 1, "files": {}}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(UserError, match="done.json is damaged: delete the folder"):
        is_done(tmp_path, "one")


HOLDER = """
import sys, time
from pathlib import Path
from eeg2speech.runs import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_a_run_and_a_dead_one_does_not_block_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"run: another process is writing this run"), run.lock():
            pass
    finally:
        holder.kill()  # no clean-up of its own
        holder.communicate()
    with run.lock(), run.lock():  # a command may call another in the same process
        pass
    with run.lock():
        pass


def test_further_processes_of_a_launch_share_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with RunFolder(tmp_path / "run").lock():
        assert not (tmp_path / "run").exists()


def test_too_little_space_is_said_before_the_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_free_space(tmp_path / "not" / "yet" / "there", free // 2)
    with pytest.raises(UserError, match="GB are needed, .* GB are free"):
        require_free_space(tmp_path / "not" / "yet" / "there", free * 2)


def test_the_machine_is_described_without_torch() -> None:
    code = (
        "import json, sys; from eeg2speech import environment as e; d = e.describe(); assert 'torch' not in sys.modules"
    )
    output = subprocess.run(
        [sys.executable, "-c", f"{code}; print(json.dumps(d))"], capture_output=True, text=True, check=True
    )
    facts = json.loads(output.stdout)
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["numpy"] == version("numpy")
    assert facts["cores"] == len(os.sched_getaffinity(0))
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        assert facts["memory_gib"] == pytest.approx(int(meminfo.read_text().split()[1]) / 2**20, rel=1e-3)


def test_peak_memory_counts_what_was_held() -> None:
    code = "from eeg2speech.environment import peak_memory_gib as p; a = p(); b = b'x' * 2**28; print(p() - a)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(output.stdout) == pytest.approx(0.25, abs=0.02)


def test_the_checkout_and_its_changes_are_named(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert environment.git_state(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "first")
    assert environment.git_state(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert environment.git_state(tmp_path) == {"sha": git("rev-parse", "HEAD"), "dirty": True}
