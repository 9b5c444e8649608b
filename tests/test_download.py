"""Transfers: interrupted, continued, refused; and the lists of files that repositories give. Loopback only."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from http_fixture import Site, serving

from eeg2speech.__main__ import main
from eeg2speech.data import download, repositories
from eeg2speech.data.download import RemoteFile, Stopped, fetch, transfer
from eeg2speech.errors import UserError

BODY = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    monkeypatch.setattr(download, "CHUNK", 10_000)
    with serving() as site:
        monkeypatch.setattr(repositories, "OPENNEURO", f"{site.url}/bucket")
        monkeypatch.setattr(repositories, "OSF", f"{site.url}/v2")
        yield site


def remote(site: Site, path: str, body: bytes = BODY, **fields: object) -> RemoteFile:
    """Served, and listed with the right hash."""
    site.files[f"/{path}"] = body
    values = {"path": path, "url": f"{site.url}/{path}", "size": len(body)}
    return RemoteFile(**(values | {"algorithm": "sha256", "hash": hashlib.sha256(body).hexdigest()} | fields))  # type: ignore[arg-type]


# Over HTTP


def test_a_transfer_that_breaks_off_is_continued_from_the_byte_where_it_stopped(site: Site, tmp_path: Path) -> None:
    file = remote(site, "sub-01/eeg.bin")
    site.breaks["/sub-01/eeg.bin"] = [100_000, 50_000]
    assert transfer([file], tmp_path) == 1
    assert (tmp_path / "sub-01" / "eeg.bin").read_bytes() == BODY
    assert site.sent("/sub-01/eeg.bin") == ["", "bytes=100000-", "bytes=150000-"]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["eeg.bin"]


def test_a_second_call_goes_on_where_the_first_was_stopped_and_a_third_does_nothing(site: Site, tmp_path: Path) -> None:
    file = remote(site, "eeg.bin")
    stop, came = threading.Event(), []

    def moved(n_bytes: int) -> None:
        came.append(n_bytes)
        if sum(came) >= 120_000:
            stop.set()

    with pytest.raises(Stopped):
        fetch(file, tmp_path / "eeg.bin", stop, moved)
    assert not (tmp_path / "eeg.bin").exists()
    assert (tmp_path / "eeg.bin.part").read_bytes() == BODY[:120_000]
    assert transfer([file], tmp_path) == 1
    assert site.sent("/eeg.bin") == ["", "bytes=120000-"]
    assert (tmp_path / "eeg.bin").read_bytes() == BODY
    assert transfer([file], tmp_path) == 0
    assert len(site.sent("/eeg.bin")) == 2


def test_a_server_that_cannot_continue_sends_everything_again(site: Site, tmp_path: Path) -> None:
    file = remote(site, "eeg.bin")
    site.ranges, site.breaks = False, {"/eeg.bin": [100_000]}
    transfer([file], tmp_path)
    assert (tmp_path / "eeg.bin").read_bytes() == BODY
    assert site.sent("/eeg.bin") == ["", "bytes=100000-"]


@pytest.mark.parametrize("begun", [b"of another version", b"\0" * 400_000])
def test_a_beginning_that_is_of_another_file_is_not_built_upon(site: Site, tmp_path: Path, begun: bytes) -> None:
    (tmp_path / "eeg.bin.part").write_bytes(begun)
    transfer([remote(site, "eeg.bin")], tmp_path)
    assert (tmp_path / "eeg.bin").read_bytes() == BODY


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_hash_is_refused_and_nothing_of_it_stays(site: Site, tmp_path: Path, algorithm: str) -> None:
    wrong = hashlib.new(algorithm, b"something else").hexdigest()
    file = remote(site, "eeg.bin", algorithm=algorithm, hash=wrong)
    found = hashlib.new(algorithm, BODY).hexdigest()
    with pytest.raises(UserError, match=f"{tmp_path}/eeg.bin: .* {algorithm}|{found}, not {algorithm} {wrong}"):
        transfer([file], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_with_another_content_is_brought_again(site: Site, tmp_path: Path) -> None:
    damaged = bytearray(BODY)
    damaged[1000] ^= 1
    (tmp_path / "eeg.bin").write_bytes(damaged)
    assert transfer([remote(site, "eeg.bin")], tmp_path) == 1
    assert (tmp_path / "eeg.bin").read_bytes() == BODY


def test_without_a_hash_the_length_decides(site: Site, tmp_path: Path) -> None:
    transfer([remote(site, "eeg.bin", algorithm="", hash="")], tmp_path)
    assert (tmp_path / "eeg.bin").read_bytes() == BODY
    with pytest.raises(UserError, match="300000 bytes, not 299999 bytes"):
        fetch(remote(site, "eeg.bin", algorithm="", hash="", size=299_999), tmp_path / "other.bin")


def test_one_file_that_cannot_be_had_stops_the_others_and_what_came_stays(site: Site, tmp_path: Path) -> None:
    files = [remote(site, f"{k}.bin", BODY[:1000] + bytes([k])) for k in range(8)]
    del site.files["/3.bin"]
    with pytest.raises(UserError, match=r"/3\.bin: the server says 404"):
        transfer(files, tmp_path, workers=1)
    came = {p.name for p in tmp_path.glob("*.bin")}
    assert {"0.bin", "1.bin", "2.bin"} <= came < {f"{k}.bin" for k in range(8)}
    remote(site, "3.bin", BODY[:1000] + b"\3")
    assert transfer(files, tmp_path) == 8 - len(came)


def test_a_server_that_stays_silent_is_given_up_with_the_place_where_it_stopped(site: Site, tmp_path: Path) -> None:
    file = remote(site, "eeg.bin")
    site.breaks["/eeg.bin"] = [20_000] + [0] * download.TRIES
    with pytest.raises(UserError, match="broke off, 5 times in a row; .* at 20000 of 300000 bytes"):
        transfer([file], tmp_path)
    assert transfer([file], tmp_path) == 1
    busy = RemoteFile("b", f"{site.url}/busy", 4)
    site.answers["/busy"] = lambda query, sent: (503, {"Retry-After": "3600"}, b"")
    with pytest.raises(UserError, match="503"):
        transfer([busy], tmp_path)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "", "a\\b"])
def test_a_list_cannot_write_outside_of_the_folder(site: Site, tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="leads out of"):
        transfer([RemoteFile(path, f"{site.url}/x", 1)], tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_sent(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="GB are needed"):
        transfer([remote(site, "eeg.bin", size=1 << 60)], tmp_path)
    assert site.asked == []


def test_only_addresses_of_the_web_are_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(UserError, match="no address"):
        fetch(RemoteFile("x", f"file://{secret}", 6), tmp_path / "x")


# OpenNeuro


def bucket(site: Site, files: dict[str, bytes], page: int = 2) -> None:
    """A bucket of S3 that lists `page` files at a time; large.bin was uploaded in parts."""
    keys = sorted(files)

    def answer(query: dict[str, str], sent: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        assert (query["list-type"], query["prefix"]) == ("2", "ds004408/")
        first = int(query.get("continuation-token", 0))
        entries = "".join(
            f"<Contents><Key>ds004408/{key}</Key><Size>{len(files[key])}</Size><ETag>&quot;"
            f"{hashlib.md5(files[key]).hexdigest()}{'-2' if 'large' in key else ''}&quot;</ETag></Contents>"
            for key in keys[first : first + page]
        )
        more = first + page < len(keys)
        after = f"<NextContinuationToken>{first + page}</NextContinuationToken>" if more else ""
        xml = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{after}{entries}</ListBucketResult>'
        return 200, {}, xml.encode()

    site.answers["/bucket"] = answer
    for key in keys:
        site.files[f"/bucket/ds004408/{key}"] = files[key]


FILES = {
    "README": b"how it was recorded",
    "sub-001/eeg/a b.eeg": BODY[:50_000],
    "sub-001/eeg/large.bin": BODY[:70_000],
    "sub-002/eeg/a.eeg": BODY[:60_000],
    "stimuli/audio01.wav": BODY[:40_000],
}


def test_openneuro_is_listed_page_by_page_and_checked_by_its_etags(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket(site, FILES)
    site.breaks["/bucket/ds004408/sub-001/eeg/a b.eeg"] = [30_000]
    to = tmp_path / "data"
    assert main(["studies", "get", "broderick2019", "--to", str(to)]) == 0
    got = {str(p.relative_to(to)): p.read_bytes() for p in to.rglob("*") if p.is_file()}
    assert got == FILES
    said = capsys.readouterr().out
    assert "5 of 5 files came" in said
    assert "of 1 the server tells no hash" in said
    assert f"studies check broderick2019 --dir {to}" in said
    assert "Natural Speech" in said, "the other release, which must be got by hand"
    assert main(["studies", "get", "broderick2019", "--to", str(to)]) == 0
    assert "0 of 5 files came" in capsys.readouterr().out


def test_a_part_can_be_got_and_a_wrong_etag_ends_the_command(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket(site, FILES)
    command = ["studies", "get", "bids", "--from", "openneuro:ds004408", "--to", str(tmp_path), "--only"]
    assert main([*command, "sub-002/*", "--only", "README"]) == 0
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"README", "a.eeg"}
    assert main([*command, "sub-9*"]) == 2
    assert "none of its 5 files matches sub-9*" in capsys.readouterr().err
    site.files["/bucket/ds004408/stimuli/audio01.wav"] = BODY[40_000:80_000]
    assert main([*command, "stimuli/*"]) == 2
    assert "md5" in capsys.readouterr().err
    assert not (tmp_path / "stimuli" / "audio01.wav").exists()


# OSF


def osf_page(site: Site, entries: list[dict], next_: str | None = None) -> dict:
    return {"data": entries, "links": {"next": next_ and f"{site.url}{next_}"}}


def osf_file(site: Site, path: str, body: bytes) -> dict:
    address = f"/download/{hashlib.sha256(body).hexdigest()[:5]}"
    site.files[address] = body
    about = {"kind": "file", "materialized_path": path, "size": len(body)}
    about["extra"] = {"hashes": {"md5": "0" * 32, "sha256": hashlib.sha256(body).hexdigest()}}
    return {"attributes": about, "links": {"download": f"{site.url}{address}"}}


def test_osf_is_walked_folder_by_folder_with_a_token_that_only_it_sees(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OSF_TOKEN", "secret")
    monkeypatch.setattr(repositories, "SILENT_S", 0.0)
    tokens: list[str | None] = []
    link = {"related": {"href": f"{site.url}/v2/folder/"}}
    folder = {"attributes": {"kind": "folder"}, "relationships": {"files": {"links": link}}}
    pages = {
        "/v2/nodes/ag3kj/files/osfstorage/": osf_page(site, [folder], "/v2/second/"),
        "/v2/second/": osf_page(site, [osf_file(site, "/participants.tsv", b"one")]),
        "/v2/folder/": osf_page(site, [osf_file(site, "/sub-01/meg.con", BODY)]),
        "/v2/nodes/h2tzn/files/osfstorage/": osf_page(site, [osf_file(site, "/participants.tsv", b"two")]),
        "/v2/nodes/u5327/files/osfstorage/": osf_page(site, []),
    }
    for path, page in pages.items():
        site.json(path, page)
    listed = site.answers["/v2/folder/"]

    def busy_once(query: dict[str, str], sent: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        tokens.append(sent.get("authorization"))
        return (429, {"Retry-After": "0"}, b"") if len(tokens) == 1 else listed(query, sent)

    site.answers["/v2/folder/"] = busy_once
    assert main(["studies", "get", "gwilliams2022", "--to", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "2 of 2 files came" in said.out
    assert "429" in said.err
    assert "OSF_TOKEN" in said.err
    assert "secret" not in said.out + said.err
    assert (tmp_path / "participants.tsv").read_bytes() == b"one", "of two the first project's"
    assert (tmp_path / "sub-01" / "meg.con").read_bytes() == BODY
    assert tokens == ["Bearer secret", "Bearer secret"]


def test_a_repository_that_answers_something_else_is_named(site: Site, tmp_path: Path) -> None:
    site.json("/v2/nodes/ag3kj/files/osfstorage/", {"errors": []})
    with pytest.raises(UserError, match="ag3kj.*cannot be read"):
        repositories.get("osf:ag3kj", tmp_path)
    site.answers["/bucket"] = lambda query, sent: (200, {}, b"<html>down")
    with pytest.raises(UserError, match="bucket.*cannot be read"):
        repositories.get("openneuro:ds004408", tmp_path)
    with pytest.raises(UserError, match="404"):
        repositories.get("osf:nothere", tmp_path)


@pytest.mark.parametrize("place", ["openneuro:../x", "ftp://x", "osf:", "hub:alone", "hub:a/b/c", "ds004408"])
def test_a_place_that_is_none_says_what_one_looks_like(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write openneuro:ds004408"):
        repositories.get(place, tmp_path)
    assert list(tmp_path.iterdir()) == []


# The Hugging Face hub, through the real huggingface_hub in a process that may use the (loopback) network

COMMIT = "c" * 40


def hub(site: Site, files: dict[str, bytes]) -> None:
    """As much of the hub as a snapshot needs: README.md lies in git, all else in LFS."""

    def git_sha1(body: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    info = {"id": "lab/alice", "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
    site.json("/api/datasets/lab/alice", info)
    site.json(f"/api/datasets/lab/alice/revision/{COMMIT}", info)
    tree = []
    for path, body in files.items():
        entry = {"type": "file", "path": path, "size": len(body), "oid": git_sha1(body)}
        tag = entry["oid"]
        if path != "README.md":
            tag = hashlib.sha256(body).hexdigest()
            entry["lfs"] = {"oid": tag, "size": len(body), "pointerSize": 100}
        tree.append(entry)
        url = f"/datasets/lab/alice/resolve/{COMMIT}/{path}"
        site.answers[url] = _resolved(site, f"/cdn/{path}", COMMIT, str(tag), len(body))
        site.files[f"/cdn/{path}"] = body
    site.json(f"/api/datasets/lab/alice/tree/{COMMIT}", tree)


def _resolved(site: Site, path: str, commit: str, tag: str, size: int):  # type: ignore[no-untyped-def]
    elsewhere = site.url.replace("127.0.0.1", "localhost")  # as the hub's files lie on another host
    headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(size)}
    return lambda query, sent: (302, headers | {"Location": elsewhere + path}, b"")


GET = """
import sys, pathlib
from eeg2speech.cli import execute
from eeg2speech.data import repositories
sys.exit(execute(lambda to: print(repositories.get("hub:lab/alice", to)), pathlib.Path(sys.argv[1])))
"""


def run_get(site: Site, to: Path) -> subprocess.CompletedProcess[str]:
    allowed = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": site.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(to.parent)}
    command = [sys.executable, "-c", GET, str(to)]
    return subprocess.run(command, env=os.environ | allowed, capture_output=True, text=True, timeout=120, check=False)


def test_a_copy_on_the_hub_is_got_whole_continued_and_hashed(site: Site, tmp_path: Path) -> None:
    # huggingface_hub writes 10 MiB at a time, so what comes before the connection breaks must be more
    files = {"README.md": b"# Alice", "sub-01/eeg.bin": 70 * BODY, "sub-02/eeg.bin": BODY[:100_000]}
    hub(site, files)
    site.breaks["/cdn/sub-01/eeg.bin"] = [50 * len(BODY)]
    site.files["/cdn/sub-02/eeg.bin"] = BODY[1:100_001]
    to = tmp_path / "data"
    damaged = run_get(site, to)
    assert damaged.returncode == 2, damaged.stderr
    assert f"{to}/sub-02/eeg.bin: has another hash" in damaged.stderr
    assert site.sent("/cdn/sub-01/eeg.bin") == ["", f"bytes={10 << 20}-"]
    assert not (to / "sub-02" / "eeg.bin").exists()
    site.files["/cdn/sub-02/eeg.bin"] = files["sub-02/eeg.bin"]
    done = run_get(site, to)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 files came" in done.stdout
    assert {path: (to / path).read_bytes() for path in files} == files


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hub:lab/alice: the hub refuses or cannot be reached"):
        repositories.get("hub:lab/alice", tmp_path)  # tests are offline
