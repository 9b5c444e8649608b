"""Files that are either whole or absent, and hashes that say which content was used."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeg2speech.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; moves it into place when the block succeeds.

    Raises UserError naming the file where the disk is full or the folder may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")  # threads may write the same
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{path}: no space left on the disk; free some and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise UserError(
                f"{path}: this place cannot be written to ({error.strerror}); choose another folder"
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def require_free_space(path: Path, n_bytes: int) -> None:
    """Raises UserError where the disk that `path` is or will be on has less than `n_bytes` free."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise UserError(
            f"{path}: {n_bytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; make room, run it again"
        )


def new_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped float32 `.npy` of zeros, to be filled.

    Room is asked for beforehand: a disk that fills up under a memory map ends the process with SIGBUS.
    """
    import numpy as np

    require_free_space(path, 4 * math.prod(shape))
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """16 hex digits of the JSON form of plain data: the name of a configuration or a dependency."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
