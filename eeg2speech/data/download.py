"""Files over HTTP: in parallel, continued where a transfer broke off, and kept only where their hash is right."""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eeg2speech.errors import UserError
from eeg2speech.files import require_free_space

WORKERS = 4
CHUNK = 1 << 20
TIMEOUT_S = 60.0
TRIES = 5
"""How often in a row a transfer may break off without having brought a byte."""
PAUSE_S = 1.0
"""Before the second try; doubled each time."""
LONGEST_WAIT_S = 300.0
"""A server that asks for more patience is left to the user."""
BUSY = (429, 500, 502, 503, 504)
"""Answers that may be others a moment later."""
PART = ".part"
UNSATISFIABLE = 416
BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError, urllib.error.URLError)

Moved = Callable[[int], object]
"""Told how many bytes came (negative: that many are to come again)."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to be had, and what its server says of it."""

    path: str
    """Where it belongs, relative to the folder of the study, with slashes."""
    url: str
    size: int
    """Bytes."""
    algorithm: str = ""
    """A name that hashlib knows; empty where the server tells no hash."""
    hash: str = ""
    """Hex digits."""

    def target(self, folder: Path) -> Path:
        """Raises UserError where the path leads out of the folder."""
        parts = PurePosixPath(self.path)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in self.path or "\0" in self.path:
            raise UserError(f"{self.url}: is listed as {self.path!r}, which leads out of {folder}; do not trust it")
        return folder.joinpath(*parts.parts)


class Stopped(Exception):
    """Another file failed, or the user interrupted."""


def transfer(files: Sequence[RemoteFile], folder: Path, workers: int = WORKERS) -> int:
    """Brings every file that is not in `folder` already, whole and with the right hash; returns how many came.

    What is interrupted is continued by the next call from the bytes that had come.

    Raises UserError naming the file and its address where it cannot be had or has another hash than its
    server says, and where the disk is too small.
    """
    from tqdm import tqdm

    targets = [file.target(folder) for file in files]
    if len(set(targets)) < len(targets):
        raise UserError(f"{folder}: two of the files that are listed have one name; do not trust this list")
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        have = list(pool.map(_is_right, targets, files))
        wanted = [(file, target) for file, target, there in zip(files, targets, have, strict=True) if not there]
        here = {target: _length(_part(target)) for _, target in wanted}
        require_free_space(folder, sum(max(0, file.size - here[target]) for file, target in wanted))
        with tqdm(total=sum(f.size for f, _ in wanted), unit="B", unit_scale=True, leave=False, disable=None) as bar:
            tasks = [pool.submit(fetch, file, target, stop, lambda n: bar.update(n)) for file, target in wanted]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                _reraise_first(tasks)
                raise
    return len(wanted)


def _reraise_first(tasks: Sequence) -> None:
    """The failure that stopped the others, and not one of these."""
    for task in tasks:
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, Stopped):
                raise error


def fetch(file: RemoteFile, target: Path, stop: threading.Event | None = None, moved: Moved | None = None) -> None:
    """One file to `target`, by way of `target.part`, which a later call continues.

    Raises UserError naming address and file where it cannot be had, Stopped where `stop` was set.
    """
    stop, moved = stop or threading.Event(), moved or (lambda n_bytes: None)
    part = _part(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    continued = _length(part) > 0
    _complete(file, part, stop, moved)
    if continued and not _is_right(part, file):
        # the beginning may be of another version of the file, or of a disk that lost power
        moved(-part.stat().st_size)
        part.unlink()
        _complete(file, part, stop, moved)
    if not _is_right(part, file):
        found = _hash(part, file.algorithm) if file.algorithm else f"{part.stat().st_size} bytes"
        promised = f"{file.algorithm} {file.hash}" if file.algorithm else f"{file.size} bytes"
        part.unlink()
        raise UserError(
            f"{target}: what {file.url} sends has {found}, not {promised} as is listed, and was deleted; run the same "
            "command again, and where it happens again, do not use this copy"
        )
    os.replace(part, target)


def _complete(file: RemoteFile, part: Path, stop: threading.Event, moved: Moved) -> None:
    """Requests what `part` lacks until it is as long as the file, or longer, or nothing more comes."""
    moved(_length(part))
    failures = 0
    while True:
        before, waited = _length(part), 0.0
        try:
            if _receive(file, part, stop, moved):
                return
            said = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code not in BUSY:
                raise UserError(
                    f"{file.url}: the server says {error.code} {error.reason}; is it the address?"
                ) from error
            said, waited = f"the server says {error.code} {error.reason}", retry_after_s(error)
        except BROKEN as error:
            said = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if _length(part) > before else failures + 1
        if failures >= TRIES or waited > LONGEST_WAIT_S:
            times = f", {failures} times in a row" if failures > 1 else ""
            raise UserError(
                f"{file.url}: {said}{times}; the same command continues where it stopped, at {_length(part)} of "
                f"{file.size} bytes"
            )
        if stop.wait(max(PAUSE_S * 2 ** max(0, failures - 1), waited)):
            raise Stopped


def _receive(file: RemoteFile, part: Path, stop: threading.Event, moved: Moved) -> bool:
    """One request for what is lacking; False where it ended too early."""
    start = _length(part)
    if start > file.size:
        moved(-start)
        part.unlink()
        start = 0
    if start == file.size:
        part.touch()
        return True
    try:
        with urllib.request.urlopen(request(file.url, start), timeout=TIMEOUT_S) as answer:
            if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                # this server sends all or nothing
                moved(-start)
                start = 0
            with part.open("ab" if start else "wb") as out:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    moved(len(chunk))
                    if stop.is_set():
                        raise Stopped
    except urllib.error.HTTPError as error:
        if error.code != UNSATISFIABLE:
            raise
        moved(-start)  # what is there is of another file
        part.unlink()
        return False
    return _length(part) >= file.size


def request(url: str, start: int = 0) -> urllib.request.Request:
    """A GET of what comes after `start` bytes. Raises UserError for an address that is not of the web."""
    if not url.startswith(("https://", "http://")):
        raise UserError(f"{url}: is no address that starts with https://")
    headers = {"User-Agent": "eeg2speech", "Accept-Encoding": "identity"}
    return urllib.request.Request(url, headers=headers | ({"Range": f"bytes={start}-"} if start else {}))


def retry_after_s(error: urllib.error.HTTPError) -> float:
    """How long the server asks to be left alone; 0 where it does not say so in seconds."""
    with suppress(ValueError):
        return max(0.0, float(error.headers.get("Retry-After", "")))
    return 0.0


def _part(target: Path) -> Path:
    return target.with_name(target.name + PART)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_right(path: Path, file: RemoteFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return not file.algorithm or _hash(path, file.algorithm) == file.hash.lower()


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
